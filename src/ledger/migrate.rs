//! The schema, by sqlx; everything else here is tokio-postgres.

use std::time::Duration;

use sqlx::{
    Connection as _,
    migrate::{MigrateError as SqlxMigrateError, Migrator},
    postgres::{PgConnectOptions, PgConnection},
};

use super::{Ledger, LedgerError, PoolerError, check_pooler};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// How long connecting may take. A migration itself has no limit: it may have to read or write a whole table.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long a migration waits for a lock: whoever comes after it for the same table waits for it as well.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// What Postgres says when that is over (lock_not_available).
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A pooler in between that cannot be used.
    #[error(transparent)]
    Pooler(#[from] PoolerError),
    /// No connection.
    #[error("cannot connect to Postgres")]
    Connect(#[source] sqlx::Error),
    /// Postgres accepts the connection and does not answer.
    #[error(
        "Postgres does not answer within {CONNECT_LIMIT:?}: nothing was changed; run `yoink migrate` again"
    )]
    Silent,
    /// Somebody else holds a lock that a migration needs.
    #[error(
        "another session of Postgres holds a lock that the migration needs, for longer than {LOCK_LIMIT:?} (pg_locks and \
         pg_stat_activity show which): end it, and run `yoink migrate` again; migrations that were completed stay"
    )]
    Locked(#[source] SqlxMigrateError),
    /// A migration failed, or the database has one that this program does not know.
    #[error("cannot migrate the schema")]
    Migrate(#[source] SqlxMigrateError),
    /// The schema is older than the one this program was built with.
    #[error(
        "the database is at schema version {found}, this program needs {needed}: run `yoink migrate`"
    )]
    OutOfDate {
        /// In the database; 0: none.
        found: i64,
        /// In this program.
        needed: i64,
    },
    /// The schema is newer, and not by additions only.
    #[error(
        "the database is at schema version {found}, which works with programs of schema version {oldest} \
         or newer; this program is of schema version {program}: install a newer yoink"
    )]
    TooNew {
        /// In the database.
        found: i64,
        /// The oldest program that works with it.
        oldest: i64,
        /// In this program.
        program: i64,
    },
    /// The version could not be read.
    #[error("cannot read the schema version")]
    Ledger(#[source] LedgerError),
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// The schema after a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Migrated {
    /// It is this program's, at this version.
    UpToDate(i64),
    /// A newer program has migrated it: nothing was done.
    Newer {
        /// In the database.
        found: i64,
        /// In this program.
        program: i64,
    },
}

const EXISTS: &str = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
const VERSION: &str =
    "SELECT coalesce(max(version) FILTER (WHERE success), 0) FROM _sqlx_migrations";

/// Brings the schema up to date. Running it again changes nothing.
///
/// # Errors
///
/// See [`MigrateError`].
pub async fn migrate(url: &str) -> Result<Migrated, MigrateError> {
    check_pooler(url).await?;
    // PgBouncer refuses this parameter, and no migration prints a fraction.
    let options = url.parse::<PgConnectOptions>().map_err(MigrateError::Connect)?;
    let options = options.extra_float_digits(None);
    let connected = tokio::time::timeout(CONNECT_LIMIT, connect(&options)).await;
    let mut connection = connected.map_err(|_| MigrateError::Silent)??;
    let found = version(&mut connection).await;
    let found = found.map_err(|error| refused(SqlxMigrateError::Execute(error)))?;
    let migrated = if found > newest() {
        Migrated::Newer { found, program: newest() }
    } else {
        MIGRATIONS.run(&mut connection).await.map_err(refused)?;
        Migrated::UpToDate(newest())
    };
    connection.close().await.map_err(MigrateError::Connect)?;
    Ok(migrated)
}

/// A connection that waits for no lock longer than [`LOCK_LIMIT`].
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, MigrateError> {
    let connected = PgConnection::connect_with(options).await;
    let mut connection = connected.map_err(MigrateError::Connect)?;
    // Not as an option of the connection, which a pooler may drop.
    let set = "SELECT set_config('lock_timeout', $1, false)";
    let limit_ms = LOCK_LIMIT.as_millis().to_string();
    let set = sqlx::query(set).bind(limit_ms).execute(&mut connection).await;
    set.map_err(MigrateError::Connect)?;
    Ok(connection)
}

