//! Audits that a worker makes while it runs: findings become metrics and log lines, and losses are announced.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Auditor, Report};
use crate::{domain::Lost, tasks::tick, telemetry::Metrics};

/// An audit reads the ledger, so audits take at most 1/`TIME_SHARE` of the time.
const TIME_SHARE: u32 = 10;

impl Auditor {
    /// Audits again and again until stopped.
    pub async fn run(self, metrics: Metrics, interval: Duration, stop: CancellationToken) {
        let mut findings = Findings::default();
        let mut pause = interval;
        while tick(pause, &stop).await {
            let started = Instant::now();
            let Some(report) = stop.run_until_cancelled(self.audit_and_cover()).await else {
                return;
            };
            findings.publish(report, &metrics);
            pause = interval.max(started.elapsed() * TIME_SHARE);
        }
    }
}

/// What was logged last: each finding is logged once, and again when it changes.
#[derive(Default)]
struct Findings {
    violations: Vec<String>,
    lost: Vec<Lost>,
}

impl Findings {
    fn publish(&mut self, report: Report, metrics: &Metrics) {
        let complete = report.unknown.is_empty();
        metrics.set_audit_complete(complete);
        // An audit that could not read everything does not end an earlier violation.
        if complete || !report.violations.is_empty() {
            metrics.set_audit_differences(report.differences);
            self.log_violations(report.violations);
        }
        for lost in report.lost.iter().filter(|lost| !self.lost.contains(lost)) {
            tracing::error!(
                partition = %lost.partition, epoch = %lost.epoch, lost = lost.count,
                certainty = lost.certainty(), "accepted reservations were lost"
            );
        }
        // The losses of a partition that could not be read are kept; elsewhere the newer count replaces the older.
        let replaced = |old: &Lost| {
            report.lost.iter().any(|new| (new.partition, new.epoch) == (old.partition, old.epoch))
        };
        self.lost.retain(|old| !complete && !replaced(old));
        self.lost.extend(report.lost);
        for exact in [true, false] {
            let counted = self.lost.iter().filter(|lost| lost.exact == exact);
            let count = counted.map(|lost| lost.count).sum();
            metrics.set_lost(exact, count);
        }
    }

    fn log_violations(&mut self, violations: Vec<String>) {
        if violations == self.violations {
            return;
        }
        for violation in &violations {
            tracing::error!("the audit found a violation: {violation}");
        }
        if violations.is_empty() {
            tracing::info!("the audit holds again: earlier violations are gone");
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
    fn loss_is_announced_once_also_while_another_partition_cannot_be_read() {
        let (mut findings, metrics) = (Findings::default(), Metrics::new().unwrap());
        let gauge = |line: &str| metrics.encode().unwrap().contains(line);
        let report = |lost: &[Lost], unknown: &[&str]| Report {
            lost: lost.to_vec(),
            unknown: unknown.iter().map(|why| (*why).to_owned()).collect(),
            ..Report::default()
        };
        findings.publish(report(&[lost(0, 3)], &["partition 1: fenced"]), &metrics);
        assert_eq!(findings.lost, [lost(0, 3)], "announced once, not at every audit");
        assert!(gauge("certainty=\"exact\",otel_scope_name=\"yoink\"} 3\n"));
        // A late mark corrects the count; the loss of a partition that cannot be read now is kept.
        findings.publish(report(&[lost(0, 4)], &["partition 1: fenced"]), &metrics);
        findings.publish(report(&[lost(1, 2)], &["partition 0: fenced"]), &metrics);
        assert_eq!(findings.lost, [lost(0, 4), lost(1, 2)]);
        assert!(gauge("certainty=\"exact\",otel_scope_name=\"yoink\"} 6\n"));
        findings.publish(report(&[lost(1, 2)], &[]), &metrics);
        assert_eq!(findings.lost, [lost(1, 2)]);
    }

    #[test]
    fn violation_lasts_until_an_audit_that_reads_everything_finds_none() {
        let (mut findings, metrics) = (Findings::default(), Metrics::new().unwrap());
        let is_violated = || {
            metrics
                .encode()
                .unwrap()
                .contains("yoink_audit_differences{otel_scope_name=\"yoink\"} 1\n")
        };
        let wrong = vec!["product shoe: difference 1".to_owned()];
        let violated = Report { violations: wrong.clone(), differences: 1, ..Report::default() };
        findings.publish(violated, &metrics);
        let unknown = Report { unknown: vec!["fenced".to_owned()], ..Report::default() };
        findings.publish(unknown, &metrics);
        assert!(is_violated() && findings.violations == wrong);
        findings.publish(Report::default(), &metrics);
        assert!(!is_violated() && findings.violations.is_empty());
    }
}
