//! Redis and Postgres, connected and found to be the ones we mean.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use redis::{
    Client,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};
use tokio_util::task::TaskTracker;

use crate::{
    ack::{AckSettings, Acks},
    audit::Auditor,
    config::Config,
    dead_letters::DeadLetters,
    fence::{Connection, Partitions, retry_at_start},
    keys::Keys,
    ledger::{
        Deployment, Established, Ledger, LedgerError, PartitionStatus, PoolSizes, Pools,
        check_pooler, check_schema,
    },
    recovery::Recovery,
    stock::{Stock, StockSettings},
    stream::Streams,
    telemetry::Metrics,
};

/// How long Redis may take to answer.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// As much for what may block its connection, which waits half a second by itself.
const BLOCKING_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long the kernel keeps a connection whose other end does not take what was sent: no such end comes back, and
/// a dropped connection must not be kept for the quarter of an hour that is its default.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// Whether the other end is there is asked after so much silence, and so often.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a start waits for a Postgres that takes no connection, and how often it asks.
const START_LIMIT: Duration = Duration::from_secs(10);
const START_INTERVAL: Duration = Duration::from_millis(250);

/// Both stores and what works on them.
#[derive(Clone)]
pub struct Stores {
    /// The ledger, as operators use it.
    pub ledger: Ledger,
    /// The ledger, by kind of caller.
    pub pools: Pools,
    /// The stock.
    pub stock: Stock,
    /// The streams.
    pub streams: Streams,
    /// The dead_letters.
    pub dead_letters: DeadLetters,
    /// The deployment.
    pub deployment: Deployment,
    client: Client,
    auditor: Auditor,
}

impl Stores {
    /// Connects to both; the batchers run on `tasks`.
    ///
    /// # Errors
    ///
    /// When one of them is away, or is not the one that the settings mean.
    pub async fn connect(config: &Config, tasks: &TaskTracker) -> anyhow::Result<Self> {
        let pools = pools(config).await?;
        let ledger = pools.operators.clone();
        retry_refused(async || Ok(check_schema(&ledger).await?)).await?;
        let established = retry_refused(async || Ok(ledger.establish(config.partitions).await?));
        let deployment = match established.await? {
            Established::Matches(deployment) => deployment,
            Established::Differs(found) => bail!(
                "this database was initialised with {} partitions, the settings say {}: \
                 the number cannot be changed, set partitions = {}",
                found.partitions.get(),
                config.partitions.get(),
                found.partitions.get()
            ),
        };
        let (client, metrics) = (client(config)?, Metrics::new()?);
        let connection = Connection::open(&client, "commands", ANSWER_TIMEOUT, metrics.clone());
        let connection = connection.await.context("cannot use Redis (redis_url)")?;
        check_redis_version(&redis_version(&connection).await?)?;
        let keys = Keys::new(&config.key_prefix);
        let partitions =
            Partitions::new(connection, keys, (deployment.id, deployment.partitions), metrics);
        let settings = StockSettings {
            idempotency_window_ms: config.idempotency_window_ms,
            backlog_max_entries: config.backlog_max_entries,
        };
        let stock = Stock::start(partitions.clone(), settings, tasks);
        let streams = Streams::new(partitions);
        let dead_letters = DeadLetters::new(streams.clone(), stock.clone(), ledger.clone());
        let auditor = Auditor::new(streams.clone(), ledger.clone(), config.idempotency_window_ms);
        Ok(Self { ledger, pools, stock, streams, dead_letters, deployment, client, auditor })
    }

    /// The audit of both: one at a time, whoever asks for it.
    pub fn auditor(&self) -> Auditor {
        self.auditor.clone()
    }

    /// The dead letters of the workers.
    pub fn worker_dead_letters(&self) -> DeadLetters {
        DeadLetters::new(self.streams.clone(), self.stock.clone(), self.pools.workers.clone())
    }

    /// When accepted reservations are answered, for a process that takes them.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn acks(&self, config: &Config) -> anyhow::Result<Acks> {
        let settings = AckSettings { default: config.ack, replicas: config.ack_replicas };
        let services = (self.stock.partitions().clone(), self.pools.workers.clone());
        Ok(Acks::start(
            services,
            self.blocking("waits for replicas").await?,
            settings,
            &TaskTracker::new(),
        ))
    }

    /// What keeps the partitions' life, for a process that takes orders under this name, or takes none.
    pub fn recovery(&self, gateway: Option<String>) -> Recovery {
        let services = (self.ledger.clone(), self.stock.clone(), self.streams.clone());
        Recovery::new(services, self.deployment, gateway)
    }

    /// A connection for one blocking reader, its own.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn reader(&self) -> anyhow::Result<Connection> {
        self.blocking("reader of orders").await
    }

    async fn blocking(&self, name: &'static str) -> anyhow::Result<Connection> {
        let metrics = self.stock.partitions().metrics().clone();
        let open = || Connection::open(&self.client, name, BLOCKING_TIMEOUT, metrics.clone());
        retry_at_start(open).await.context("cannot connect to Redis")
    }

    /// Believes the ledger of every partition, without opening any: for commands beside a service.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer.
    pub async fn believe_ledger(&self) -> anyhow::Result<()> {
        for row in self.ledger.partitions(self.deployment.partitions).await? {
            let open = row.status == PartitionStatus::Open;
            self.stock.partitions().set_epoch(row.partition, open.then_some(row.epoch));
        }
        Ok(())
    }
}

