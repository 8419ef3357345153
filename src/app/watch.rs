//! Health follows Redis: without it, or with settings that may lose what it decided, nothing is sold.
//! Postgres may be away for a while.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::bail;
use arc_swap::ArcSwap;
use redis::RedisError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    Role, Stores,
    safety::{self, Judgement, LEDGER_MODES, REDIS_MODES},
};
use crate::{
    ack::{Acks, Offer},
    grpc,
};

/// How often Redis is asked whether it answers, and what it is set to.
const LOOK: Duration = Duration::from_millis(500);
/// How often Postgres's settings are read.
const JUDGE_LEDGER: Duration = Duration::from_secs(5);
/// How long that may take: Redis is watched meanwhile.
const LIMIT: Duration = Duration::from_secs(1);

/// What the stores promise.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Judged {
    redis: Judgement,
    replicas: u32,
    ledger: Judgement,
}

impl Judged {
    fn offer(&self) -> Offer {
        Offer {
            disk: self.redis.mode == "always",
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
    redis_answers: Arc<AtomicBool>,
    refusals: Arc<ArcSwap<Vec<String>>>,
    /// As it was at the start.
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
        let redis = safety::of_redis(&stores).await?;
        let replicas = safety::replicas(&stores).await?;
        let ledger = safety::of_ledger(&stores).await?;
        let judged = Judged { redis, replicas, ledger };
        let mut refusals =
            [judged.redis.refusals.as_slice(), judged.ledger.refusals.as_slice()].concat();
        refusals.extend(acks.as_ref().and_then(|acks| acks.offer(judged.offer())));
        if !refusals.is_empty() {
            bail!("{}", refusals.join("; "));
        }
        let redis_answers = Arc::new(AtomicBool::new(true));
        tracing::info!(redis = judged.redis.mode, postgres = judged.ledger.mode, "durability");
        let this = Self { stores, role, acks, redis_answers, refusals: Arc::default(), judged };
        this.declare(("redis", &REDIS_MODES), &this.judged.redis);
        this.declare(("postgres", &LEDGER_MODES), &this.judged.ledger);
        Ok(this)
    }

    /// Why nothing can be sold; empty if all is well.
    pub(super) fn reasons(&self) -> Vec<String> {
        let away = !self.redis_answers.load(Ordering::Acquire);
        let away = away.then(|| "Redis is unavailable".to_owned());
        away.into_iter().chain(self.refusals.load().iter().cloned()).collect()
    }

    fn declare(&self, (store, modes): (&'static str, &[&'static str]), judged: &Judgement) {
        for refusal in &judged.refusals {
            tracing::error!(store, "{refusal}");
        }
        for warning in &judged.warnings {
            tracing::warn!(store, mode = judged.mode, "{warning}");
        }
        let metrics = self.stores.stock.partitions().metrics();
        for mode in modes {
            metrics.durability(store, mode, judged.mode == *mode);
        }
    }

    /// Watches until stopped.
    pub(super) async fn run(self, reporter: HealthReporter, stop: CancellationToken) {
        let (mut well, mut last) = (true, self.judged.clone());
        let mut ledger_judged = Instant::now();
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let answers = self.stores.stock.partitions().ping().await.is_ok();
            self.redis_answers.store(answers, Ordering::Release);
            if answers {
                self.judge_redis(&mut last).await;
            }
            if ledger_judged.elapsed() >= JUDGE_LEDGER {
                self.judge_ledger(&mut last).await;
                ledger_judged = Instant::now();
            }
            let short = self.acks.as_ref().and_then(|acks| acks.offer(last.offer()));
            let refusals = last.redis.refusals.iter().cloned().chain(short).collect();
            self.refusals.store(Arc::new(refusals));
            let is_well = self.reasons().is_empty();
            if is_well != well {
                tracing::warn!(reasons = ?self.reasons(), "{}", if is_well { "well" } else { "not well" });
                report(&reporter, self.role, is_well).await;
                well = is_well;
            }
        }
    }

    /// Who does not answer is looked at again when it does.
    async fn judge_redis(&self, last: &mut Judged) {
        let read = async {
            let judged = safety::of_redis(&self.stores).await?;
            Ok::<_, RedisError>((judged, safety::replicas(&self.stores).await?))
        };
        let Ok(Ok((redis, replicas))) = tokio::time::timeout(LIMIT, read).await else { return };
        self.stores.stock.partitions().forbid(!redis.refusals.is_empty());
        last.replicas = replicas;
        if last.redis != redis {
            self.declare(("redis", &REDIS_MODES), &redis);
            last.redis = redis;
        }
    }

    async fn judge_ledger(&self, last: &mut Judged) {
        if let Ok(Ok(ledger)) = tokio::time::timeout(LIMIT, safety::of_ledger(&self.stores)).await
            && last.ledger != ledger
        {
            self.declare(("postgres", &LEDGER_MODES), &ledger);
            last.ledger = ledger;
        }
    }
}

/// Tells every service's health.
pub(super) async fn report(reporter: &HealthReporter, role: Role, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    let services = if role == Role::Worker { &[] } else { grpc::SERVICES.as_slice() };
    for service in std::iter::once(&"").chain(services) {
        reporter.set_service_status(*service, status).await;
    }
}
