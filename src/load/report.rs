//! The result of a run.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;

use super::{
    outcome::{Kind, Outcomes},
    plan::{Pace, Plan},
};

/// What happened in one second of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Second {
    /// Its number, from 0; the warm-up is not counted. Calls count in the second in which they ended.
    pub number: u64,
    /// Calls that were answered.
    pub answered: u64,
    /// The latency that half of the answers did not exceed.
    pub p50: Duration,
    /// The latency that 99 % of the answers did not exceed.
    pub p99: Duration,
    /// Calls by outcome.
    pub outcomes: Outcomes,
    /// Accepted orders that waited to be stored at its end, where the plan has a metrics URL and it answered.
    pub backlog: Option<u64>,
}

/// What happened to the connections of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Connections that were made.
    pub made: u64,
    /// Attempts to connect that failed.
    pub failed: u64,
    /// Connections that ended with an error.
    pub lost: u64,
    /// Connections that the service closed in good order, for example because of their age.
    pub closed: u64,
}

impl ConnectionCounts {
    pub(super) fn merge(&mut self, other: Self) {
        self.made += other.made;
        self.failed += other.failed;
        self.lost += other.lost;
        self.closed += other.closed;
    }
}

/// The result of a run. Every call that began after the warm-up is in `outcomes`.
#[derive(Clone)]
pub struct Report {
    /// What was to be done.
    pub plan: Plan,
    /// From the end of the warm-up to the end of the last call.
    pub elapsed: Duration,
    /// Calls by outcome.
    pub outcomes: Outcomes,
    /// The run, second by second. The last one may be shorter than a second.
    pub seconds: Vec<Second>,
    /// What happened to the connections, the warm-up included.
    pub connections: ConnectionCounts,
    /// Open loop: calls that were to start before the end and did not, because every caller was busy.
    pub not_started: u64,
    /// Whether the run was stopped before its end.
    pub interrupted: bool,
    /// Time on a processor that the threads of the generator used, the warm-up included.
    pub cpu: Duration,
    /// Calls of the warm-up.
    pub warm_up_calls: u64,
    /// Reservation ids of the accepted calls, in no order, if the plan asked for them. Duplicates are not among them.
    pub accepted_ids: Vec<String>,
    /// Latency of the calls that were answered, in microseconds.
    pub(super) latency: Histogram<u64>,
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report")
            .field("elapsed", &self.elapsed)
            .field("outcomes", &self.outcomes)
            .field("connections", &self.connections)
            .field("not_started", &self.not_started)
            .finish_non_exhaustive()
    }
}

impl Report {
    /// Calls in all.
    pub fn calls(&self) -> u64 {
        self.outcomes.total()
    }

    /// Calls that took a unit; not their duplicates.
    pub fn accepted(&self) -> u64 {
        self.outcomes.named("accepted")
    }

    /// Calls that ended with an error: no answer, or an answer that is neither a success nor a final decision.
    pub fn errors(&self) -> u64 {
        self.outcomes.errors()
    }

    /// Calls without an answer, and attempts to connect that failed.
    pub fn connection_errors(&self) -> u64 {
        self.outcomes.of(Kind::Unanswered) + self.connections.failed
    }

    /// Errors as a part of all calls, from 0 to 1.
    pub fn error_rate(&self) -> f64 {
        self.errors() as f64 / self.calls().max(1) as f64
    }

    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.outcomes.answered() as f64 / self.elapsed.as_secs_f64().max(1e-6)
    }

    /// The most answers in one second.
    pub fn peak_rate(&self) -> u64 {
        self.seconds.iter().map(|second| second.answered).max().unwrap_or(0)
    }

    /// The latency that this part (0.99: 99 %) of the answers did not exceed; 0 without answers.
    pub fn latency_at(&self, quantile: f64) -> Duration {
        Duration::from_micros(self.latency.value_at_quantile(quantile))
    }

    /// The largest latency of an answer.
    pub fn latency_max(&self) -> Duration {
        Duration::from_micros(self.latency.max())
    }

    /// The average latency of the answers.
    #[expect(clippy::cast_possible_truncation, reason = "not negative")]
    pub fn latency_mean(&self) -> Duration {
        Duration::from_micros(self.latency.mean() as u64)
    }

    /// CPU time of the generator for each call, in microseconds.
    pub fn cpu_us_per_call(&self) -> f64 {
        let calls = (self.calls() + self.warm_up_calls).max(1);
        self.cpu.as_secs_f64() * 1e6 / calls as f64
    }
}

/// The percentiles of a report, with their names.
pub(super) const PERCENTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999)];

