//! Health follows Redis: without it, with one that cannot sell, or with settings that may lose what it
//! decided, nothing is sold. Postgres may be away for a while.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use redis::RedisError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    Role, Stores,
    connect::retry_refused,
    redis_state::{CompleteLog, RedisState, advice},
    safety::{self, Judgement, LEDGER_MODES, REDIS_MODES},
};
use crate::{
    ack::{Acks, Offer},
    grpc,
    redis::{FenceError, retry_at_start},
};

/// How often Redis is asked whether it answers, and what it is set to.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How often Postgres's settings are read.
const JUDGE_LEDGER: Duration = Duration::from_secs(5);
/// How long that may take: Redis is watched meanwhile.
const LIMIT: Duration = Duration::from_secs(1);

/// What is said of a Redis that does not answer.
const UNAVAILABLE: &str = "Redis is unavailable";

/// What the stores promise.
#[derive(Debug, Clone)]
struct Judged {
    redis: Judgement,
    replicas: u32,
    ledger: Judgement,
    ledger_judged: Instant,
    log: CompleteLog,
}

impl Judged {
    /// What can be given by a Redis in this mode.
    fn offer(&self, redis_mode: &str) -> Offer {
        Offer {
            disk: redis_mode == "always",
            replicas: self.replicas,
            ledger: self.ledger.mode == "synchronous",
        }
    }
}

/// What is known of the stores.
#[derive(Clone)]
pub(super) struct Watch {
    stores: Stores,
    role: Role,
    /// Where orders are taken.
    acks: Option<Acks>,
    reasons: Arc<ArcSwap<Vec<String>>>,
    /// By this handle: only one looks.
    judged: Judged,
}

impl Watch {
    /// Judges both stores' settings.
    ///
    /// # Errors
    ///
    /// When a store does not answer, or its settings are not safe to sell with, or not enough for `ack`.
    pub(super) async fn begin(
        stores: Stores,
        role: Role,
        acks: Option<Acks>,
    ) -> anyhow::Result<Self> {
        let partitions = stores.stock.partitions();
        let state = retry_at_start(|| RedisState::read(partitions.connection())).await;
        let state = state.context("cannot read Redis's settings")?;
        let ledger = retry_refused(async || Ok(safety::of_ledger(&stores).await?));
        let (mut log, ledger) = (CompleteLog::default(), ledger.await?);
        let (redis, replicas) = (state.judge(&mut log), state.replicas);
        let judged = Judged { redis, replicas, ledger, ledger_judged: Instant::now(), log };
        let mut refusals = judged.redis.unusable.clone();
        refusals.extend_from_slice(&judged.redis.refusals);
        refusals.extend_from_slice(&judged.ledger.refusals);
        // A log that is not complete yet refuses no start: it will be.
        let later = judged.offer(judged.redis.later);
        refusals.extend(acks.as_ref().and_then(|acks| acks.offer(later)));
        if !refusals.is_empty() {
            bail!("{}", refusals.join("; "));
        }
        let advised = retry_at_start(|| advice(partitions.connection())).await;
        for advice in advised.context("cannot read Redis's settings")? {
            tracing::warn!(store = "redis", "{advice}");
        }
        tracing::info!(redis = judged.redis.mode, postgres = judged.ledger.mode, "durability");
        let this = Self { stores, role, acks, reasons: Arc::default(), judged };
        this.declare(("redis", &REDIS_MODES), &this.judged.redis);
        this.declare(("postgres", &LEDGER_MODES), &this.judged.ledger);
        Ok(this)
    }

    /// Why nothing can be sold; empty if all is well.
    pub(super) fn reasons(&self) -> Vec<String> {
        self.reasons.load().to_vec()
    }

