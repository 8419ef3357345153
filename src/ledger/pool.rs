//! Connections, transactions, and the limits on both.

use std::{
    future::Future,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolConfig,
    RecyclingMethod, Runtime, Timeouts,
};
use futures_util::{Stream, TryStreamExt as _, stream};
use tokio::time::Instant;
use tokio_postgres::{Config, Row, error::SqlState, types::ToSql};

use super::{Address, LedgerError, error::Cause};
use crate::telemetry::{Metrics, PoolReading};

/// The limit of one operation, except for maintenance.
const OPERATION_LIMIT: Duration = Duration::from_secs(20);
/// The limit of an operation of maintenance: a read without a bound, or an import.
const MAINTENANCE_LIMIT: Duration = Duration::from_secs(30 * 60);
/// The limit from one row of such a read to the next.
const ROW_LIMIT: Duration = Duration::from_secs(120);
const POOL_WAIT: Duration = Duration::from_secs(5);
/// The limit of connecting to all hosts together, so that the last one is reached within `POOL_WAIT`, and the
/// bounds of the limit for each of them.
const CONNECT_LIMIT: Duration = Duration::from_secs(4);
const CONNECT_MAX: Duration = Duration::from_secs(3);
const CONNECT_MIN: Duration = Duration::from_millis(500);
/// How long Postgres works on one statement of an operation.
const STATEMENT_LIMIT: Duration = Duration::from_secs(15);

/// Limits that each connection sets after it was made, in milliseconds or as Postgres counts them, and no compilation of
/// statements, which takes longer than an audit that reads new rows of a large table. A pooler may drop
/// what a connection asks for when it starts, and an older Postgres does not have all of these. What the options in
/// `postgres_url` have set stays as it is.
fn session_settings(statement_limit: Duration) -> String {
    format!(
        "SELECT set_config(name, value, false)
           FROM (VALUES ('statement_timeout', '{}'),
                        ('lock_timeout', '5000'),
                        ('idle_in_transaction_session_timeout', '30000'),
                        ('jit', 'off'),
                        ('tcp_keepalives_idle', '10'),
                        ('tcp_keepalives_interval', '5'),
                        ('tcp_keepalives_count', '3')) AS ours (name, value)
           JOIN pg_settings USING (name)
          WHERE source <> 'client'",
        statement_limit.as_millis()
    )
}

/// Postgres cancels a query whose client has disconnected (since 14, not on every operating system).
const CANCEL_AFTER_DISCONNECT: &str = "SELECT set_config(name, '1000', false) FROM pg_settings
                            WHERE name = 'client_connection_check_interval'";

/// Sets a new connection's limits.
fn set_limits(statement_limit: Duration) -> Hook {
    let settings = session_settings(statement_limit);
    Hook::async_fn(move |client, _| {
        let settings = settings.clone();
        Box::pin(async move {
            let client: &ClientWrapper = client;
            let (set, _unsupported) = tokio::join!(
                client.simple_query(&settings),
                client.simple_query(CANCEL_AFTER_DISCONNECT)
            );
            set.map(drop).map_err(HookError::Backend)
        })
    })
}

/// Sets timeouts, so that a connection on which the network carries nothing ends.
pub(super) fn with_timeouts(mut config: Config) -> Config {
    let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1);
    let each = CONNECT_LIMIT / u32::try_from(hosts).unwrap_or(u32::MAX);
    config.connect_timeout(each.clamp(CONNECT_MIN, CONNECT_MAX));
    config.keepalives_idle(Duration::from_secs(10));
    config.keepalives_interval(Duration::from_secs(5));
    config.keepalives_retries(3);
    config.tcp_user_timeout(Duration::from_secs(10));
    config.application_name("yoink");
    config
}

fn builder(address: &Address, connections: usize) -> deadpool_postgres::PoolBuilder {
    // Verified: a connection that a restart of Postgres closed is detected before it is used.
    let recycling_method = RecyclingMethod::Verified;
    let (config, settings) = (address.config().clone(), ManagerConfig { recycling_method });
    let manager = Manager::from_connect(config, address.clone(), settings);
    let mut pool = PoolConfig::new(connections);
    pool.timeouts =
        Timeouts { wait: Some(POOL_WAIT), create: Some(POOL_WAIT), recycle: Some(POOL_WAIT) };
    Pool::builder(manager).config(pool).runtime(Runtime::Tokio1)
}

