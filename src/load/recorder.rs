//! Counts the calls of one thread, second by second.

use std::{
    mem,
    time::{Duration, Instant},
};

use hdrhistogram::{CreationError, Histogram};

use super::{
    outcome::{Kind, Outcome, Outcomes},
    report::ConnectionCounts,
};

/// Longer latencies count as this one.
const LATENCY_MAX_US: u64 = 600_000_000;
/// Latencies are exact to three digits.
const DIGITS: u8 = 3;

/// The calls that ended in one second, or in a run.
#[derive(Debug, Clone)]
pub(super) struct Interval {
    /// From 0.
    pub(super) number: u64,
    pub(super) outcomes: Outcomes,
    /// Of the calls that were answered, in microseconds.
    pub(super) latency: Histogram<u64>,
}

impl Interval {
    pub(super) fn empty() -> Result<Self, CreationError> {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS)?;
        Ok(Self { number: 0, outcomes: Outcomes::default(), latency })
    }

    /// The calls of both.
    pub(super) fn merge(&mut self, other: &Self) {
        self.outcomes.merge(&other.outcomes);
        // Both have the same bounds.
        let added = self.latency.add(&other.latency);
        debug_assert!(added.is_ok(), "{added:?}");
    }
}

/// What one thread did.
#[derive(Debug)]
pub(super) struct Recorder {
    empty: Interval,
    current: Interval,
    finished: Vec<Interval>,
    measured_from: Option<Instant>,
    /// When the last call ended.
    pub(super) last_end: Option<Instant>,
    pub(super) warm_up_calls: u64,
    pub(super) accepted_ids: Vec<String>,
    pub(super) connections: ConnectionCounts,
    /// Open loop: calls that were to start and did not.
    pub(super) not_started: u64,
}

impl Recorder {
    pub(super) fn new(empty: Interval) -> Self {
        Self {
            current: empty.clone(),
            empty,
            finished: Vec::new(),
            measured_from: None,
            last_end: None,
            warm_up_calls: 0,
            accepted_ids: Vec::new(),
            connections: ConnectionCounts::default(),
            not_started: 0,
        }
    }

    /// Calls that were to start at this time or later are counted.
    pub(super) fn measure_from(&mut self, time: Instant) {
        self.measured_from = Some(time);
    }

    /// Counts a call that was to start at `due`.
    pub(super) fn record(&mut self, (due, end): (Instant, Instant), outcome: &Outcome) {
        let Some(from) = self.measured_from.filter(|from| due >= *from) else {
            self.warm_up_calls += 1;
            return;
        };
        self.finish_before((end - from).as_secs());
        self.current.outcomes.add(outcome, 1);
        if outcome.kind != Kind::Unanswered {
            self.current.latency.saturating_record(micros(end - due));
        }
        self.last_end = self.last_end.max(Some(end));
    }

    /// Finishes the current second if `number` is a later one.
    fn finish_before(&mut self, number: u64) {
        if number > self.current.number {
            let next = Interval { number, ..self.empty.clone() };
            let finished = mem::replace(&mut self.current, next);
            if finished.outcomes.total() > 0 {
                self.finished.push(finished);
            }
        }
    }

    /// Takes the seconds before `number`. A call that is recorded afterwards counts in second `number` or a later one.
    pub(super) fn take_before(&mut self, number: u64) -> Vec<Interval> {
        self.finish_before(number);
        mem::take(&mut self.finished)
    }
}

/// At least 1, the smallest latency of a histogram.
fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(from: Instant) -> Recorder {
        let mut recorder = Recorder::new(Interval::empty().unwrap());
        recorder.measure_from(from);
        recorder
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn call_counts_in_the_second_in_which_it_ended_with_latency_from_when_it_was_due() {
        let from = Instant::now();
        let (mut recorder, accepted) = (recorder(from), Outcome::new(Kind::Succeeded, "accepted"));
        recorder.record((from, from + 5 * MS), &accepted);
        recorder.record((from + 900 * MS, from + 1_100 * MS), &accepted);
        recorder.record((from + 3_000 * MS, from + 3_000 * MS), &accepted);
        let taken = recorder.take_before(4);
        let rows = taken.iter().map(|i| (i.number, i.outcomes.total(), i.latency.max() / 1000));
        assert_eq!(rows.collect::<Vec<_>>(), [(0, 1, 5), (1, 1, 200), (3, 1, 0)]);
        assert!(recorder.take_before(9).is_empty());
        assert_eq!(recorder.last_end, Some(from + 3_000 * MS));
    }

    #[test]
    fn call_of_the_warm_up_is_not_measured() {
        let from = Instant::now() + 10 * MS;
        let (mut recorder, accepted) = (recorder(from), Outcome::new(Kind::Succeeded, "accepted"));
        recorder.record((from - MS, from + MS), &accepted);
        assert_eq!((recorder.warm_up_calls, recorder.take_before(1).len()), (1, 0));
    }

    #[test]
    fn call_without_an_answer_is_counted_without_latency() {
        let from = Instant::now();
        let (mut recorder, timeout) = (recorder(from), Outcome::new(Kind::Unanswered, "timeout"));
        recorder.record((from, from + MS), &timeout);
        let taken = recorder.take_before(1);
        assert_eq!((taken[0].outcomes.total(), taken[0].latency.len()), (1, 0));
    }

    #[test]
    fn call_recorded_after_its_second_was_taken_counts_in_the_next() {
        let from = Instant::now();
        let (mut recorder, accepted) = (recorder(from), Outcome::new(Kind::Succeeded, "accepted"));
        assert!(recorder.take_before(2).is_empty());
        recorder.record((from, from + 1_999 * MS), &accepted);
        assert_eq!(recorder.take_before(3)[0].number, 2);
    }

    #[test]
    fn intervals_merge_to_the_calls_of_both() {
        let mut one = Interval::empty().unwrap();
        let mut other = one.clone();
        one.outcomes.add(&Outcome::new(Kind::Succeeded, "accepted"), 2);
        other.outcomes.add(&Outcome::new(Kind::Refused, "SOLD_OUT"), 3);
        one.latency.record(1).unwrap();
        other.latency.record(LATENCY_MAX_US).unwrap();
        one.merge(&other);
        assert_eq!((one.outcomes.total(), one.outcomes.named("SOLD_OUT")), (5, 3));
        assert_eq!((one.latency.len(), one.latency.min()), (2, 1));
    }
}
