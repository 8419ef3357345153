//! What the role of the service and the role of readers may do: declared here, granted by `migrate`, and checked at a
//! start.
//!
//! Must never: let the service change or delete a reservation that is stored.

use tokio_postgres::{
    Client,
    types::{ToSql, Type},
};

use super::{Ledger, LedgerError};

/// The role of the service, and of commands that change something (`deploy/postgres/roles.sql`).
const SERVE: &str = "yoink_serve";
/// The role of commands that only read.
const READ: &str = "yoink_read";

/// A table that both roles may read, and what the service may do with it in addition.
struct Table {
    name: &'static str,
    /// The columns that it may insert, separated by commas.
    insert: &'static str,
    /// The columns that it may update. A role that may update one of them may also lock a row.
    update: &'static str,
    /// Whether it may delete rows.
    delete: bool,
}

const fn table(name: &'static str, insert: &'static str, update: &'static str) -> Table {
    Table { name, insert, update, delete: false }
}

const TABLES: [Table; 13] = [
    table("deployment", "partitions", ""),
    table("partitions", "partition, epoch, status", "epoch, status, opened"),
    table(
        "products",
        "product_id, partition, name, price, currency, opens_at, closes_at, per_user_limit, status, version, \
         supply",
        "name, price, currency, opens_at, closes_at, per_user_limit, status, version, supply, sold",
    ),
    table(
        "reservations",
        "reservation_id, state, product_id, user_id, units, request_id, partition, epoch, seq, reserved_at, \
         void_reason, entry",
        "",
    ),
    table("supply_changes", "product_id, units, request_id, actor, reason", ""),
    table("reported_marks", "gateway, partition, epoch, seq", "seq, at"),
    table(
        "audit_checkpoints",
        "partition, version, epochs, first_seqs, last_seqs, products, units, bucket_width_ms, since_ms, buckets, \
         request_ids, checksum",
        "version, epochs, first_seqs, last_seqs, products, units, bucket_width_ms, since_ms, buckets, request_ids, \
         checksum, saved_at, verified_at",
    ),
    // A record is deleted if its action was not done.
    Table {
        name: "dead_actions",
        insert: "actor, action, reservation_id, reason",
        update: "action",
        delete: true,
    },
    // For `yoink keys`, which uses the role of the service.
    table("api_keys", "key_id, secret_sha256, principal, role, expires_at", "revoked_at"),
    table("api_key_version", "", "version"),
    // A worker that ends removes its row.
    Table { name: "workers", insert: "worker, beat, audits", update: "beat, audits", delete: true },
    table("schema_compatibility", "", ""),
    table("_sqlx_migrations", "", ""),
];

/// The sequence from which the service takes versions.
const SEQUENCE: &str = "catalogue_version";

impl Table {
    /// What the service may do: each privilege, and its columns where it has columns.
    fn of_service(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let with_columns = [("INSERT", self.insert), ("UPDATE", self.update)];
        let with_columns = with_columns.into_iter().filter(|(_, columns)| !columns.is_empty());
        let delete = self.delete.then_some(("DELETE", ""));
        std::iter::once(("SELECT", "")).chain(with_columns).chain(delete)
    }
}

/// A privilege as GRANT and messages have it.
fn text(privilege: &str, columns: &str) -> String {
    if columns.is_empty() { privilege.to_owned() } else { format!("{privilege} ({columns})") }
}

/// The statements that leave a role exactly what it needs in each table.
fn grants(role: &str) -> String {
    let mut sql = String::new();
    for table in &TABLES {
        let privileges: Vec<String> = table
            .of_service()
            .filter(|(privilege, _)| role == SERVE || *privilege == "SELECT")
            .map(|(privilege, columns)| text(privilege, columns))
            .collect();
        let (name, privileges) = (table.name, privileges.join(", "));
        sql += &format!(
            "REVOKE ALL ON {name} FROM {role};\nGRANT {privileges} ON {name} TO {role};\n"
        );
    }
    sql += &format!("REVOKE ALL ON SEQUENCE {SEQUENCE} FROM {role};\n");
    if role == SERVE {
        sql += &format!("GRANT USAGE ON SEQUENCE {SEQUENCE} TO {role};\n");
    }
    sql
}

/// Gives both roles what they need, in one transaction: a process that runs meanwhile loses nothing. A role exists in all
/// databases of its server, so it gets something only in a database to which it was permitted to connect
/// (`deploy/postgres/roles.sql`). A role that owns a table keeps what an owner may do.
pub(super) async fn grant(client: &mut Client) -> Result<(), tokio_postgres::Error> {
    let tx = client.transaction().await?;
    // What all roles may do (PUBLIC) is an entry of role 0.
    let sql = "
        SELECT rolname::text FROM pg_roles
         WHERE rolname = ANY($1)
           AND EXISTS (SELECT FROM pg_database, aclexplode(datacl) AS permitted
                        WHERE datname = current_database() AND permitted.grantee = pg_roles.oid
                          AND permitted.privilege_type = 'CONNECT')
           AND NOT EXISTS (SELECT FROM unnest($2::text[]) AS name JOIN pg_class ON pg_class.oid = to_regclass(name)
                            WHERE relowner = pg_roles.oid)";
    let mut names: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
    names.push(SEQUENCE);
    for role in tx.query(sql, &[&[SERVE, READ].as_slice(), &names]).await? {
        tx.batch_execute(&grants(role.try_get(0)?)).await?;
    }
    tx.commit().await
}