/// A pool of at most `connections` for operations, opened as they are needed.
pub(super) fn operations(address: &Address, connections: usize) -> anyhow::Result<Pool> {
    Ok(builder(address, connections).post_create(set_limits(STATEMENT_LIMIT)).build()?)
}

/// A pool of at most `connections` for maintenance, each used once.
pub(super) fn maintenance(address: &Address, connections: usize) -> anyhow::Result<Pool> {
    let used =
        Hook::sync_fn(|_, _| Err(HookError::message("connections for maintenance are used once")));
    let builder = builder(address, connections).post_create(set_limits(MAINTENANCE_LIMIT));
    Ok(builder.pre_recycle(used).build()?)
}

/// Closes the connections for maintenance that no one uses. Held with such a connection and dropped after it; Postgres
/// then cancels within about a second what still runs on it.
struct CloseIdle(Pool);

impl Drop for CloseIdle {
    fn drop(&mut self) {
        drop(self.0.retain(|_, _| false));
    }
}

/// Runs an operation of Postgres with a time limit.
pub(super) async fn within<T>(
    limit: Duration,
    run: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    let done = tokio::time::timeout(limit, run).await;
    done.unwrap_or_else(|_| Err(LedgerError::Transient { source: Cause::Timeout(limit) }))
}

/// Postgres for one kind of caller; clones share its connections. A call fails with a [`LedgerError`] when Postgres does
/// not answer, at the start or in the middle of a stream, or does not do what was asked.
#[derive(Clone)]
pub struct Ledger {
    pub(super) pool: Pool,
    /// Connections for maintenance, shared by all kinds of callers.
    pub(super) maintenance: Pool,
    /// For connections outside of the pools.
    address: Address,
    metrics: Metrics,
}

impl Ledger {
    /// Operations on `pool`, maintenance on `maintenance`.
    pub(super) fn new(pool: Pool, maintenance: Pool, address: Address, metrics: Metrics) -> Self {
        Self { pool, maintenance, address, metrics }
    }

    /// Measures an operation, with its wait for a connection.
    async fn measured<T>(
        &self,
        name: &'static str,
        run: impl Future<Output = Result<T, LedgerError>>,
    ) -> Result<T, LedgerError> {
        let mut measured = self.metrics.ledger_operation(name);
        let done = run.await;
        measured.finish(done.as_ref().err().map(LedgerError::label));
        done
    }

    /// Runs one operation on a connection of its own, within the operation limit. Metrics record it under
    /// `name`, as every operation.
    pub(super) async fn with<T>(
        &self,
        name: &'static str,
        operation: impl AsyncFnOnce(Object) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let run = async { operation(self.pool.get().await?).await };
        self.measured(name, within(OPERATION_LIMIT, run)).await
    }

    /// Runs an operation. If Postgres refuses a statement that was prepared before (the type of a column changed, or
    /// DEALLOCATE removed it), runs it again with new prepared statements; the first attempt changed nothing.
    pub(super) async fn with_prepared<T, F>(
        &self,
        name: &'static str,
        operation: impl Fn(Object) -> F,
    ) -> Result<T, LedgerError>
    where
        F: Future<Output = Result<T, LedgerError>>,
    {
        let done = self.with(name, async |client| operation(client).await).await;
        if done.as_ref().err().is_some_and(is_stale) {
            self.pool.manager().statement_caches.clear();
            return self.with(name, async |client| operation(client).await).await;
        }
        done
    }

    /// Runs an operation of maintenance on a connection of its own. Dropping the future cancels it in Postgres.
    pub(super) async fn with_maintenance<T>(
        &self,
        name: &'static str,
        operation: impl AsyncFnOnce(Object) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let run = async {
            let _close = CloseIdle(self.maintenance.clone());
            operation(self.maintenance_connection().await?).await
        };
        self.measured(name, within(MAINTENANCE_LIMIT, run)).await
    }

