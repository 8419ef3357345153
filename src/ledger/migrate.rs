//! The schema: which version this program needs, and the migrations to it.
//!
//! The migrations are files of `migrations/`, built in with their checksums by sqlx. They are applied here, over the same kind of
//! connection as everything else, with the table and the lock of sqlx: a release that used sqlx for that as well may run
//! at the same time.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use sqlx::migrate::{Migration, Migrator};
use tokio_postgres::{Client, error::SqlState};

use super::{Address, Ledger, LedgerError, check_pooler, privileges};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// How long connecting may take. A migration itself has no limit: it may have to read or write a whole table.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a migration waits for a lock: transactions that need the same table wait behind it.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// The schema after a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of `SchemaVersions`")]
pub enum Migrated {
    /// It is this program's, at this version.
    UpToDate(i64),
    /// A newer program has migrated it: nothing was done.
    Newer { found: i64, program: i64 },
}

const EXISTS: &str = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
/// The role of this connection, and a schema that has the table and that this role may not use. Postgres leaves such a schema
/// out of the search path.
const HIDDEN: &str = "
    SELECT current_user::text, nspname::text
      FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE relname = '_sqlx_migrations' AND NOT has_schema_privilege(pg_namespace.oid, 'USAGE')
       AND nspname = ANY (string_to_array(replace(current_setting('search_path'), ' ', ''), ','))
     LIMIT 1";
/// The table as sqlx creates it.
const RECORD: &str = "CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
    success BOOLEAN NOT NULL,
    checksum BYTEA NOT NULL,
    execution_time BIGINT NOT NULL
)";
const VERSION: &str =
    "SELECT coalesce(max(version) FILTER (WHERE success), 0) FROM _sqlx_migrations";

/// Brings the schema up to date, and grants what the roles of the service and of readers need. Running it again changes
/// nothing; after a failure, the migrations that were completed stay.
pub async fn migrate(address: &Address) -> anyhow::Result<Migrated> {
    check_pooler(address).await?;
    let connected = tokio::time::timeout(CONNECT_LIMIT, address.open()).await;
    let (mut client, connection) = connected
        .map_err(|_| {
            anyhow!(
                "Postgres did not answer within {CONNECT_LIMIT:?}: nothing was changed; run `yoink migrate` again"
            )
        })?
        .context("cannot connect to Postgres (postgres_url)")?;
    // The connection ends with its client.
    let migrate = async move { migrate_with(&mut client).await };
    let (migrated, _ended) = tokio::join!(migrate, connection);
    migrated
}

async fn migrate_with(client: &mut Client) -> anyhow::Result<Migrated> {
    let unread = |error| explain(error, "cannot read which migrations were applied");
    // Not as an option of the connection, which a pooler may drop.
    let limit_ms = LOCK_LIMIT.as_millis().to_string();
    let set = "SELECT set_config('lock_timeout', $1, false)";
    client.execute(set, &[&limit_ms]).await.map_err(unread)?;
    let database = client.query_one("SELECT current_database()", &[]).await.map_err(unread)?;
    let lock = lock_id(database.try_get(0).map_err(unread)?);
    // Waits for another migration that runs; closing the connection releases it.
    match client.execute("SELECT pg_advisory_lock($1)", &[&lock]).await {
        Err(error) if is_locked(&error) => Err(error)
            .context("another `yoink migrate` is running: run it again when that one has ended")?,
        taken => taken.map_err(unread)?,
    };
    let found = version(client).await.map_err(unread)?;
    if found > newest() {
        return Ok(Migrated::Newer { found, program: newest() });
    }
    client.batch_execute(RECORD).await.map_err(unread)?;
    let sql = "SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version";
    let mut recorded = Vec::new();
    for row in client.query(sql, &[]).await.map_err(unread)? {
        let (version, success): (i64, bool) = (row.get(0), row.get(1));
        // No release of this program leaves such a row.
        ensure!(
            success,
            "migration {version} is recorded as not finished: restore the schema, or remove its row from \
             _sqlx_migrations"
        );
        let file = MIGRATIONS.iter().find(|migration| migration.version == version);
        ensure!(
            file.is_some_and(|file| file.checksum.as_ref() == row.get::<_, &[u8]>(2)),
            "migration {version} was applied from another file than this program has: install the release that applied \
             it"
        );
        recorded.push(version);
    }
    for migration in MIGRATIONS.iter().filter(|file| !recorded.contains(&file.version)) {
        let failed = format!("migration {} failed and was rolled back", migration.version);
        apply(client, migration).await.map_err(|error| explain(error, failed))?;
    }
    let failed = "cannot grant what the roles yoink_serve and yoink_read need";
    privileges::grant(client).await.map_err(|error| explain(error, failed))?;
    Ok(Migrated::UpToDate(newest()))
}

fn is_locked(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// A failure of a migration with what failed, or with what to do if another session's lock is the cause.
fn explain(error: tokio_postgres::Error, failed: impl Into<String>) -> anyhow::Error {
    let locked = is_locked(&error).then(|| {
        format!(
            "another session of Postgres holds a lock that the migration needs, for longer than {LOCK_LIMIT:?} (pg_locks \
             and pg_stat_activity show which): end it, and run `yoink migrate` again; migrations that were completed stay"
        )
    });
    anyhow::Error::from(error).context(locked.unwrap_or_else(|| failed.into()))
}

/// Applies a migration and records it in one transaction.
async fn apply(client: &mut Client, migration: &Migration) -> Result<(), tokio_postgres::Error> {
    let tx = client.transaction().await?;
    tx.batch_execute(migration.sql.as_str()).await?;
    tx.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES ($1, $2, true, $3, -1)",
        &[&migration.version, &migration.description.as_ref(), &migration.checksum.as_ref()],
    )
    .await?;
    tx.commit().await
}

