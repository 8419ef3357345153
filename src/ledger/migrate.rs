//! The schema, by sqlx; everything else here is tokio-postgres.

use sqlx::{
    Connection as _,
    migrate::{MigrateError as SqlxMigrateError, Migrator},
    postgres::{PgConnectOptions, PgConnection},
};

use super::{Ledger, LedgerError, PoolerError, check_pooler};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A pooler in between that cannot be used.
    #[error(transparent)]
    Pooler(#[from] PoolerError),
    /// No connection.
    #[error("cannot connect to Postgres")]
    Connect(#[source] sqlx::Error),
    /// A migration failed, or the database has one that this program does not know.
    #[error("cannot migrate the schema")]
    Migrate(#[source] SqlxMigrateError),
    /// The schema is not the one this program was built with.
    #[error(
        "the database is at schema version {found}, this program needs {needed}: run `yoink migrate`"
    )]
    OutOfDate {
        /// In the database; 0: none.
        found: i64,
        /// In this program.
        needed: i64,
    },
    /// The version could not be read.
    #[error("cannot read the schema version")]
    Ledger(#[source] LedgerError),
}

fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Brings the schema up to date; returns its version. Running it again changes nothing.
///
/// # Errors
///
/// See [`MigrateError`].
pub async fn migrate(url: &str) -> Result<i64, MigrateError> {
    check_pooler(url).await?;
    // PgBouncer refuses this parameter, and no migration prints a fraction.
    let options = url.parse::<PgConnectOptions>().map_err(MigrateError::Connect)?;
    let options = options.extra_float_digits(None);
    let connected = PgConnection::connect_with(&options).await;
    let mut connection = connected.map_err(MigrateError::Connect)?;
    MIGRATIONS.run(&mut connection).await.map_err(MigrateError::Migrate)?;
    connection.close().await.map_err(MigrateError::Connect)?;
    Ok(newest())
}

/// Refuses a database whose schema is not this program's.
///
/// # Errors
///
/// `OutOfDate`, or `Ledger` when the version cannot be read.
pub async fn check_schema(ledger: &Ledger) -> Result<(), MigrateError> {
    let version = ledger.with(|client| async move {
        let exists =
            client.query_one("SELECT to_regclass('_sqlx_migrations') IS NOT NULL", &[]).await?;
        if !exists.get::<_, bool>(0) {
            return Ok(0);
        }
        let sql = "SELECT coalesce(max(version) FILTER (WHERE success), 0) FROM _sqlx_migrations";
        Ok(client.query_one(sql, &[]).await?.get::<_, i64>(0))
    });
    match version.await.map_err(MigrateError::Ledger)? {
        found if found == newest() => Ok(()),
        found => Err(MigrateError::OutOfDate { found, needed: newest() }),
    }
}
