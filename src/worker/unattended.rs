//! Notices partitions whose orders wait although another worker owns them: its consumer is paused, or it counts other
//! workers than this one does. The waiting orders are then read here as well.
//!
//! Must never: keep a partition from being read. It only adds readers.

use std::{collections::HashMap, time::Duration};

use crate::{domain::Partition, stream::Progress};

/// After this many checks without progress, entries that were not read are read here.
const UNREAD_CHECKS: u32 = 2;
/// The same for entries that were read and not settled, in addition to the time until they are idle.
const PENDING_CHECKS: u32 = 3;
/// For so many rounds a partition is then read here.
pub const READ_ROUNDS: u32 = 60;

/// What was seen of partitions that other workers own.
#[derive(Debug)]
pub struct Unattended {
    /// The last progress of each, and at how many checks since then it was the same.
    seen: HashMap<Partition, (Progress, u32)>,
    /// Those that are read here, and for how many more rounds.
    read_here: HashMap<Partition, u32>,
    pending_checks: u32,
}

impl Unattended {
    /// Nothing was seen yet. An entry is taken over after it was idle for `takeover_idle`; a check follows after each
    /// `interval`.
    pub fn new(takeover_idle: Duration, interval: Duration) -> Self {
        let idle_checks = takeover_idle.as_millis().div_ceil(interval.as_millis().max(1));
        let idle_checks = u32::try_from(idle_checks).unwrap_or(u32::MAX);
        let pending_checks = idle_checks.saturating_add(PENDING_CHECKS);
        Self { seen: HashMap::new(), read_here: HashMap::new(), pending_checks }
    }

    /// A round has ended.
    pub fn end_round(&mut self) {
        self.read_here.retain(|_, rounds| {
            *rounds -= 1;
            *rounds > 0
        });
    }

    /// A check of a partition that is not read here; returns whether its orders wait and it is read here from now on.
    pub fn check(&mut self, partition: Partition, progress: Option<Progress>) -> bool {
        let Some(progress) = progress else {
            self.seen.remove(&partition);
            return false;
        };
        let seen = self.seen.get(&partition).filter(|(last, _)| *last == progress);
        let unchanged = seen.map_or(0, |(_, unchanged)| unchanged.saturating_add(1));
        let limit = if progress.has_unread { UNREAD_CHECKS } else { self.pending_checks };
        if unchanged < limit {
            self.seen.insert(partition, (progress, unchanged));
            return false;
        }
        self.seen.remove(&partition);
        self.read_here.insert(partition, READ_ROUNDS);
        true
    }

    /// The partitions that are read here for at most so many more rounds.
    pub fn ending(&self, rounds: u32) -> Vec<Partition> {
        let ending = self.read_here.iter().filter(|(_, left)| **left <= rounds);
        ending.map(|(partition, _)| *partition).collect()
    }

    /// The owner of a partition was not seen to read it: it is read here for as long again. Otherwise its orders would wait
    /// once more until that is noticed.
    pub fn read_on(&mut self, partition: Partition) {
        self.read_here.insert(partition, READ_ROUNDS);
    }

    /// Whether a partition that another worker owns is read here.
    pub fn is_read_here(&self, partition: Partition) -> bool {
        self.read_here.contains_key(&partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    fn progress(oldest: &str, last_read: &str, has_unread: bool) -> Option<Progress> {
        Some(Progress { oldest: oldest.to_owned(), last_read: last_read.to_owned(), has_unread })
    }

    #[test]
    fn partition_whose_owner_still_does_not_read_it_is_read_here_without_a_gap() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let mut unattended = Unattended::new(Duration::from_secs(30), Duration::from_secs(5));
        for _ in 0..3 {
            unattended.check(partition, progress("1-7", "1-6", true));
        }
        let (mut questions, mut rounds_without_reader) = (0, 0);
        for round in 1..=180 {
            unattended.end_round();
            rounds_without_reader += u32::from(!unattended.is_read_here(partition));
            // As at each check: the owner has not read.
            if round % 5 == 0 {
                for ending in unattended.ending(5) {
                    questions += 1;
                    unattended.read_on(ending);
                }
            }
        }
        assert_eq!((questions, rounds_without_reader), (3, 0));
        for _ in 0..60 {
            unattended.end_round();
        }
        assert!(!unattended.is_read_here(partition), "its owner reads again");
    }

    #[test]
    fn partition_without_progress_is_read_here_for_a_minute() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let mut unattended = Unattended::new(Duration::from_secs(30), Duration::from_secs(5));
        let mut check = |progress| unattended.check(partition, progress);
        // Its owner is slow, and continues.
        for last_read in ["1-4", "1-5", "1-5", "1-6", "1-6"] {
            assert!(!check(progress("1-4", last_read, true)));
        }
        // All is settled; then its owner reads nothing more.
        assert!(!check(None));
        let checks = [(); 3].map(|()| check(progress("1-7", "1-6", true)));
        assert_eq!(checks, [false, false, true]);
        assert!(unattended.is_read_here(partition));
        for _ in 0..59 {
            unattended.end_round();
        }
        assert!(unattended.is_read_here(partition));
        unattended.end_round();
        assert!(!unattended.is_read_here(partition));
        // Entries that were read are first given the time until they are idle.
        for _ in 0..9 {
            assert!(!unattended.check(partition, progress("1-7", "1-7", false)));
        }
        assert!(unattended.check(partition, progress("1-7", "1-7", false)));
    }
}
