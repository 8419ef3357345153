//! `yoink config check --connect`: what a start would find in both stores, without changing anything.

use std::collections::BTreeMap;

use anyhow::Context as _;
use uuid::Uuid;

use super::{
    connect::{ANSWER_TIMEOUT, check_redis_version, other_partitions, topology, unconnected_pools},
    permissions::{ledger_refusal, redis_refusal},
    redis_nodes,
    tls_files::{postgres_address, redis_tls},
};
use crate::{
    ack::AckSettings,
    config::Config,
    durability::{Assessment, RedisNodes, assess_postgres},
    ledger::{Ledger, PoolerError, check_pooler, schema_versions},
    lifecycle::Lifecycle,
    redis::Partitions,
    telemetry::Metrics,
};

/// What was found in both stores.
#[derive(Debug, Default)]
pub(crate) struct Inspection {
    /// What each store is, one line per fact.
    pub(crate) found: Vec<String>,
    /// What a start would log as a warning.
    pub(crate) warnings: Vec<String>,
    /// Why a start would be refused.
    pub(crate) refusals: Vec<String>,
    /// What could not be connected or read.
    pub(crate) failures: Vec<String>,
}

/// Connects to both stores and assesses them as a start would.
pub(crate) async fn inspect(config: &Config) -> Inspection {
    let mut inspection = Inspection::default();
    let this = &mut inspection;
    let redis = inspect_redis(config, this).await.context("Redis (redis_url)");
    let redis = redis.map_err(|error| this.failures.push(format!("{error:#}")));
    let ledger = inspect_ledger(config, this).await.context("Postgres (postgres_url)");
    let ledger = ledger.map_err(|error| this.failures.push(format!("{error:#}")));
    if let (Ok(nodes), Ok(ledger)) = (redis, ledger) {
        let available = redis_nodes::available_acks(&nodes, |it| it.configured_mode, &ledger);
        let settings = AckSettings { default: config.ack, replicas: config.ack_replicas };
        let unmet = settings.unmet(&available);
        this.refusals.extend(unmet.by_all);
        this.warnings.extend(unmet.by_some);
    }
    inspection
}

async fn inspect_redis(config: &Config, this: &mut Inspection) -> anyhow::Result<RedisNodes> {
    let (tls, count) = (redis_tls(config)?, config.partitions);
    let topology = topology(config, tls, count, Metrics::new()?).await?;
    let connections = topology.connect("config check", ANSWER_TIMEOUT).await?;
    let partitions = Partitions::new(topology, connections, &config.key_prefix, Uuid::nil());
    let versions: BTreeMap<_, _> = redis_nodes::versions(&partitions).await?.into_iter().collect();
    let states = redis_nodes::states(&partitions).await?;
    let mut nodes = RedisNodes::default();
    let masters = partitions.masters();
    nodes.update(masters.iter().map(|(name, _)| name.as_str()), &states);
    for (name, state) in &states {
        let (mode, replicas) = (nodes.mode(name), state.replicas);
        let at = if name.is_empty() { String::new() } else { format!(" at {name}") };
        let version = versions.get(name).map_or("(unknown version)", String::as_str);
        this.found.push(format!(
            "Redis {version}{at}: role {}, {replicas} replicas caught up, durability {mode}",
            state.role()
        ));
    }
    let is_cluster = partitions.is_cluster();
    let old = versions.values();
    let old = old.filter_map(|version| check_redis_version(version, is_cluster).err());
    this.refusals.extend(old.map(|error| error.to_string()));
    let assessed = nodes.assessment();
    this.refusals.extend(assessed.unusable.iter().chain(&assessed.refusals).cloned());
    this.warnings.extend(assessed.outages.iter().chain(&assessed.partial_outages).cloned());
    this.warnings.extend(assessed.warnings.iter().map(|warning| (*warning).to_owned()));
    this.warnings.extend(redis_nodes::warnings(&partitions).await?);
    let lifecycle = Lifecycle::new(partitions, config.idempotency_window_ms);
    this.refusals.extend(redis_refusal(&lifecycle).await?.map(|refused| refused.to_string()));
    Ok(nodes)
}

async fn inspect_ledger(config: &Config, this: &mut Inspection) -> anyhow::Result<Assessment> {
    let address = postgres_address(config)?;
    let ledger = unconnected_pools(&address, config, &Metrics::new()?)?.operators;
    let settings = ledger.settings().await;
    // Also if the login failed: a password may have been sent.
    this.warnings.extend(address.downgrade());
    let settings = settings?;
    let assessed = assess_postgres(&settings);
    let (major, minor) = (settings.version / 10_000, settings.version % 10_000);
    let role = if settings.read_only { "read-only, or a standby" } else { "accepts writes" };
    let versions = schema_versions(&ledger).await?;
    let schema = match versions.found {
        0 => "no schema".to_owned(),
        found => format!("schema version {found}"),
    };
    this.found.push(format!(
        "Postgres {major}.{minor}: {role}, durability {}, {schema} (this program's: {})",
        assessed.mode, versions.program
    ));
    this.refusals.extend(assessed.refusals.iter().cloned());
    this.warnings.extend(assessed.warnings.iter().map(|warning| (*warning).to_owned()));
    match check_pooler(&address).await {
        Ok(()) => this.found.push(
            "Connections to Postgres keep their backend: no pooler, or one in session mode"
                .to_owned(),
        ),
        Err(PoolerError::Ledger(error)) => return Err(error.into()),
        Err(error @ PoolerError::TransactionMode) => this.refusals.push(error.to_string()),
    }
    match versions.check() {
        Err(error) => this.refusals.push(error.to_string()),
        Ok(()) => {
            this.refusals.extend(ledger_refusal(&ledger).await?);
            inspect_deployment(&ledger, config, this).await?;
        }
    }
    Ok(assessed)
}

async fn inspect_deployment(
    ledger: &Ledger,
    config: &Config,
    this: &mut Inspection,
) -> anyhow::Result<()> {
    match ledger.deployment().await? {
        None => {
            this.found.push("The database is not initialised: the first start does that".to_owned())
        }
        Some(deployment) if deployment.partitions == config.partitions => {}
        Some(deployment) => {
            this.refusals.push(other_partitions(deployment.partitions, config.partitions));
        }
    }
    Ok(())
}