    async fn maintenance_connection(&self) -> Result<Object, LedgerError> {
        within(OPERATION_LIMIT, async { Ok(self.maintenance.get().await?) }).await
    }

    /// Runs one operation on a connection that leaves its pool and that the result may keep.
    pub(super) async fn with_detached<T>(
        &self,
        name: &'static str,
        operation: impl AsyncFnOnce(ClientWrapper) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let run = async { operation(Object::take(self.maintenance.get().await?)).await };
        self.measured(name, within(OPERATION_LIMIT, run)).await
    }

    /// A stream of rows, for reads without a bound. Dropping it cancels the read in Postgres.
    pub(super) async fn rows(
        &self,
        name: &'static str,
        sql: &str,
        args: &[&(dyn ToSql + Sync)],
    ) -> Result<impl Stream<Item = Result<Row, LedgerError>> + use<>, LedgerError> {
        let end = Instant::now() + MAINTENANCE_LIMIT;
        let mut measured = self.metrics.ledger_operation(name);
        let begin = async {
            // In the order in which they are dropped.
            let held = (self.maintenance_connection().await?, CloseIdle(self.maintenance.clone()));
            let rows = held.0.query_raw(sql, args.iter().copied()).await?;
            Ok((Box::pin(rows), held))
        };
        let begun = within(ROW_LIMIT, begin).await;
        let (rows, held) = begun.inspect_err(|error| measured.finish(Some(error.label())))?;
        let state = (rows, held, measured);
        let rows = stream::try_unfold(state, move |(mut rows, held, mut measured)| async move {
            let limit = ROW_LIMIT.min(end.saturating_duration_since(Instant::now()));
            let row = within(limit, async { Ok(rows.try_next().await?) }).await;
            if !matches!(row, Ok(Some(_))) {
                measured.finish(row.as_ref().err().map(LedgerError::label));
            }
            Ok(row?.map(|row| (row, (rows, held, measured))))
        });
        Ok(Box::pin(rows))
    }

    /// Whether Postgres answers on a new connection, which works while all pooled ones are in use.
    pub async fn probe(&self) -> Result<(), LedgerError> {
        let (client, connection) = self.address.open().await?;
        let answered = async move { client.simple_query("SELECT 1").await.map(drop) };
        // The connection ends with its client.
        let (answered, ended) = tokio::join!(answered, connection);
        answered.and(ended)?;
        Ok(())
    }

    /// Whether Postgres answers.
    pub async fn ping(&self) -> Result<(), LedgerError> {
        self.with("ping", async move |client| {
            client.simple_query("SELECT 1").await?;
            Ok(())
        })
        .await
    }
}

/// The connections of a pool, now.
pub(super) fn reading(pool: &Pool) -> PoolReading {
    let status = pool.status();
    PoolReading {
        max: status.max_size,
        used: status.size.saturating_sub(status.available),
        idle: status.available,
        pending_requests: status.waiting,
    }
}

/// Whether Postgres refused a statement because it was prepared before a change.
fn is_stale(error: &LedgerError) -> bool {
    let LedgerError::Unlisted { source: Cause::Postgres(error), .. } = error else { return false };
    let stale = [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_SQL_STATEMENT_NAME];
    error.code().is_some_and(|code| stale.contains(code))
}

/// The last millisecond of the year 9999.
const TIME_MAX_MS: i64 = 253_402_300_799_999;

/// Milliseconds since 1970 as a timestamptz, limited to the years 1970 to 9999.
pub(super) fn timestamp(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms.clamp(0, TIME_MAX_MS).cast_unsigned())
}

/// A timestamptz as milliseconds since 1970.
pub(super) fn milliseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A seq, which has 36 bits, as a bigint.
pub(super) fn to_bigint(seq: u64) -> i64 {
    debug_assert!(seq < 1 << 36, "seq {seq}");
    seq.cast_signed()
}

/// The result of `count`, or of another expression that is never negative.
pub(super) fn from_count(count: i64) -> u64 {
    debug_assert!(count >= 0, "count {count}");
    count.cast_unsigned()
}
