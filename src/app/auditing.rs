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
                certainty = lost.certainty(), "accepted reservations were lost"
            );
        }
        // A partition that could not be seen keeps what it had lost; of the others the newer count stands.
        let again = |old: &Lost| {
            report.lost.iter().any(|new| (new.partition, new.epoch) == (old.partition, old.epoch))
        };
        self.lost.retain(|old| !whole && !again(old));
        self.lost.extend(report.lost);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Epoch, PartitionCount};

    fn lost(partition: u16, count: u64) -> Lost {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(partition).unwrap();
        Lost { partition, epoch: Epoch(1), count, exact: true }
    }

    #[test]
    fn a_loss_is_told_also_while_another_partition_cannot_be_seen() {
        let (mut told, metrics) = (Told::default(), Metrics::new().unwrap());
        let gauge = |line: &str| metrics.encode().unwrap().contains(line);
        let report = |lost: &[Lost], unknown: &[&str]| Report {
            lost: lost.to_vec(),
            unknown: unknown.iter().map(|why| (*why).to_owned()).collect(),
            ..Report::default()
        };
        told.tell(report(&[lost(0, 3)], &["partition 1: fenced"]), &metrics);
        assert_eq!(told.lost, [lost(0, 3)], "told once, not at every audit");
        assert!(gauge("certainty=\"exactly\",otel_scope_name=\"yoink\"} 3\n"));
        // A late mark corrects the count; what cannot be seen now is not forgotten.
        told.tell(report(&[lost(0, 4)], &["partition 1: fenced"]), &metrics);
        told.tell(report(&[lost(1, 2)], &["partition 0: fenced"]), &metrics);
        assert_eq!(told.lost, [lost(0, 4), lost(1, 2)]);
        assert!(gauge("certainty=\"exactly\",otel_scope_name=\"yoink\"} 6\n"));
        told.tell(report(&[lost(1, 2)], &[]), &metrics);
        assert_eq!(told.lost, [lost(1, 2)]);
    }

    #[test]
    fn what_cannot_be_seen_is_not_well_again() {
        let (mut told, metrics) = (Told::default(), Metrics::new().unwrap());
        let off = || {
            metrics
                .encode()
                .unwrap()
                .contains("yoink_conservation_error_units{otel_scope_name=\"yoink\"} 1\n")
        };
        let wrong = vec!["product shoe: off by 1".to_owned()];
        told.tell(
            Report { violations: wrong.clone(), error_units: 1, ..Report::default() },
            &metrics,
        );
        told.tell(Report { unknown: vec!["fenced".to_owned()], ..Report::default() }, &metrics);
        assert!(off() && told.violations == wrong);
        told.tell(Report::default(), &metrics);
        assert!(!off() && told.violations.is_empty());
    }
}
