//! Connections, transactions, and the limits on both.

use std::{
    future::Future,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use deadpool_postgres::{
    Manager, ManagerConfig, Object, Pool, PoolConfig, RecyclingMethod, Runtime, Timeouts,
};
use futures_util::{Stream, StreamExt as _};
use tokio_postgres::{Config, NoTls, Row, types::ToSql};

use super::{LedgerError, error::Cause};
use crate::telemetry::PoolReading;

/// No operation on the ledger lasts longer, whatever the network does.
const OPERATION_LIMIT: Duration = Duration::from_secs(20);
const POOL_WAIT: Duration = Duration::from_secs(5);

/// A handle on Postgres; clones share a pool.
#[derive(Clone)]
pub struct Ledger {
    pool: Pool,
    /// For a connection beside the pool.
    beside: Config,
}

impl Ledger {
    /// A pool of at most `connections`, opened as they are needed.
    ///
    /// # Errors
    ///
    /// When the settings make no pool.
    pub fn new(mut config: Config, connections: usize) -> anyhow::Result<Self> {
        config.connect_timeout(Duration::from_secs(3));
        config.keepalives_idle(Duration::from_secs(10));
        config.application_name("yoink");
        let limits = "-c statement_timeout=15000 -c lock_timeout=5000 \
                      -c idle_in_transaction_session_timeout=30000";
        let options =
            config.get_options().map_or(limits.to_owned(), |own| format!("{limits} {own}"));
        config.options(options);
        // Verified: a connection that a restart of Postgres killed is noticed before it is used.
        let recycling_method = RecyclingMethod::Verified;
        let beside = config.clone();
        let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method });
        let mut pool = PoolConfig::new(connections);
        pool.timeouts =
            Timeouts { wait: Some(POOL_WAIT), create: Some(POOL_WAIT), recycle: Some(POOL_WAIT) };
        let pool = Pool::builder(manager).config(pool).runtime(Runtime::Tokio1).build()?;
        Ok(Self { pool, beside })
    }

    /// Runs one operation on a connection of its own, within the operation limit.
    pub(super) async fn with<T, F>(
        &self,
        operation: impl FnOnce(Object) -> F,
    ) -> Result<T, LedgerError>
    where
        F: Future<Output = Result<T, LedgerError>>,
    {
        let run = async { operation(self.pool.get().await?).await };
        tokio::time::timeout(OPERATION_LIMIT, run).await.unwrap_or_else(|_| {
            let source = Cause::Timeout(OPERATION_LIMIT);
            Err(LedgerError::Unavailable { source })
        })
    }

    /// A connection without an operation limit, for long reads.
    pub(super) async fn connection(&self) -> Result<Object, LedgerError> {
        Ok(self.pool.get().await?)
    }

    /// Rows as they come, for reads that grow: on a connection of their own, without a time limit.
    pub(super) async fn rows(
        &self,
        sql: &str,
        args: &[&(dyn ToSql + Sync)],
    ) -> Result<impl Stream<Item = Result<Row, LedgerError>> + use<>, LedgerError> {
        let client = self.connection().await?;
        client.batch_execute("SET statement_timeout = 0").await?;
        let rows = client.query_raw(sql, args.iter().copied()).await?;
        // The connection lives as long as its rows, and is not handed on: it has no statement timeout.
        let client = Object::take(client);
        Ok(Box::pin(rows).map(move |row| {
            let _alive = &client;
            Ok(row?)
        }))
    }

    /// The connections as they are now.
    pub fn connections(&self) -> PoolReading {
        let status = self.pool.status();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        PoolReading {
            open: count(status.size),
            idle: count(status.available),
            waiting: count(status.waiting),
        }
    }

    /// Whether Postgres answers a connection made now: also while all others are in use.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn probe(&self) -> Result<(), LedgerError> {
        let (client, connection) = self.beside.connect(NoTls).await?;
        let asked = async move { client.simple_query("SELECT 1").await.map(drop) };
        // The connection ends with its client.
        let (asked, ended) = tokio::join!(asked, connection);
        asked.and(ended)?;
        Ok(())
    }

    /// Whether Postgres answers.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn ping(&self) -> Result<(), LedgerError> {
        self.with(|client| async move {
            client.simple_query("SELECT 1").await?;
            Ok(())
        })
        .await
    }
}

/// The last second of the year 9999.
const LAST_MS: i64 = 253_402_300_799_000;

/// Milliseconds since 1970 as a timestamptz; what lies outside 1970 to 9999 becomes its nearer end.
pub(super) fn timestamp(ms: i64) -> SystemTime {
    let ms = u64::try_from(ms.clamp(0, LAST_MS)).unwrap_or(0);
    UNIX_EPOCH + Duration::from_millis(ms)
}

/// A timestamptz as milliseconds since 1970.
pub(super) fn milliseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
