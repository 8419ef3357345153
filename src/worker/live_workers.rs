//! Which other workers run, by their beats: a worker is live while its beat is seen to change. No clock is compared.
//!
//! Must never: take a worker for live that has not been seen to do anything. A row that a killed process left must not
//! keep partitions from being read.

use std::collections::BTreeMap;

use crate::ledger::Beat;

/// A worker whose beat has not changed for this many rounds is no longer live.
const SILENT_ROUNDS_MAX: u32 = 3;
/// After this many such rounds its row is removed. A worker that runs for longer removes the rows of all that have crashed,
/// also where all workers crash again and again. One that was stalled writes its row again.
const REMOVED_AFTER: u32 = 5;

/// What was seen of another worker.
#[derive(Debug)]
struct Seen {
    last: Beat,
    silent_rounds: u32,
    live: bool,
}

/// The other workers, as this one has seen them.
#[derive(Debug, Default)]
pub struct LiveWorkers {
    seen: BTreeMap<String, Seen>,
}

impl LiveWorkers {
    /// A round: what the table holds of the other workers now. A round in which it could not be read does not count, so an
    /// outage of Postgres changes nothing.
    pub fn observe(&mut self, beats: Vec<Beat>) {
        let mut before = std::mem::take(&mut self.seen);
        for beat in beats {
            let seen = match before.remove(&beat.worker) {
                None => Seen { last: beat, silent_rounds: 0, live: false },
                Some(seen) if seen.last.beat != beat.beat => {
                    Seen { last: beat, silent_rounds: 0, live: true }
                }
                Some(seen) => {
                    let silent_rounds = seen.silent_rounds.saturating_add(1);
                    let live = seen.live && silent_rounds < SILENT_ROUNDS_MAX;
                    Seen { last: beat, silent_rounds, live }
                }
            };
            self.seen.insert(seen.last.worker.clone(), seen);
        }
    }

    /// The last beats of those that are live, by name.
    pub fn live(&self) -> impl Iterator<Item = &Beat> {
        self.seen.values().filter(|seen| seen.live).map(|seen| &seen.last)
    }

    /// The last beats of those that have long ended without removing their rows.
    pub fn ended(&self) -> Vec<Beat> {
        let ended = self.seen.values().filter(|seen| seen.silent_rounds >= REMOVED_AFTER);
        ended.map(|seen| seen.last.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(beats: &[(&str, i64)]) -> Vec<Beat> {
        let beat =
            |&(worker, beat): &(&str, i64)| Beat { worker: worker.to_owned(), beat, audits: true };
        beats.iter().map(beat).collect()
    }

    fn live(workers: &LiveWorkers) -> Vec<&str> {
        workers.live().map(|beat| beat.worker.as_str()).collect()
    }

    #[test]
    fn worker_is_live_while_its_beat_changes_and_for_two_silent_rounds() {
        let mut workers = LiveWorkers::default();
        workers.observe(beats(&[("killed", 7), ("runs", 1)]));
        assert_eq!(live(&workers), [""; 0], "a row alone shows nothing");
        workers.observe(beats(&[("killed", 7), ("runs", 2)]));
        assert_eq!(live(&workers), ["runs"]);
        for expected in [&["runs"][..], &["runs"], &[]] {
            workers.observe(beats(&[("killed", 7), ("runs", 2)]));
            assert_eq!(live(&workers), expected);
        }
        // It was stalled, and continues; its beat may also be lower, after a failover.
        workers.observe(beats(&[("killed", 7), ("runs", 1)]));
        assert_eq!(live(&workers), ["runs"]);
        // It removes its row when it ends.
        workers.observe(beats(&[("killed", 7)]));
        assert_eq!(live(&workers), [""; 0]);
    }

    #[test]
    fn rows_of_crashed_workers_are_removed_by_a_worker_that_runs_for_six_rounds() {
        let mut workers = LiveWorkers::default();
        let crashed = [("crashed", 7), ("crashed before", 3), ("crashed first", 1)];
        for round in 0..5 {
            workers.observe(beats(&[&crashed[..], &[("runs", round)]].concat()));
            assert_eq!(workers.ended(), []);
        }
        workers.observe(beats(&[&crashed[..], &[("runs", 5)]].concat()));
        assert_eq!(workers.ended(), beats(&crashed));
    }
}