/// What the role of this process may not do, and has to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the Postgres role {role} has no privilege for {}: set the role of postgres_url to yoink_serve (for a command that \
     only reads: yoink_read), run deploy/postgres/roles.sql in this database, and then `yoink migrate` as its owner, \
     which grants what these roles need",
    .missing.join("; ")
)]
pub struct MissingPrivileges {
    role: String,
    /// Such as `INSERT (gateway, seq) on reported_marks`.
    missing: Vec<String>,
}

impl Ledger {
    /// What the service needs and the role of this connection may not do; changes nothing.
    pub async fn missing_privileges(&self) -> Result<Option<MissingPrivileges>, LedgerError> {
        let needed = TABLES.iter().flat_map(|table| {
            table.of_service().map(|(privilege, columns)| (table.name, privilege, columns))
        });
        self.missing(needed.chain([(SEQUENCE, "USAGE", "")]).collect()).await
    }

    /// The tables that the role of this connection may not read.
    pub(super) async fn missing_to_read(&self) -> Result<Option<MissingPrivileges>, LedgerError> {
        self.missing(TABLES.iter().map(|table| (table.name, "SELECT", "")).collect()).await
    }

    /// Those of these privileges that the role of this connection does not have: of a table or the sequence, each with its
    /// columns.
    async fn missing(
        &self,
        needed: Vec<(&str, &str, &str)>,
    ) -> Result<Option<MissingPrivileges>, LedgerError> {
        let names: Vec<&str> = needed.iter().map(|(name, ..)| *name).collect();
        let privileges: Vec<&str> = needed.iter().map(|(_, privilege, _)| *privilege).collect();
        let columns: Vec<&str> = needed.iter().map(|(.., columns)| *columns).collect();
        self.with("missing_privileges", async move |client| {
            // An empty text has no parts, so what has no columns is checked for the whole table.
            let sql = "
                SELECT current_user::text, privilege || CASE WHEN columns = '' THEN '' ELSE
                           ' (' || string_agg(part, ', ' ORDER BY part) || ')' END || ' on ' || name
                  FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY
                           AS needed (name, privilege, columns, place)
                  LEFT JOIN LATERAL unnest(string_to_array(columns, ', ')) AS part ON true
                 WHERE NOT CASE WHEN privilege = 'USAGE' THEN has_sequence_privilege(name, privilege)
                                WHEN part IS NULL THEN has_table_privilege(name, privilege)
                                ELSE has_column_privilege(name, part, privilege) END
                 GROUP BY name, privilege, columns, place ORDER BY place";
            let args: [(&(dyn ToSql + Sync), Type); 3] = [
                (&names, Type::TEXT_ARRAY),
                (&privileges, Type::TEXT_ARRAY),
                (&columns, Type::TEXT_ARRAY),
            ];
            let rows = client.query_typed(sql, &args).await?;
            let missing: Result<Vec<String>, _> = rows.iter().map(|row| row.try_get(1)).collect();
            let role = rows.first().map(|row| row.try_get(0)).transpose()?;
            let missing = missing?;
            Ok(role.map(|role| MissingPrivileges { role, missing }))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_get_no_privilege_but_select() {
        let granted = grants(READ);
        assert_eq!(granted.matches("GRANT ").count(), TABLES.len(), "{granted}");
        assert_eq!(granted.matches("GRANT SELECT ON ").count(), TABLES.len(), "{granted}");
    }

    #[test]
    fn service_gets_no_privilege_to_change_a_stored_reservation() {
        let granted = grants(SERVE);
        let line = granted
            .lines()
            .find(|line| line.contains("GRANT") && line.contains(" ON reservations "));
        let line = line.unwrap();
        assert!(line.contains("INSERT (reservation_id, state, "), "{line}");
        for change in ["UPDATE", "DELETE", "TRUNCATE", "recorded_at"] {
            assert!(!line.contains(change), "{line}");
        }
    }

    #[test]
    fn every_table_of_the_schema_is_declared() {
        let migrations = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"));
        for file in migrations.unwrap() {
            let sql = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for created in sql.split("CREATE TABLE ").skip(1) {
                let name = created.split_whitespace().next().unwrap();
                assert!(TABLES.iter().any(|table| table.name == name), "{name}");
            }
        }
    }
}
