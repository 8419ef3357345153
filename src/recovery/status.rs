//! What this process last saw of the partitions: which are fenced, how far their rebuilds are, and what failed. For
//! readiness, metrics and the log.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{domain::Partition, redis::FenceReason};

/// How far a rebuild is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// What is done, such as "orders drained".
    pub what: &'static str,
    /// How many of them.
    pub done: usize,
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

/// The status of every partition; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Status {
    now: Arc<Mutex<StatusSnapshot>>,
}

/// The status of the partitions at one moment.
#[derive(Debug, Clone, Default)]
pub struct StatusSnapshot {
    /// The partitions that were fenced at the last check, and why.
    pub fenced: BTreeMap<Partition, FenceReason>,
    /// Why partitions could not be opened or rebuilt at the last attempt.
    pub failures: BTreeMap<Partition, String>,
    /// How far the rebuilds of this process are.
    pub stages: BTreeMap<Partition, Stage>,
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, StatusSnapshot> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status now.
    pub fn snapshot(&self) -> StatusSnapshot {
        self.lock().clone()
    }

    /// Replaces the fenced partitions. That a partition is closed does not say why: the earlier reason is kept if it is
    /// the cause. The reasons that hold only for a while (a replica, another epoch, an unknown state) are not kept.
    pub(super) fn set_fenced(&self, fenced: impl IntoIterator<Item = (Partition, FenceReason)>) {
        let mut status = self.lock();
        let keep = |(partition, reason): (Partition, FenceReason)| {
            let earlier = status.fenced.get(&partition).copied().filter(|earlier| {
                let is_temporary = matches!(
                    earlier,
                    FenceReason::Replica | FenceReason::Epoch | FenceReason::Unknown
                );
                reason == FenceReason::Closed && !is_temporary
            });
            (partition, earlier.unwrap_or(reason))
        };
        let fenced = fenced.into_iter().map(keep).collect();
        status.fenced = fenced;
    }

    /// The partition is open: neither fenced nor failing.
    pub(super) fn set_open(&self, partition: Partition) {
        let mut status = self.lock();
        status.fenced.remove(&partition);
        status.failures.remove(&partition);
    }

    /// An attempt failed; returns whether the failure differs from the last one, so that it is logged once.
    pub(super) fn set_failure(&self, partition: Partition, failure: &str) -> bool {
        self.lock().failures.insert(partition, failure.to_owned()).as_deref() != Some(failure)
    }

    /// A rebuild of the partition begins.
    pub(super) fn progress(&self, partition: Partition) -> Progress {
        Progress { status: self.clone(), partition }
    }
}

/// How far one rebuild is; removed from the status when it is dropped.
pub(super) struct Progress {
    status: Status,
    partition: Partition,
}

impl Progress {
    /// A stage begins, of which nothing is done yet.
    pub(super) fn begin(&self, what: &'static str, of: Option<u64>) {
        self.status.lock().stages.insert(self.partition, Stage { what, done: 0, of });
    }

    /// Some more of the stage is done.
    pub(super) fn add(&self, more: usize) {
        if let Some(stage) = self.status.lock().stages.get_mut(&self.partition) {
            stage.done += more;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.status.lock().stages.remove(&self.partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    fn partition() -> Partition {
        PartitionCount::try_from(8).unwrap().get_partition(3).unwrap()
    }

    #[test]
    fn failure_is_new_once_and_ends_when_the_partition_is_open() {
        let (partition, status) = (partition(), Status::default());
        status.set_fenced([(partition, FenceReason::Replid)]);
        status.set_fenced([(partition, FenceReason::Closed)]);
        assert_eq!(status.snapshot().fenced[&partition], FenceReason::Replid, "the cause is kept");
        assert!(status.set_failure(partition, "Redis is read-only"));
        assert!(!status.set_failure(partition, "Redis is read-only"));
        assert!(status.set_failure(partition, "Redis is full"));
        assert_eq!(status.snapshot().failures[&partition], "Redis is full");
        status.set_open(partition);
        assert!(status.snapshot().fenced.is_empty() && status.snapshot().failures.is_empty());
    }

    #[test]
    fn temporary_reason_is_replaced_when_the_partition_is_closed() {
        let (partition, status) = (partition(), Status::default());
        for temporary in [FenceReason::Replica, FenceReason::Epoch, FenceReason::Unknown] {
            status.set_fenced([(partition, temporary)]);
            assert_eq!(status.snapshot().fenced[&partition], temporary);
            status.set_fenced([(partition, FenceReason::Closed)]);
            assert_eq!(status.snapshot().fenced[&partition], FenceReason::Closed);
        }
    }

    #[test]
    fn stage_of_a_rebuild_is_shown_until_the_rebuild_ends() {
        let (partition, status) = (partition(), Status::default());
        let progress = status.progress(partition);
        assert!(status.snapshot().stages.is_empty());
        progress.begin("orders drained", Some(700));
        progress.add(500);
        assert_eq!(status.snapshot().stages[&partition].to_string(), "500 of 700 orders drained");
        progress.begin("request ids restored", None);
        progress.add(2);
        progress.add(3);
        assert_eq!(status.snapshot().stages[&partition].to_string(), "5 request ids restored");
        drop(progress);
        assert!(status.snapshot().stages.is_empty());
    }
}
