//! What the watch of this process last saw: for readiness, metrics and the log.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::domain::Partition;

/// Clones share what was seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched {
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    fenced: Vec<Partition>,
    /// Why a partition could not be opened or rebuilt when that was last tried.
    failures: BTreeMap<Partition, String>,
}

impl Watched {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fenced(&self) -> Vec<Partition> {
        self.seen().fenced.clone()
    }

    /// Replaces the list of fenced partitions.
    pub(super) fn see_fenced(&self, fenced: Vec<Partition>) {
        self.seen().fenced = fenced;
    }

    /// The partition is open: neither fenced nor failing.
    pub(super) fn see_open(&self, partition: Partition) {
        let mut seen = self.seen();
        seen.fenced.retain(|fenced| *fenced != partition);
        seen.failures.remove(&partition);
    }

    /// An attempt failed; returns whether this is another failure than before, so that the log says it once.
    pub(super) fn see_failure(&self, partition: Partition, why: String) -> bool {
        let mut seen = self.seen();
        let is_new = seen.failures.get(&partition) != Some(&why);
        seen.failures.insert(partition, why);
        is_new
    }

    pub(super) fn failures(&self) -> BTreeMap<Partition, String> {
        self.seen().failures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    #[test]
    fn a_failure_is_new_once_and_ends_when_the_partition_is_open() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let watched = Watched::default();
        watched.see_fenced(vec![partition]);
        assert!(watched.see_failure(partition, "Redis is read-only".to_owned()));
        assert!(!watched.see_failure(partition, "Redis is read-only".to_owned()));
        assert!(watched.see_failure(partition, "Redis is full".to_owned()));
        assert_eq!(watched.failures()[&partition], "Redis is full");
        watched.see_open(partition);
        assert!(watched.fenced().is_empty() && watched.failures().is_empty());
    }
}
