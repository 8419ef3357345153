//! Health depends on Redis: while Redis does not answer, cannot be sold from, or has settings with which it may lose
//! orders, nothing is sold. Postgres may be unavailable for a while.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use redis::{RedisError, RedisResult};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{Role, Stores, connect::retry_refused, redis_nodes};
use crate::{
    ack::Acks,
    domain::Partition,
    durability::{
        Assessment, POSTGRES_MODES, REDIS_MODES, RedisNodes, RedisState, assess_postgres,
    },
    grpc,
    lifecycle::NotPermitted,
    redis::{Commands, RedisCallError, retry_at_start},
    tasks::tick,
};

/// How often the state and the settings of Redis are read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How often what Redis permits to this program is read.
const PERMISSIONS_INTERVAL: Duration = Duration::from_secs(5);
/// How often the settings of Postgres are read.
const POSTGRES_INTERVAL: Duration = Duration::from_secs(5);
/// How long one read may take, so that a slow store does not delay the check of the other for long.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

const UNAVAILABLE: &str = "Redis is unavailable";

/// The assessments of both stores, and when Postgres was assessed.
#[derive(Debug, Clone)]
struct Assessed {
    redis: Assessment,
    redis_nodes: RedisNodes,
    /// What masters of Redis do not permit, by their names, and when that was read.
    not_permitted: BTreeMap<String, NotPermitted>,
    permissions_at: Instant,
    postgres: Assessment,
    postgres_at: Instant,
}

/// Checks both stores; clones share the reasons why nothing can be sold.
#[derive(Clone)]
pub(super) struct StoreMonitor {
    stores: Stores,
    role: Role,
    /// Where calls are answered.
    acks: Option<Acks>,
    reasons: Arc<ArcSwap<Vec<String>>>,
    partial_outages: Arc<ArcSwap<Vec<String>>>,
    /// Kept by the clone that runs.
    assessed: Assessed,
}

impl StoreMonitor {
    /// Assesses both stores' settings.
    pub(super) async fn start(
        stores: Stores,
        role: Role,
        acks: Option<Acks>,
    ) -> anyhow::Result<Self> {
        let partitions = stores.stock.partitions();
        let states = retry_at_start(|| redis_nodes::states(partitions)).await;
        let states = states.context("cannot read Redis's settings")?;
        let settings = retry_refused(async || Ok(stores.ledger.settings().await?)).await?;
        let mut redis_nodes = RedisNodes::default();
        let masters = partitions.masters();
        redis_nodes.update(masters.iter().map(|(name, _)| name.as_str()), &states);
        let assessed = Assessed {
            redis: redis_nodes.assessment(),
            redis_nodes,
            // The start checks it next.
            not_permitted: BTreeMap::new(),
            permissions_at: Instant::now(),
            postgres: assess_postgres(&settings),
            postgres_at: Instant::now(),
        };
        let (redis, postgres) = (&assessed.redis, &assessed.postgres);
        let mut refusals = [&redis.unusable[..], &redis.refusals, &postgres.refusals].concat();
        // An append-only file that is not complete yet refuses no start: it will be.
        let available =
            redis_nodes::available_acks(&assessed.redis_nodes, |it| it.configured_mode, postgres);
        refusals.extend(acks.as_ref().and_then(|acks| acks.set_available(available).by_all));
        if !refusals.is_empty() {
            bail!("{}", refusals.join("; "));
        }
        let warnings = retry_at_start(|| redis_nodes::warnings(partitions)).await;
        for warning in warnings.context("cannot read Redis's settings")? {
            tracing::warn!(store = "redis", "{warning}");
        }
        tracing::info!(redis = redis.mode, postgres = postgres.mode, "durability of the stores");
        let (reasons, partial_outages) = <(Arc<_>, Arc<_>)>::default();
        let this = Self { stores, role, acks, reasons, partial_outages, assessed };
        this.publish("redis", &REDIS_MODES, &this.assessed.redis);
        this.publish("postgres", &POSTGRES_MODES, &this.assessed.postgres);
        Ok(this)
    }

    /// Why nothing can be sold; empty while both stores are healthy.
    pub(super) fn reasons(&self) -> Vec<String> {
        self.reasons.load().to_vec()
    }

    /// Why nothing can be sold from some of several masters, while others are sold from.
    pub(super) fn partial_outages(&self) -> Vec<String> {
        self.partial_outages.load().to_vec()
    }

