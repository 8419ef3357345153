//! The audit as a habit: again and again while the service runs, beside whatever it does.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{audit::Auditor, telemetry::Metrics};

/// An audit reads the ledger: it takes at most one part in so many of the time.
const SHARE: u32 = 10;

/// Audits until stopped.
pub(super) async fn run(
    auditor: Auditor,
    metrics: Metrics,
    interval: Duration,
    stop: CancellationToken,
) {
    let (mut wait, mut last) = (interval, Vec::new());
    while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        let started = Instant::now();
        let Some(report) = stop.run_until_cancelled(auditor.audit()).await else { return };
        wait = interval.max(started.elapsed() * SHARE);
        metrics.audited(report.error_units, !report.unknown.is_empty());
        // Told once, and again when it changes.
        if report.violations != last {
            for violation in &report.violations {
                tracing::error!("the audit is violated: {violation}");
            }
            if report.violations.is_empty() {
                tracing::info!("the audit holds again");
            }
            last = report.violations;
        }
    }
}
