//! Connects Redis and Postgres, and checks that they are the ones that the settings mean.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use redis::{
    ConnectionInfo, RedisResult,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use super::{
    redis_nodes,
    tls_files::{postgres_address, redis_tls},
};
use crate::{
    ack::{AckSettings, AckStores, Acks},
    audit::Auditor,
    config::{Config, RedisUrl},
    dead_letters::DeadLetters,
    domain::{Partition, PartitionCount},
    ledger::{
        Address, Deployment, Ledger, LedgerError, PartitionStatus, PoolSizes, Pools, check_pooler,
        check_schema,
    },
    lifecycle::Lifecycle,
    recovery::Recovery,
    redis::{Connection, NodeTls, Partitions, Source, Topology, TopologyError, retry_at_start},
    stock::{Stock, StockSettings},
    stream::Streams,
    tasks::Tasks,
    telemetry::Metrics,
    tls::{Reload, Reloaded},
};

/// How long Redis may take to answer a command.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The same for commands that block their connection, which wait half a second by themselves.
const BLOCKING_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long the kernel keeps a connection whose peer acknowledges nothing. Its default is a quarter of an hour, for
/// which a broken connection would be kept.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(10);
/// TCP keepalive: when a silent connection is probed first, and how often then.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a start waits for a Postgres that refuses connections or a Redis without a known master, and how often it
/// tries.
const START_LIMIT: Duration = Duration::from_secs(10);
const START_INTERVAL: Duration = Duration::from_millis(250);

/// Both stores, and the modules that work on them. Calls fail when a store does not answer.
#[derive(Clone)]
#[expect(missing_docs, reason = "the types describe the others")]
pub struct Stores {
    /// With the pool of operators.
    pub ledger: Ledger,
    pub pools: Pools,
    pub stock: Stock,
    pub lifecycle: Lifecycle,
    pub streams: Streams,
    /// With the pool of operators.
    pub dead_letters: DeadLetters,
    /// Its clones make one audit at a time.
    pub auditor: Auditor,
    pub deployment: Deployment,
    pub metrics: Metrics,
    pub(super) tasks: Tasks,
    redis_tls: Arc<Reloaded<NodeTls>>,
    topology: Topology,
    address: Address,
}

impl Stores {
    /// Connects to both, and starts the tasks that collect commands for Redis. Fails also when one is not the store that
    /// the settings mean.
    pub async fn connect(config: &Config) -> anyhow::Result<Self> {
        let metrics = Metrics::of(config)?;
        let address = postgres_address(config)?;
        let pools = pools_at(&address, config, &metrics).await?;
        let ledger = pools.operators.clone();
        retry_refused(async || check_schema(&ledger).await).await?;
        let deployment = retry_refused(async || checked_deployment(&ledger, config).await).await?;
        let (redis_tls, tasks) = (redis_tls(config)?, Tasks::default());
        let count = deployment.partitions;
        let (topology, partitions) = async {
            let topology = topology(config, redis_tls.clone(), count, metrics.clone()).await?;
            let connections = topology.connect("commands", ANSWER_TIMEOUT).await?;
            let (prefix, id) = (&config.key_prefix, deployment.id);
            let partitions = Partitions::new(topology.clone(), connections, prefix, id);
            anyhow::Ok((topology, partitions))
        }
        .await
        .context("cannot use Redis (redis_url)")?;
        for (_, version) in redis_nodes::versions(&partitions).await? {
            check_redis_version(&version, partitions.is_cluster())?;
        }
        tasks.spawn("Redis topology", topology.watch());
        let settings = StockSettings {
            idempotency_window_ms: config.idempotency_window_ms,
            backlog_max_entries: config.backlog_max_entries,
        };
        let stock = Stock::start(partitions.clone(), settings, metrics.clone(), &tasks);
        let streams = Streams::new(partitions.clone());
        Ok(Self {
            lifecycle: Lifecycle::new(partitions, config.idempotency_window_ms),
            dead_letters: DeadLetters::new(streams.clone(), stock.clone(), ledger.clone()),
            auditor: Auditor::new(streams.clone(), ledger.clone(), config.idempotency_window_ms),
            ledger,
            pools,
            stock,
            streams,
            deployment,
            metrics,
            tasks,
            redis_tls,
            topology,
            address,
        })
    }

    /// The files of TLS, which are read again while the service runs.
    pub(super) fn tls_files(&self) -> [Arc<dyn Reload>; 2] {
        [self.redis_tls.clone(), self.address.files()]
    }