/// The pools of the settings; nothing is connected yet.
pub(super) fn unconnected_pools(config: &Config) -> anyhow::Result<Pools> {
    let size = |connections: u32| usize::try_from(connections);
    let sizes = PoolSizes {
        workers: size(config.pool_workers)?,
        operators: size(config.pool_operators)?,
        lookups: size(config.pool_lookups)?,
        maintenance: size(config.pool_maintenance)?,
    };
    Pools::new(config.postgres.clone(), sizes)
}

/// The ledger of the settings, found to answer.
///
/// # Errors
///
/// When Postgres is away, or a pooler in between cannot be used.
pub(crate) async fn pools(config: &Config) -> anyhow::Result<Pools> {
    let pools = unconnected_pools(config)?;
    retry_refused(async || {
        pools.operators.ping().await.context("cannot use Postgres (postgres_url)")?;
        Ok(check_pooler(&config.postgres).await?)
    })
    .await?;
    Ok(pools)
}

/// A development build waits as many milliseconds as the environment variable `YOINK_START_LIMIT_MS` says: a test that
/// frees Postgres need not be faster than the limit.
#[cfg(debug_assertions)]
fn start_limit() -> Duration {
    let written = std::env::var("YOINK_START_LIMIT_MS").ok().and_then(|text| text.parse().ok());
    written.map_or(START_LIMIT, Duration::from_millis)
}

#[cfg(not(debug_assertions))]
fn start_limit() -> Duration {
    START_LIMIT
}

/// Asks again, for some seconds, where Postgres is there and takes no connection: it starts, stops or recovers, or all its
/// connections are in use. Only for what may be repeated.
///
/// # Errors
///
/// When Postgres cannot be reached, or does not take a connection in this time.
pub(super) async fn retry_refused<T>(
    ask: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    retry_while(refuses_connections, start_limit(), ask).await
}

/// Asks again while the error is of this kind, and the limit has not passed.
async fn retry_while<T>(
    is_passing: impl Fn(&anyhow::Error) -> bool,
    limit: Duration,
    ask: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + limit;
    loop {
        let refused = match ask().await {
            Err(error) if is_passing(&error) && Instant::now() < end => error,
            answered => return answered,
        };
        let error: &dyn std::error::Error = refused.as_ref();
        tracing::warn!(error, "Postgres takes no connection at the start; asking again");
        tokio::time::sleep(START_INTERVAL).await;
    }
}

fn refuses_connections(error: &anyhow::Error) -> bool {
    let ledger = error.chain().find_map(|cause| cause.downcast_ref::<LedgerError>());
    ledger.is_some_and(LedgerError::refuses_connections)
}

/// A client of the Redis of the settings; it has not connected yet.
pub(super) fn client(config: &Config) -> anyhow::Result<Client> {
    // A Unix socket has none of these, and needs none: the kernel knows at once when its other end is gone.
    Ok(Client::open(config.redis.clone().set_tcp_settings(tcp_settings()))?)
}

fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(keepalive)
        .set_user_timeout(UNACKNOWLEDGED)
}

/// The version that Redis tells.
pub(super) async fn redis_version(connection: &Connection) -> anyhow::Result<String> {
    let info: String = retry_at_start(|| async {
        redis::cmd("INFO").arg("server").query_async(&mut connection.clone()).await
    })
    .await?;
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    Ok(version.context("Redis does not tell its version")?.trim().to_owned())
}

/// Exclusive ranges and `XPENDING … IDLE` came with 6.2.
pub(super) fn check_redis_version(version: &str) -> anyhow::Result<()> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    if (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < (6, 2) {
        bail!("Redis is of version {version}; 6.2 or newer is needed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Fails so often with this error; returns how it ended and how often it was asked.
    async fn asked(
        limit: Duration,
        failures: u32,
        error: &'static str,
    ) -> (Result<(), String>, u32) {
        let times = Cell::new(0);
        let is_passing = |error: &anyhow::Error| error.to_string() == "refused";
        let answer = retry_while(is_passing, limit, async || {
            times.set(times.get() + 1);
            if times.get() > failures { Ok(()) } else { Err(anyhow::anyhow!(error)) }
        });
        (answer.await.map_err(|error| error.to_string()), times.get())
    }

    #[tokio::test]
    async fn refused_connection_is_asked_for_again_until_it_is_given_or_the_limit_has_passed() {
        let long = Duration::from_secs(3600);
        assert_eq!(asked(long, 2, "refused").await, (Ok(()), 3));
        assert_eq!(asked(long, 2, "wrong password").await, (Err("wrong password".to_owned()), 1));
        assert_eq!(asked(Duration::ZERO, 2, "refused").await, (Err("refused".to_owned()), 1));
    }
}
