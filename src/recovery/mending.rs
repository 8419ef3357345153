//! What the watch over fenced partitions remembers from look to look.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{AT_A_TIME, RebuildError, Rebuilt};
use crate::{domain::Partition, fence::FenceReason, ledger::PartitionRow};

/// Between attempts at rebuilding a partition.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two lines on how far rebuilds are.
const PROGRESS: Duration = Duration::from_secs(5);

type Ended = (Partition, Result<Option<Rebuilt>, RebuildError>);

/// Rebuilds under way, and what was said of them.
#[derive(Default)]
pub(super) struct Mending {
    /// Broken off when this is dropped.
    pub(super) at_work: JoinSet<Ended>,
    pub(super) busy: HashSet<Partition>,
    /// When the last attempt ended.
    tried: HashMap<Partition, Instant>,
    /// Why each is fenced, as the log has it.
    pub(super) told: HashMap<Partition, FenceReason>,
    /// What went wrong last, as the log has it.
    failed: HashMap<Partition, String>,
    told_progress: Option<Instant>,
}

impl Mending {
    /// Whether another attempt may begin now.
    pub(super) fn is_due(&self, partition: Partition) -> bool {
        let rested = self.tried.get(&partition).is_none_or(|at| at.elapsed() >= AGAIN);
        rested && !self.busy.contains(&partition) && self.busy.len() < AT_A_TIME
    }

    /// An attempt ended; a failure is told once, and again when it is another one.
    pub(super) fn ended(&mut self, ended: Result<Ended, JoinError>) {
        let (partition, rebuilt) = match ended {
            Ok(ended) => ended,
            Err(error) => match error.try_into_panic() {
                // As if it had happened in the watch itself.
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_broken_off) => return,
            },
        };
        self.busy.remove(&partition);
        self.tried.insert(partition, Instant::now());
        let Err(error) = rebuilt else { return };
        let said = error.to_string();
        if self.failed.get(&partition) != Some(&said) {
            tracing::error!(%partition, error = &error as &dyn std::error::Error, "not rebuilt yet");
            self.failed.insert(partition, said);
        }
    }

    /// What is no longer fenced begins anew.
    pub(super) fn forget_others(&mut self, fenced: &[(PartitionRow, FenceReason)]) {
        let fenced: HashSet<Partition> = fenced.iter().map(|(row, _)| row.partition).collect();
        self.tried.retain(|partition, _| fenced.contains(partition));
        self.told.retain(|partition, _| fenced.contains(partition));
        self.failed.retain(|partition, _| fenced.contains(partition));
    }

    /// Whether it is time for a word on how far rebuilds are.
    pub(super) fn tell_progress(&mut self) -> bool {
        if self.busy.is_empty() {
            self.told_progress = None;
            return false;
        }
        let since = self.told_progress.get_or_insert_with(Instant::now);
        let due = since.elapsed() >= PROGRESS;
        if due {
            *since = Instant::now();
        }
        due
    }
}