    /// The waits for acknowledgements, for a process that answers calls.
    pub async fn acks(&self, config: &Config) -> anyhow::Result<Acks> {
        let settings = AckSettings { default: config.ack, replicas: config.ack_replicas };
        let stores = AckStores {
            partitions: self.stock.partitions().clone(),
            blocking: blocking(|timeout| self.topology.connect("waits for replicas", timeout))
                .await?,
            ledger: self.pools.workers.clone(),
            metrics: self.metrics.clone(),
        };
        Ok(Acks::start(stores, settings, &self.tasks))
    }

    /// The part that opens and rebuilds partitions.
    pub fn recovery(&self) -> Recovery {
        let (ledger, lifecycle) = (self.ledger.clone(), self.lifecycle.clone());
        let (streams, metrics) = (self.streams.clone(), self.metrics.clone());
        Recovery::new(ledger, lifecycle, streams, self.deployment, metrics)
    }

    /// A connection of its own for the blocking reader of a partition.
    pub async fn reader(&self, partition: Partition) -> anyhow::Result<Connection> {
        let connect = |timeout| self.topology.connect_to(partition, "reader of orders", timeout);
        blocking(connect).await
    }

    /// Takes each partition's epoch from the ledger, without opening any: for commands that run while a service runs.
    pub async fn load_epochs(&self) -> anyhow::Result<()> {
        for row in self.ledger.partitions(self.deployment.partitions).await? {
            let open = row.status == PartitionStatus::Open;
            self.stock.partitions().set_epoch(row.partition, open.then_some(row.epoch));
        }
        Ok(())
    }
}

/// Connects what blocking commands use.
async fn blocking<T, F: Future<Output = RedisResult<T>>>(
    connect: impl Fn(Duration) -> F,
) -> anyhow::Result<T> {
    retry_at_start(|| connect(BLOCKING_TIMEOUT)).await.context("cannot connect to Redis")
}

/// Where the partitions are. Tries again, for some seconds, while no node answers or a slot has no node: a failover may
/// be under way.
pub(super) async fn topology(
    config: &Config,
    tls: Arc<Reloaded<NodeTls>>,
    count: PartitionCount,
    metrics: Metrics,
) -> Result<Topology, TopologyError> {
    let info = |info: &ConnectionInfo| with_connection_settings(info.clone());
    let all = |infos: &[ConnectionInfo]| infos.iter().map(info).collect();
    let source = match &config.redis_url {
        RedisUrl::Server(server) => Source::Server(info(server)),
        RedisUrl::Cluster(nodes) => Source::Cluster(all(nodes)),
        RedisUrl::Sentinel { sentinels, master, login } => Source::Sentinel {
            sentinels: all(sentinels),
            master: master.clone(),
            login: info(login),
        },
    };
    let end = Instant::now() + START_LIMIT;
    loop {
        let (source, tls, metrics) = (source.clone(), tls.clone(), metrics.clone());
        match Topology::discover(source, tls, count, metrics).await {
            Err(error) if error.is_transient() && Instant::now() < end => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the masters of Redis are not known at the start: retrying");
                tokio::time::sleep(START_INTERVAL).await;
            }
            result => return result,
        }
    }
}

/// The pools of the settings, without any connection yet.
pub(super) fn unconnected_pools(
    address: &Address,
    config: &Config,
    metrics: &Metrics,
) -> anyhow::Result<Pools> {
    let size = |connections: u32| usize::try_from(connections);
    let sizes = PoolSizes {
        workers: size(config.pool_workers)?,
        operators: size(config.pool_operators)?,
        lookups: size(config.pool_lookups)?,
        maintenance: size(config.pool_maintenance)?,
    };
    Pools::new(address, sizes, metrics)
}

/// The pools of the settings, after Postgres has answered and a pooler in between was found usable.
pub(crate) async fn pools(config: &Config, metrics: &Metrics) -> anyhow::Result<Pools> {
    pools_at(&postgres_address(config)?, config, metrics).await
}

async fn pools_at(address: &Address, config: &Config, metrics: &Metrics) -> anyhow::Result<Pools> {
    let pools = unconnected_pools(address, config, metrics)?;
    retry_refused(async || {
        pools.operators.ping().await.context("cannot use Postgres (postgres_url)")?;
        Ok(check_pooler(address).await?)
    })
    .await?;
    Ok(pools)
}

