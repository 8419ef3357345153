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
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    Role, Stores,
    safety::{self, Judgement, LEDGER_MODES, REDIS_MODES},
};
use crate::grpc;

const LOOK: Duration = Duration::from_millis(500);
/// How often the servers' settings are read: also after each reconnection.
const JUDGE: Duration = Duration::from_secs(5);
/// How long that may take: Redis is watched meanwhile.
const LIMIT: Duration = Duration::from_secs(1);

/// What is known of the stores.
#[derive(Clone)]
pub(super) struct Watch {
    stores: Stores,
    role: Role,
    redis_answers: Arc<AtomicBool>,
    refusals: Arc<ArcSwap<Vec<String>>>,
    /// Redis's and Postgres's settings as they were judged at the start.
    judged: [Judgement; 2],
}

impl Watch {
    /// Judges both stores' settings.
    ///
    /// # Errors
    ///
    /// When a store does not answer, or its settings are not safe to sell with.
    pub(super) async fn begin(stores: Stores, role: Role) -> anyhow::Result<Self> {
        let redis = safety::of_redis(&stores).await?;
        let ledger = safety::of_ledger(&stores).await?;
        let refusals = [redis.refusals.as_slice(), ledger.refusals.as_slice()].concat();
        if !refusals.is_empty() {
            bail!("{}", refusals.join("; "));
        }
        let redis_answers = Arc::new(AtomicBool::new(true));
        tracing::info!(redis = redis.mode, postgres = ledger.mode, "durability");
        let (refusals, judged) = (Arc::default(), [redis, ledger]);
        let this = Self { stores, role, redis_answers, refusals, judged };
        this.declare(("redis", &REDIS_MODES), &this.judged[0]);
        this.declare(("postgres", &LEDGER_MODES), &this.judged[1]);
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
        let (mut well, mut judged) = (true, Instant::now());
        let mut last = self.judged.clone();
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let answers = self.stores.stock.partitions().ping().await.is_ok();
            let returned = !self.redis_answers.swap(answers, Ordering::AcqRel) && answers;
            if answers && (returned || judged.elapsed() >= JUDGE) {
                self.judge(&mut last).await;
                judged = Instant::now();
            }
            let is_well = self.reasons().is_empty();
            if is_well != well {
                tracing::warn!(reasons = ?self.reasons(), "{}", if is_well { "well" } else { "not well" });
                report(&reporter, self.role, is_well).await;
                well = is_well;
            }
        }
    }

    async fn judge(&self, last: &mut [Judgement; 2]) {
        // Who does not answer is looked at again when it does.
        if let Ok(Ok(redis)) = tokio::time::timeout(LIMIT, safety::of_redis(&self.stores)).await {
            self.stores.stock.partitions().forbid(!redis.refusals.is_empty());
            self.refusals.store(Arc::new(redis.refusals.clone()));
            if last[0] != redis {
                self.declare(("redis", &REDIS_MODES), &redis);
                last[0] = redis;
            }
        }
        if let Ok(Ok(ledger)) = tokio::time::timeout(LIMIT, safety::of_ledger(&self.stores)).await
            && last[1] != ledger
        {
            self.declare(("postgres", &LEDGER_MODES), &ledger);
            last[1] = ledger;
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