async fn version(client: &Client) -> Result<i64, tokio_postgres::Error> {
    if client.query_one(EXISTS, &[]).await?.try_get(0)? {
        client.query_one(VERSION, &[]).await?.try_get(0)
    } else {
        Ok(0)
    }
}

/// The key of the advisory lock that sqlx uses for a database.
fn lock_id(database: &str) -> i64 {
    0x3d32_ad9e * i64::from(crc32fast::hash(database.as_bytes()))
}

/// The schema of a database, compared with this program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaVersions {
    /// In the database; 0: none.
    pub found: i64,
    /// The oldest program that works with it, if the database says so.
    oldest: Option<i64>,
    /// In this program.
    pub program: i64,
}

impl SchemaVersions {
    /// Refuses a schema that this program cannot work with. A newer one is accepted as long as `schema_compatibility`
    /// says that programs of this one's version still work: it grew by additions.
    pub fn check(&self) -> anyhow::Result<()> {
        let Self { found, oldest, program } = *self;
        ensure!(
            found >= program,
            "the database is at schema version {found}, this program needs {program}: run `yoink migrate`"
        );
        // A database that does not state it works only with programs of its own version.
        let oldest = oldest.unwrap_or(found);
        ensure!(
            program >= oldest,
            "the database is at schema version {found}, which works with programs of schema version {oldest} or \
             newer; this program is of schema version {program}: install a newer yoink"
        );
        Ok(())
    }
}

/// Reads the version of a database's schema. Fails with what the role lacks, if it may not read it.
pub async fn schema_versions(ledger: &Ledger) -> anyhow::Result<SchemaVersions> {
    let versions = match read_versions(ledger).await {
        Err(error @ LedgerError::Misconfigured { .. }) => match ledger.missing_to_read().await {
            Ok(Some(missing)) => Err(missing.into()),
            Ok(None) | Err(_) => Err(error.into()),
        },
        versions => versions.map_err(anyhow::Error::from),
    };
    let versions = versions.context("cannot read the schema version")?;
    if versions.found == 0 {
        let hidden = ledger.with("hidden_schema", async move |client| {
            let Some(row) = client.query_opt(HIDDEN, &[]).await? else { return Ok(None) };
            Ok(Some((row.try_get(0)?, row.try_get(1)?)))
        });
        let hidden: Option<(String, String)> = hidden.await?;
        if let Some((role, schema)) = hidden {
            bail!(
                "the Postgres role {role} has no privilege for USAGE on the schema {schema}: run \
                 deploy/postgres/roles.sql as a superuser, and `yoink migrate` as the owner of the database"
            );
        }
    }
    Ok(versions)
}

async fn read_versions(ledger: &Ledger) -> Result<SchemaVersions, LedgerError> {
    ledger
        .with("schema_versions", async move |client| {
            let (mut found, mut oldest, program) = (0, None, newest());
            if client.query_one(EXISTS, &[]).await?.try_get::<_, bool>(0)? {
                found = client.query_one(VERSION, &[]).await?.try_get(0)?;
                // The table exists since version 5.
                let sql = "SELECT to_regclass('schema_compatibility') IS NOT NULL";
                if client.query_one(sql, &[]).await?.try_get::<_, bool>(0)? {
                    let sql = "SELECT max(oldest_program) FROM schema_compatibility";
                    oldest = client.query_one(sql, &[]).await?.try_get(0)?;
                }
            }
            Ok(SchemaVersions { found, oldest, program })
        })
        .await
}

/// Reads the schema of a database, and refuses it if this program cannot work with it.
pub async fn check_schema(ledger: &Ledger) -> anyhow::Result<()> {
    let versions = schema_versions(ledger).await?;
    versions.check()?;
    let SchemaVersions { found, program, .. } = versions;
    if found > program {
        tracing::info!(
            schema = found,
            program,
            "a newer program migrated the database; this program works with its schema"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_id_equals_that_of_sqlx() {
        // As `generate_lock_id` of sqlx 0.9 computes it.
        assert_eq!(lock_id("yoink"), 960_171_791_590_804_160);
    }

    #[test]
    fn every_migration_runs_in_a_transaction() {
        assert!(MIGRATIONS.iter().all(|file| !file.no_tx && file.migration_type.is_up_migration()));
    }

    #[test]
    fn newer_schema_fits_if_it_allows_this_version() {
        let refusal = |found, oldest, program| {
            let checked = SchemaVersions { found, oldest, program }.check();
            checked.err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert_eq!(refusal(5, Some(5), 5), "");
        assert_eq!(refusal(9, Some(5), 5), "");
        assert_eq!(refusal(9, Some(5), 7), "");
        let too_new = |oldest| {
            format!("version 9, which works with programs of schema version {oldest} or newer")
        };
        assert!(refusal(9, Some(6), 5).contains(&too_new(6)));
        assert!(refusal(9, None, 5).contains(&too_new(9)));
        assert!(refusal(5, Some(5), 6).contains("run `yoink migrate`"));
        assert!(refusal(0, None, 6).contains("at schema version 0, this program needs 6: run"));
    }

    #[test]
    fn migration_that_removes_something_updates_schema_compatibility() {
        let removals = ["DROP COLUMN", "DROP TABLE", "RENAME", "SET NOT NULL", " TYPE "];
        for migration in MIGRATIONS.iter().filter(|migration| migration.version > 5) {
            let sql = migration.sql.as_str().to_uppercase();
            let adds_only = !removals.iter().any(|text| sql.contains(text));
            let is_stated = sql.contains("UPDATE SCHEMA_COMPATIBILITY");
            assert!(adds_only || is_stated, "migration {}", migration.version);
        }
    }
}
