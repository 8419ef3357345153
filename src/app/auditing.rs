//! The audit as a habit: again and again while the service runs, beside whatever it does. It also announces
//! what Redis lost: marks and rows give that at any time, whoever was killed in between.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{Auditor, Report},
    domain::Lost,
    telemetry::Metrics,
};

/// An audit reads the ledger: it takes at most one part in so many of the time.
const SHARE: u32 = 10;

/// Audits until stopped.
pub(super) async fn run(
    auditor: Auditor,
    metrics: Metrics,
    interval: Duration,
    stop: CancellationToken,
) {
    let (mut wait, mut told) = (interval, Told::default());
    while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        let started = Instant::now();
        let Some(report) = stop.run_until_cancelled(auditor.audit()).await else { return };
        wait = interval.max(started.elapsed() * SHARE);
        told.tell(report, &metrics);
    }
}

/// What the log was told: each thing once, and again when it changes.
#[derive(Default)]
struct Told {
    violations: Vec<String>,
    lost: Vec<Lost>,
}

impl Told {
    fn tell(&mut self, report: Report, metrics: &Metrics) {
        let whole = report.unknown.is_empty();
        metrics.audited(whole);
        // What could not be seen is not well again.
        if whole || !report.violations.is_empty() {
            metrics.off_by(report.error_units);
            self.tell_violations(report.violations);
        }
        for lost in report.lost.iter().filter(|lost| !self.lost.contains(lost)) {
            tracing::error!(
                partition = %lost.partition, epoch = %lost.epoch, lost = lost.count,
                certainty = lost.certainty(), "accepted reservations were lost with Redis"
            );
        }
        if whole {
            self.lost = report.lost;
        }
        for exact in [true, false] {
            let of = |lost: &&Lost| lost.exact == exact;
            let count = self.lost.iter().filter(of).map(|lost| lost.count).sum();
            metrics.lost(if exact { "exactly" } else { "at least" }, count);
        }
    }

    fn tell_violations(&mut self, violations: Vec<String>) {
        if violations == self.violations {
            return;
        }
        for violation in &violations {
            tracing::error!("the audit is violated: {violation}");
        }
        if violations.is_empty() {
            tracing::info!("the audit holds again");
        }
        self.violations = violations;
    }
}