/// A development build takes the limit from the environment variable `YOINK_START_LIMIT_MS`, so that a test that frees
/// Postgres need not be faster than the limit.
fn start_limit() -> Duration {
    let set = std::env::var("YOINK_START_LIMIT_MS").ok().filter(|_| cfg!(debug_assertions));
    set.and_then(|text| text.parse().ok()).map_or(START_LIMIT, Duration::from_millis)
}

/// Tries again, for some seconds, while Postgres runs and refuses connections: it starts, stops or recovers, or all of
/// its connections are in use. Only for work that may be repeated.
pub(super) async fn retry_refused<T>(
    attempt: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    retry_while(refuses_connections, start_limit(), attempt).await
}

/// Tries again while `is_transient` holds for the error, until the limit.
async fn retry_while<T>(
    is_transient: impl Fn(&anyhow::Error) -> bool,
    limit: Duration,
    attempt: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + limit;
    loop {
        let refused = match attempt().await {
            Err(error) if is_transient(&error) && Instant::now() < end => error,
            result => return result,
        };
        let error: &dyn std::error::Error = refused.as_ref();
        tracing::warn!(error, "Postgres refuses connections at the start; trying again");
        tokio::time::sleep(START_INTERVAL).await;
    }
}

fn refuses_connections(error: &anyhow::Error) -> bool {
    let ledger = error.chain().find_map(|cause| cause.downcast_ref::<LedgerError>());
    ledger.is_some_and(LedgerError::refuses_connections)
}

/// The address of Redis with the settings of its connections.
pub(super) fn with_connection_settings(info: ConnectionInfo) -> ConnectionInfo {
    // The library's name is not sent: the user of Redis need not have the permission for that.
    let redis = info.redis_settings().clone().set_skip_set_lib_name();
    let info = info.set_redis_settings(redis);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    let tcp = tcp.set_user_timeout(UNACKNOWLEDGED_TIMEOUT);
    // A Unix socket has none of these settings and needs none: the kernel reports at once that its peer has ended.
    info.set_tcp_settings(tcp)
}

/// The deployment of the ledger, which must have as many partitions as the settings. The first call of all creates it.
pub(crate) async fn checked_deployment(
    ledger: &Ledger,
    config: &Config,
) -> anyhow::Result<Deployment> {
    let deployment = ledger.create_deployment(config.partitions).await?;
    if deployment.partitions != config.partitions {
        bail!(other_partitions(deployment.partitions, config.partitions));
    }
    Ok(deployment)
}

/// The message for a database that has another number of partitions than the settings.
pub(super) fn other_partitions(found: PartitionCount, config: PartitionCount) -> String {
    let (found, config) = (found.get(), config.get());
    format!(
        "the database has {found} partitions, and the setting partitions is {config}: set partitions = {found} \
         (the number of partitions is fixed when the database is first initialised)"
    )
}

/// Refuses a Redis without exclusive ranges and `XPENDING … IDLE`, which 6.2 introduced, and nodes of a cluster that are
/// older than 7.0, whose answers to CLUSTER SLOTS and MOVED are not those that this program reads.
pub(super) fn check_redis_version(version: &str, is_cluster: bool) -> anyhow::Result<()> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if found < (6, 2) {
        bail!("Redis has version {version}; 6.2 or newer is needed");
    }
    if is_cluster && found < (7, 0) {
        bail!(
            "a node of the Redis Cluster has version {version}; 7.0 or newer is needed for a cluster"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Fails this many times with this error; returns the result and the number of attempts.
    async fn attempts(
        limit: Duration,
        failures: u32,
        error: &'static str,
    ) -> (Result<(), String>, u32) {
        let times = Cell::new(0);
        let is_transient = |error: &anyhow::Error| error.to_string() == "refused";
        let answer = retry_while(is_transient, limit, async || {
            times.set(times.get() + 1);
            if times.get() > failures { Ok(()) } else { Err(anyhow::anyhow!(error)) }
        });
        (answer.await.map_err(|error| error.to_string()), times.get())
    }

    #[tokio::test]
    async fn refused_connection_is_tried_again_until_it_is_accepted_or_the_limit_has_passed() {
        let long = Duration::from_secs(3600);
        assert_eq!(attempts(long, 2, "refused").await, (Ok(()), 3));
        assert_eq!(
            attempts(long, 2, "wrong password").await,
            (Err("wrong password".to_owned()), 1)
        );
        assert_eq!(attempts(Duration::ZERO, 2, "refused").await, (Err("refused".to_owned()), 1));
    }
}
