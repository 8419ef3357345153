//! A pooler between us and Postgres (PgBouncer) must leave each connection its own backend.
//!
//! Where it gives each transaction another one, limits that a connection has set apply to somebody else, locks
//! stay behind, and prepared statements are not there. That is noticed before anything is done.

use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::{LedgerError, error::Cause, pool::prepare};

/// How often two connections are compared; busy poolers may give out the right backend by chance.
const ROUNDS: usize = 5;
/// How long that may take: a pooler without a free backend lets us wait.
const LIMIT: Duration = Duration::from_secs(15);

/// Why Postgres cannot be used through this address.
#[derive(Debug, thiserror::Error)]
pub enum PoolerError {
    /// Each transaction may run on another backend.
    #[error(
        "postgres_url leads to a pooler that gives each transaction another backend of Postgres: set \
         pool_mode = session for this database in PgBouncer, or let postgres_url lead to Postgres itself"
    )]
    TransactionMode,
    /// It could not be found out.
    #[error("cannot use Postgres (postgres_url)")]
    Ledger(#[source] LedgerError),
}

impl From<LedgerError> for PoolerError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

impl From<tokio_postgres::Error> for PoolerError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Ledger(error.into())
    }
}

/// Refuses a pooler that does not leave a connection its backend.
///
/// # Errors
///
/// See [`PoolerError`].
pub async fn check_pooler(config: &Config) -> Result<(), PoolerError> {
    let config = prepare(config.clone());
    let compared = async {
        let (first, first_io) = config.connect(NoTls).await?;
        let (second, second_io) = config.connect(NoTls).await?;
        // The connections end with their clients.
        let compare = async move { compare(&first, &second).await };
        let (compared, ..) = tokio::join!(compare, first_io, second_io);
        compared
    };
    match tokio::time::timeout(LIMIT, compared).await {
        Ok(compared) => compared,
        Err(_) => {
            let source = Cause::Timeout(LIMIT);
            Err(LedgerError::Unavailable { source }.into())
        }
    }
}

/// Two connections that live at once have two backends, and each keeps its own.
async fn compare(first: &Client, second: &Client) -> Result<(), PoolerError> {
    let own = backend(first).await?;
    for _ in 0..ROUNDS {
        // Before a transaction, which PgBouncer refuses in statement mode.
        if backend(second).await? == own {
            return Err(PoolerError::TransactionMode);
        }
        second.batch_execute("BEGIN").await?;
        // With one backend for both, the second has it until its transaction ends: the first is not asked then.
        let shared = backend(second).await? == own || backend(first).await? != own;
        second.batch_execute("COMMIT").await?;
        if shared {
            return Err(PoolerError::TransactionMode);
        }
    }
    Ok(())
}

/// Which backend answers: its process, and which server that is of.
async fn backend(client: &Client) -> Result<Option<String>, PoolerError> {
    let sql = "SELECT pg_backend_pid() || ' since ' || pg_postmaster_start_time()";
    let answer = client.simple_query(sql).await?;
    let row = answer.iter().find_map(|message| {
        if let SimpleQueryMessage::Row(row) = message { row.get(0) } else { None }
    });
    Ok(row.map(str::to_owned))
}