    fn declare(&self, (store, modes): (&'static str, &[&'static str]), judged: &Judgement) {
        for refusal in &judged.refusals {
            tracing::error!(store, "{refusal}");
        }
        for warning in &judged.warnings {
            tracing::warn!(store, mode = judged.mode, "{warning}");
        }
        let metrics = &self.stores.metrics;
        for mode in modes {
            metrics.durability(store, mode, judged.mode == *mode);
        }
    }

    /// Watches until stopped.
    pub(super) async fn run(mut self, reporter: HealthReporter, stop: CancellationToken) {
        let mut well = self.reasons().is_empty();
        while stop.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await.is_some() {
            self.look().await;
            let is_well = self.reasons().is_empty();
            if is_well != well {
                tracing::warn!(reasons = ?self.reasons(), "{}", if is_well { "well" } else { "not well" });
                report(&reporter, self.role, is_well).await;
                well = is_well;
            }
        }
    }

    /// Looks at both stores, and keeps every reason why nothing can be sold.
    pub(super) async fn look(&mut self) {
        let mut reasons = Vec::new();
        let refusal = match self.stores.stock.partitions().ping().await {
            Ok(()) => None,
            // Such as a Redis whose disk is full: INFO tells why.
            Err(FenceError::Unavailable { source, .. }) => {
                Some(answered(&source).map_or(UNAVAILABLE.to_owned(), |answer| {
                    format!("Redis refuses PING: {answer}")
                }))
            }
            Err(error) => Some(error.to_string()),
        };
        if refusal.as_deref() != Some(UNAVAILABLE) {
            reasons.extend(self.judge_redis().await);
        }
        reasons.extend(refusal);
        if self.judged.ledger_judged.elapsed() >= JUDGE_LEDGER {
            self.judge_ledger().await;
            self.judged.ledger_judged = Instant::now();
        }
        let Judged { redis, .. } = &self.judged;
        for more in [&redis.unusable, &redis.refusals, &redis.outages] {
            reasons.extend_from_slice(more);
        }
        let offer = self.judged.offer(redis.mode);
        reasons.extend(self.acks.as_ref().and_then(|acks| acks.offer(offer)));
        self.reasons.store(Arc::new(reasons));
    }

    /// Judges Redis by what it says and by what it does. One that does not answer in time is judged when it
    /// does.
    async fn judge_redis(&mut self) -> Option<String> {
        let read = RedisState::read(self.stores.stock.partitions().connection());
        let state = match tokio::time::timeout(LIMIT, read).await {
            Ok(Ok(state)) => state,
            Ok(Err(error)) => {
                return answered(&error).map(|why| format!("Redis refuses INFO or CONFIG: {why}"));
            }
            Err(_) => return None,
        };
        let redis = state.judge(&mut self.judged.log);
        if !redis.refusals.is_empty() {
            // Before the first buyer is refused, `/readyz` says why.
            self.reasons.store(Arc::new(redis.refusals.clone()));
        }
        self.stores.stock.partitions().forbid(!redis.refusals.is_empty());
        let said =
            |judged: &Judgement| (judged.mode, judged.refusals.clone(), judged.warnings.clone());
        if said(&self.judged.redis) != said(&redis) {
            self.declare(("redis", &REDIS_MODES), &redis);
        }
        (self.judged.redis, self.judged.replicas) = (redis, state.replicas);
        tokio::time::timeout(LIMIT, self.sells_nothing()).await.ok().flatten()
    }

    /// Why no partition can be sold from, if none can: asked by a script, as sales are. The first that can is
    /// enough.
    async fn sells_nothing(&self) -> Option<String> {
        let mut why = "no partition is open for sale".to_owned();
        for partition in self.stores.deployment.partitions.all() {
            match self.stores.lifecycle.probe(partition).await {
                Ok(()) => return None,
                Err(FenceError::Fenced(_)) => {}
                Err(FenceError::Unavailable { source, .. }) => match answered(&source) {
                    Some(answer) => why = format!("Redis refuses the service's scripts: {answer}"),
                    None => return Some(UNAVAILABLE.to_owned()),
                },
                Err(error @ FenceError::Malformed(_)) => why = error.to_string(),
            }
        }
        Some(why)
    }

    async fn judge_ledger(&mut self) {
        if let Ok(Ok(ledger)) = tokio::time::timeout(LIMIT, safety::of_ledger(&self.stores)).await
            && self.judged.ledger != ledger
        {
            self.declare(("postgres", &LEDGER_MODES), &ledger);
            self.judged.ledger = ledger;
        }
    }
}

/// What Redis answered, if it did.
fn answered(error: &RedisError) -> Option<String> {
    let code = error.code()?;
    Some(error.detail().map_or(code.to_owned(), |detail| format!("{code} {detail}")))
}

/// Tells every service's health.
pub(super) async fn report(reporter: &HealthReporter, role: Role, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    let services = if role == Role::Worker { &[] } else { grpc::SERVICES.as_slice() };
    for service in std::iter::once(&"").chain(services) {
        reporter.set_service_status(*service, status).await;
    }
}
