//! Audits that a worker makes while it runs: findings become metrics and log lines, and losses are announced.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Auditor, Report};
use crate::{domain::Lost, tasks::tick, telemetry::Metrics};

/// An audit reads the ledger, so audits take at most 1/`TIME_SHARE` of the time. Comparisons of checkpoints do not count: how
/// many there are in a day does not depend on this time.
const TIME_SHARE: u32 = 10;

/// The longest time until the first audit of a worker. By then it has seen whether another one audits. What that one found
/// is reported again soon, although the interval may be long.
const FIRST_PAUSE_MAX: Duration = Duration::from_secs(5);

impl Auditor {
    /// Audits again and again until stopped.
    pub async fn run(self, metrics: Metrics, interval: Duration, stop: CancellationToken) {
        let mut findings = Findings::default();
        let mut pause = interval.min(FIRST_PAUSE_MAX);
        while tick(pause, &stop).await {
            let started = Instant::now();
            let Some(report) = stop.run_until_cancelled(self.audit_and_cover()).await else {
                return;
            };
            let ordinary = started.elapsed().saturating_sub(report.comparing);
            findings.publish(report, &metrics);
            pause = interval.max(ordinary * TIME_SHARE);
        }
    }
}

/// What was logged last: each finding is logged once, and again when it changes.
#[derive(Default)]
struct Findings {
    violations: Vec<String>,
    blocked: Vec<String>,
    lost: Vec<Lost>,
}

impl Findings {
    fn publish(&mut self, report: Report, metrics: &Metrics) {
        let complete = report.unknown.is_empty();
        metrics.set_audit_complete(complete);
        let now = SystemTime::now();
        for partition in &report.audited {
            metrics.set_audited(partition.number(), now);
        }
        metrics.set_blocked_checkpoints(report.blocked.len());
        self.log_blocked(report.blocked);
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

    fn log_blocked(&mut self, blocked: Vec<String>) {
        for blocked in blocked.iter().filter(|blocked| !self.blocked.contains(blocked)) {
            tracing::warn!(
                "the checkpoint of an audit cannot cover more rows, so each audit reads them again: {blocked} (docs/operations.md, Watching)"
            );
        }
        self.blocked = blocked;
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
    fn audited_partitions_and_blocked_checkpoints_are_reported() {
        let (mut findings, metrics) = (Findings::default(), Metrics::new().unwrap());
        let value = |name: &str| {
            let text = metrics.encode().unwrap();
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.rsplit_once(' ')?.1.parse::<f64>().ok()
        };
        let (first, second) = (lost(0, 0).partition, lost(1, 0).partition);
        let report = Report {
            audited: vec![first],
            blocked: vec!["partition 0: a seq has more than one row".to_owned()],
            unknown: vec![format!("partition {second}: fenced")],
            ..Report::default()
        };
        findings.publish(report, &metrics);
        let before_2026 = 1_767_225_600.0;
        assert!(value("yoink_audit_last_timestamp_seconds{").unwrap() > before_2026);
        let of_second = "partition=\"1\"";
        assert!(!metrics.encode().unwrap().contains(of_second), "it could not be read");
        assert_eq!(value("yoink_audit_blocked_checkpoints{"), Some(1.0));
        findings.publish(Report::default(), &metrics);
        assert_eq!(value("yoink_audit_blocked_checkpoints{"), Some(0.0));
        // Another worker audits now.
        findings.publish(Report { lost: vec![lost(0, 3)], ..Report::default() }, &metrics);
        assert!(
            metrics
                .encode()
                .unwrap()
                .contains("certainty=\"exact\",otel_scope_name=\"yoink\"} 3\n")
        );
        metrics.clear_audit();
        assert!(
            metrics
                .encode()
                .unwrap()
                .contains("certainty=\"exact\",otel_scope_name=\"yoink\"} 0\n")
        );
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
