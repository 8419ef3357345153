//! A pooler in front of Postgres (PgBouncer) must give each connection a backend of its own.
//!
//! If it gives each transaction another backend, the limits that a connection has set apply to other clients,
//! locks are left behind, and prepared statements are missing. This is checked before anything else is done.

use std::time::Duration;

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{Address, LedgerError, pool::within};

/// How often two connections are compared: a busy pooler may return to the same backend by chance.
const ROUNDS: usize = 5;
/// The limit of the comparison: a pooler without a free backend makes it wait.
const LIMIT: Duration = Duration::from_secs(15);

/// Why Postgres cannot be used through this address.
#[derive(Debug, thiserror::Error)]
pub enum PoolerError {
    /// Each transaction may run on another backend.
    #[error(
        "postgres_url is the address of a pooler that gives each transaction another backend of Postgres: set \
         pool_mode = session for this database in PgBouncer, or set postgres_url to the address of Postgres itself"
    )]
    TransactionMode,
    /// The check failed.
    #[error("cannot use Postgres (postgres_url)")]
    Ledger(#[from] LedgerError),
}

/// Refuses a pooler that does not keep one backend per connection.
pub async fn check_pooler(address: &Address) -> Result<(), PoolerError> {
    let compared = within(LIMIT, async {
        let (first, first_io) = address.open().await?;
        let (second, second_io) = address.open().await?;
        // The connections end with their clients.
        let compare = async move { keep_backends(&first, &second).await };
        let (compared, ..) = tokio::join!(compare, first_io, second_io);
        compared
    });
    if compared.await? { Ok(()) } else { Err(PoolerError::TransactionMode) }
}

/// Whether two connections that are open at the same time have two backends, and each keeps its own.
async fn keep_backends(first: &Client, second: &Client) -> Result<bool, LedgerError> {
    let own = backend(first).await?;
    for _ in 0..ROUNDS {
        // Before a transaction, which PgBouncer refuses in statement mode.
        if backend(second).await? == own {
            return Ok(false);
        }
        second.batch_execute("BEGIN").await?;
        // If both share one backend, the second holds it until its transaction ends, and a statement on the first would
        // wait.
        let shared = backend(second).await? == own || backend(first).await? != own;
        second.batch_execute("COMMIT").await?;
        if shared {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The backend that answers: its process id and the start time of its server.
async fn backend(client: &Client) -> Result<Option<String>, LedgerError> {
    let sql = "SELECT pg_backend_pid() || ' since ' || pg_postmaster_start_time()";
    let answer = client.simple_query(sql).await?;
    let row = answer.iter().find_map(|message| {
        if let SimpleQueryMessage::Row(row) = message { row.get(0) } else { None }
    });
    Ok(row.map(str::to_owned))
}
