//! How far the rebuilds of this process are: for whoever waits for them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::domain::Partition;

/// What a rebuild is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// In words, as "orders drained".
    pub what: &'static str,
    /// How many of them.
    pub done: u64,
    /// Of how many, where that is known.
    pub of: Option<u64>,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, done, of } = self;
        match of {
            Some(of) => write!(f, "{done} of {of} {what}"),
            None => write!(f, "{done} {what}"),
        }
    }
}

/// Every rebuild under way; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    stages: Arc<Mutex<BTreeMap<Partition, Stage>>>,
}

impl Progress {
    fn stages(&self) -> MutexGuard<'_, BTreeMap<Partition, Stage>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn all(&self) -> Vec<(Partition, Stage)> {
        self.stages().iter().map(|(partition, stage)| (*partition, *stage)).collect()
    }

    pub(super) fn of(&self, partition: Partition) -> Underway {
        Underway { progress: self.clone(), partition }
    }
}

/// One rebuild; forgotten when it is dropped.
pub(super) struct Underway {
    progress: Progress,
    partition: Partition,
}

impl Underway {
    /// Nothing of this is done yet.
    pub(super) fn begin(&self, what: &'static str, of: Option<u64>) {
        self.progress.stages().insert(self.partition, Stage { what, done: 0, of });
    }

    /// So many more are done.
    pub(super) fn add(&self, more: usize) {
        if let Some(stage) = self.progress.stages().get_mut(&self.partition) {
            stage.done += u64::try_from(more).unwrap_or(u64::MAX);
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.progress.stages().remove(&self.partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    #[test]
    fn a_rebuild_tells_how_far_it_is_and_is_forgotten_when_it_ends() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let progress = Progress::default();
        let underway = progress.of(partition);
        assert!(progress.all().is_empty());
        underway.begin("orders drained", Some(700));
        underway.add(500);
        assert_eq!(progress.all()[0].1.to_string(), "500 of 700 orders drained");
        underway.begin("request ids restored", None);
        underway.add(2);
        underway.add(3);
        assert_eq!(progress.all()[0].1.to_string(), "5 request ids restored");
        drop(underway);
        assert!(progress.all().is_empty());
    }
}