    /// Logs an assessment that is new, and sets its metrics.
    fn publish(&self, store: &'static str, modes: &[&'static str], assessed: &Assessment) {
        for refusal in &assessed.refusals {
            tracing::error!(store, "{refusal}");
        }
        for warning in &assessed.warnings {
            tracing::warn!(store, mode = assessed.mode, "{warning}");
        }
        for mode in modes {
            self.stores.metrics.set_durability(store, mode, assessed.mode == *mode);
        }
    }

    /// Checks both stores until stopped, and reports each change of health. A process that shuts down stays NOT_SERVING.
    pub(super) async fn run(
        mut self,
        reporter: HealthReporter,
        shutdown: CancellationToken,
        stop: CancellationToken,
    ) {
        let mut was_healthy = self.reasons().is_empty();
        while tick(POLL_INTERVAL, &stop).await {
            self.check().await;
            let reasons = self.reasons();
            let healthy = reasons.is_empty();
            if healthy != was_healthy {
                if shutdown.is_cancelled() {
                    tracing::debug!(healthy, "health changed; this process shuts down");
                } else if healthy {
                    tracing::warn!("gRPC health is SERVING again");
                } else {
                    tracing::warn!("gRPC health is NOT_SERVING: {}", reasons.join("; "));
                }
                report(&reporter, self.role, healthy && !shutdown.is_cancelled()).await;
                if shutdown.is_cancelled() {
                    // It may have begun meanwhile.
                    report(&reporter, self.role, false).await;
                }
                was_healthy = healthy;
            }
        }
    }

    /// Checks both stores, and keeps every reason why nothing can be sold.
    pub(super) async fn check(&mut self) {
        let mut reasons = Vec::new();
        let refusal = match self.stores.stock.partitions().ping().await {
            Ok(()) => None,
            // For example a Redis whose disk is full: INFO shows why.
            Err(RedisCallError::Unavailable { source, .. }) => {
                Some(server_message(&source).map_or(UNAVAILABLE.to_owned(), |message| {
                    format!("Redis refuses PING: {message}")
                }))
            }
            Err(error) => Some(error.to_string()),
        };
        if refusal.as_deref() != Some(UNAVAILABLE) {
            if self.assessed.permissions_at.elapsed() >= PERMISSIONS_INTERVAL {
                self.check_permissions().await;
                self.assessed.permissions_at = Instant::now();
            }
            reasons.extend(self.check_redis().await);
        }
        reasons.extend(refusal);
        reasons.extend(self.assessed.not_permitted.values().map(ToString::to_string));
        if self.assessed.postgres_at.elapsed() >= POSTGRES_INTERVAL {
            self.check_postgres().await;
            self.assessed.postgres_at = Instant::now();
        }
        let redis = &self.assessed.redis;
        for more in [&redis.unusable, &redis.refusals, &redis.outages] {
            reasons.extend_from_slice(more);
        }
        let mut partial_outages = redis.partial_outages.clone();
        let available = redis_nodes::available_acks(
            &self.assessed.redis_nodes,
            |it| it.mode,
            &self.assessed.postgres,
        );
        if let Some(unmet) = self.acks.as_ref().map(|acks| acks.set_available(available)) {
            reasons.extend(unmet.by_all);
            partial_outages.extend(unmet.by_some);
        }
        self.partial_outages.store(Arc::new(partial_outages));
        self.reasons.store(Arc::new(reasons));
    }

    /// Assesses Redis by its settings and by whether its scripts run. If it does not answer in time, the
    /// last assessment stays.
    async fn check_redis(&mut self) -> Option<String> {
        let partitions = self.stores.stock.partitions();
        let masters = partitions.masters();
        let states = match redis_nodes::on_each(partitions, read_in_time).await {
            Ok(states) => states,
            Err(error) => {
                return server_message(&error)
                    .map(|message| format!("Redis refuses INFO or CONFIG: {message}"));
            }
        };
        let names = masters.iter().map(|(name, _)| name.as_str());
        self.assessed.redis_nodes.update(names, &states);
        let redis = self.assessed.redis_nodes.assessment();
        if !redis.refusals.is_empty() {
            // `/readyz` names the reason before the first buyer is refused.
            self.reasons.store(Arc::new(redis.refusals.clone()));
        }
        // A script that is refused in its middle would leave what it had written before.
        let allowed = redis.refusals.is_empty() && self.assessed.not_permitted.is_empty();
        self.stores.stock.partitions().set_selling_allowed(allowed);
        let logged = |assessed: &Assessment| {
            (assessed.mode, assessed.refusals.clone(), assessed.warnings.clone())
        };
        if logged(&self.assessed.redis) != logged(&redis) {
            self.publish("redis", &REDIS_MODES, &redis);
        }
        self.assessed.redis = redis;
        timeout(ANSWER_TIMEOUT, self.check_partitions()).await.ok().flatten()
    }

    /// Why no partition can be sold from, if none can. The masters are checked at the same time; the check ends at the
    /// first partition that can be sold from.
    async fn check_partitions(&self) -> Option<String> {
        let masters = self.stores.stock.partitions().masters().into_iter();
        let checks = masters.map(|(_, partitions)| self.check_partitions_of_master(partitions));
        let (mut checks, mut reason) = (checks.collect::<FuturesUnordered<_>>(), None);
        while let Some(found) = checks.next().await {
            reason = Some(found?);
        }
        reason
    }

    /// Why no partition of one master can be sold from. A script checks this, as for a sale.
    async fn check_partitions_of_master(&self, partitions: Vec<Partition>) -> Option<String> {
        let mut reason = "no partition is open for sale".to_owned();
        for partition in partitions {
            match self.stores.lifecycle.probe(partition).await {
                Ok(()) => return None,
                Err(RedisCallError::Fenced(_)) => {}
                Err(RedisCallError::Unavailable { source, .. }) => match server_message(&source) {
                    Some(message) => {
                        reason = format!("Redis refuses the scripts of this program: {message}");
                    }
                    None => return Some(UNAVAILABLE.to_owned()),
                },
                Err(error @ RedisCallError::Malformed(_)) => reason = error.to_string(),
            }
        }
        Some(reason)
    }

    /// Checks what each master of Redis permits to this program. For one that does not answer in time, the last result
    /// stays.
    async fn check_permissions(&mut self) {
        let lifecycle = &self.stores.lifecycle;
        let masters = lifecycle.partitions().masters();
        let mut not_permitted = self.assessed.not_permitted.clone();
        not_permitted.retain(|known, _| masters.iter().any(|(name, _)| name == known));
        let checks = masters.into_iter().filter_map(|(name, partitions)| {
            let check = lifecycle.not_permitted_for(partitions.into_iter().next()?);
            Some(async move { (name, timeout(ANSWER_TIMEOUT, check).await) })
        });
        let checks: Vec<_> = checks.collect();
        for (name, checked) in join_all(checks).await {
            match checked {
                Ok(Ok(Some(refused))) => {
                    not_permitted.insert(name, refused);
                }
                Ok(Ok(None)) => {
                    not_permitted.remove(&name);
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
        for (name, refused) in &not_permitted {
            if self.assessed.not_permitted.get(name) != Some(refused) {
                tracing::error!(store = "redis", "{refused}; nothing is sold");
            }
        }
        if not_permitted.is_empty() && !self.assessed.not_permitted.is_empty() {
            tracing::warn!(store = "redis", "Redis permits every command again");
        }
        self.assessed.not_permitted = not_permitted;
    }

    async fn check_postgres(&mut self) {
        let Ok(Ok(settings)) = timeout(ANSWER_TIMEOUT, self.stores.ledger.settings()).await else {
            return;
        };
        let postgres = assess_postgres(&settings);
        if self.assessed.postgres != postgres {
            self.publish("postgres", &POSTGRES_MODES, &postgres);
            self.assessed.postgres = postgres;
        }
    }
}

/// Reads the state of one master.
async fn read_in_time(commands: Commands) -> RedisResult<RedisState> {
    let late = |_elapsed| std::io::Error::from(std::io::ErrorKind::TimedOut);
    timeout(ANSWER_TIMEOUT, RedisState::read(commands)).await.map_err(late)?
}

/// The error that Redis answered with, if it did answer.
fn server_message(error: &RedisError) -> Option<String> {
    let code = error.code()?;
    Some(error.detail().map_or(code.to_owned(), |detail| format!("{code} {detail}")))
}

/// Sets the health of each gRPC service.
pub(super) async fn report(reporter: &HealthReporter, role: Role, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    let services = if role.answers_calls() { grpc::SERVICES.as_slice() } else { &[] };
    for service in std::iter::once(&"").chain(services) {
        reporter.set_service_status(*service, status).await;
    }
}