impl Report {
    /// The result in words and numbers, for a table.
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines = vec![("calls".to_owned(), self.calls().to_string())];
        let mut line = |name: &str, value: String| lines.push((name.to_owned(), value));
        for (outcome, count) in self.outcomes.iter() {
            line(&outcome.name, format!("{count} ({})", percent(count, self.calls())));
        }
        let errors = self.errors();
        line("errors", format!("{errors} ({})", percent(errors, self.calls())));
        if let Pace::Open { rate } = self.plan.pace {
            line("intended rate", format!("{rate}/s"));
            line("not started", self.not_started.to_string());
        }
        line("rate", format!("{:.0}/s", self.rate()));
        line("peak rate", format!("{}/s", self.peak_rate()));
        for (name, quantile) in PERCENTILES {
            line(name, time_text(self.latency_at(quantile)));
        }
        line("max", time_text(self.latency_max()));
        let ConnectionCounts { made, failed, lost, closed } = self.connections;
        let connections = format!("{made} made, {failed} failed, {lost} lost, {closed} closed");
        line("connections", connections);
        if let Some(backlog) = self.seconds.iter().filter_map(|second| second.backlog).max() {
            line("largest backlog", backlog.to_string());
        }
        line("elapsed", time_text(self.elapsed));
        line("CPU time per call", format!("{:.1} µs", self.cpu_us_per_call()));
        lines
    }
}

/// A part of a whole, as a percentage.
fn percent(part: u64, whole: u64) -> String {
    format!("{:.2} %", part as f64 * 100.0 / whole.max(1) as f64)
}

/// A time with the unit that suits its length.
pub(super) fn time_text(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if time < Duration::from_millis(1) {
        format!("{:.0} µs", seconds * 1e6)
    } else if time < Duration::from_secs(1) {
        format!("{:.1} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::load::{Outcome, recorder::Interval};

    /// A report of three seconds.
    pub(in crate::load) fn example() -> Report {
        let mut total = Interval::empty().unwrap();
        let outcomes = [
            (Kind::Succeeded, "accepted", 2),
            (Kind::Refused, "SOLD_OUT", 6),
            (Kind::Failed, "<OVERLOADED>", 1),
            (Kind::Unanswered, "timeout", 1),
        ];
        for (kind, name, count) in outcomes {
            total.outcomes.add(&Outcome::new(kind, name), count);
        }
        for millis in 1..=9 {
            total.latency.record(millis * 1000).unwrap();
        }
        let second = |number, answered, backlog| Second {
            number,
            answered,
            p50: Duration::from_millis(5),
            p99: Duration::from_millis(9),
            outcomes: total.outcomes.clone(),
            backlog,
        };
        Report {
            plan: Plan::new("127.0.0.1:50051", ["a<b"]),
            elapsed: Duration::from_millis(2_250),
            outcomes: total.outcomes.clone(),
            seconds: vec![second(0, 5, Some(7)), second(1, 0, None), second(2, 4, Some(1))],
            connections: ConnectionCounts { made: 9, failed: 2, lost: 1, closed: 0 },
            not_started: 3,
            interrupted: false,
            cpu: Duration::from_micros(55),
            warm_up_calls: 1,
            accepted_ids: Vec::new(),
            latency: total.latency,
        }
    }

    #[test]
    fn figures_of_a_report_follow_from_its_counts() {
        let report = example();
        assert_eq!((report.calls(), report.accepted(), report.errors()), (10, 2, 2));
        assert_eq!((report.connection_errors(), report.peak_rate()), (3, 5));
        assert!((report.error_rate() - 0.2).abs() < 1e-9);
        assert!((report.rate() - 4.0).abs() < 1e-9);
        assert!((report.cpu_us_per_call() - 5.0).abs() < 1e-9);
    }

    #[test]
    fn percentile_is_the_latency_that_this_part_of_the_answers_did_not_exceed() {
        let report = example();
        let near = |quantile: f64, millis: u64| {
            let (found, expected) = (report.latency_at(quantile), Duration::from_millis(millis));
            found.abs_diff(expected) <= expected / 500
        };
        assert!(near(0.5, 5) && near(0.9, 9) && near(0.99, 9) && near(0.1, 1));
        assert!(report.latency_max() >= Duration::from_millis(9));
        assert!(
            report.latency_mean().abs_diff(Duration::from_millis(5)) < Duration::from_micros(9)
        );
    }

    #[test]
    fn lines_name_each_outcome_once() {
        let lines = example().lines();
        let value = |name: &str| {
            let mut found = lines.iter().filter(|(line, _)| line == name);
            let value = found.next().map(|(_, value)| value.as_str());
            assert_eq!(found.next(), None, "{name} is there twice");
            value
        };
        assert_eq!(value("SOLD_OUT"), Some("6 (60.00 %)"));
        assert_eq!(value("connections"), Some("9 made, 2 failed, 1 lost, 0 closed"));
        assert_eq!(value("largest backlog"), Some("7"));
        assert_eq!(value("not started"), None, "only an open loop has such calls");
    }

    #[test]
    fn time_has_the_unit_that_suits_it() {
        let texts = [(850, "850 µs"), (12_340, "12.3 ms"), (1_234_000, "1.23 s")];
        for (micros, text) in texts {
            assert_eq!(time_text(Duration::from_micros(micros)), text);
        }
    }
}