/// Names the failure that somebody else's lock causes.
fn refused(error: SqlxMigrateError) -> MigrateError {
    if let SqlxMigrateError::Execute(cause) | SqlxMigrateError::ExecuteMigration(cause, _) = &error
        && let Some(code) = cause.as_database_error().and_then(|error| error.code())
        && code == LOCK_NOT_AVAILABLE
    {
        return MigrateError::Locked(error);
    }
    MigrateError::Migrate(error)
}

async fn version(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    let exists: bool = sqlx::query_scalar(EXISTS).fetch_one(&mut *connection).await?;
    if exists { sqlx::query_scalar(VERSION).fetch_one(connection).await } else { Ok(0) }
}

/// Refuses a database whose schema this program cannot work with. A newer one is accepted as long as
/// `schema_compatibility` says that programs of this one's version still work: it grew by additions.
///
/// # Errors
///
/// `OutOfDate`, `TooNew`, or `Ledger` when the version cannot be read.
pub async fn check_schema(ledger: &Ledger) -> Result<(), MigrateError> {
    let read = ledger.with(|client| async move {
        if !client.query_one(EXISTS, &[]).await?.try_get::<_, bool>(0)? {
            return Ok((0, None));
        }
        let found = client.query_one(VERSION, &[]).await?.try_get(0)?;
        // It came with version 5.
        let sql = "SELECT to_regclass('schema_compatibility') IS NOT NULL";
        if !client.query_one(sql, &[]).await?.try_get::<_, bool>(0)? {
            return Ok((found, None));
        }
        let sql = "SELECT max(oldest_program) FROM schema_compatibility";
        Ok((found, client.query_one(sql, &[]).await?.try_get(0)?))
    });
    let (found, oldest) = read.await.map_err(MigrateError::Ledger)?;
    fit(found, oldest, newest())?;
    if found > newest() {
        tracing::info!(
            schema = found,
            program = newest(),
            "the database was migrated by a newer program; this one works with its schema"
        );
    }
    Ok(())
}

/// Whether a program of one version works with a schema of another, with which programs from `oldest` on work.
fn fit(found: i64, oldest: Option<i64>, program: i64) -> Result<(), MigrateError> {
    // A database that does not say so works with programs of its own version.
    let oldest = oldest.unwrap_or(found);
    if found < program {
        Err(MigrateError::OutOfDate { found, needed: program })
    } else if program < oldest {
        Err(MigrateError::TooNew { found, oldest, program })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_fits_as_long_as_it_says_so() {
        assert!(fit(5, Some(5), 5).is_ok());
        assert!(fit(9, Some(5), 5).is_ok());
        assert!(fit(9, Some(5), 7).is_ok());
        assert!(matches!(fit(9, Some(6), 5), Err(MigrateError::TooNew { oldest: 6, .. })));
        assert!(matches!(fit(9, None, 5), Err(MigrateError::TooNew { oldest: 9, .. })));
        assert!(matches!(fit(5, Some(5), 6), Err(MigrateError::OutOfDate { .. })));
        assert!(matches!(fit(0, None, 6), Err(MigrateError::OutOfDate { found: 0, needed: 6 })));
    }

    #[test]
    fn a_migration_that_takes_something_away_says_which_programs_still_work() {
        let takes = ["DROP COLUMN", "DROP TABLE", "RENAME", "SET NOT NULL", " TYPE "];
        for migration in MIGRATIONS.iter().filter(|migration| migration.version > 5) {
            let sql = migration.sql.as_str().to_uppercase();
            let adds_only = !takes.iter().any(|word| sql.contains(word));
            let says = sql.contains("UPDATE SCHEMA_COMPATIBILITY");
            assert!(adds_only || says, "migration {}", migration.version);
        }
    }
}
