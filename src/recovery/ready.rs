//! What a rebuild checks before it changes anything: an epoch is used only where the rebuild can succeed.

use super::{RebuildError, Recovery, steps::orders_in};
use crate::{
    domain::{Epoch, Partition},
    ledger::{PartitionRow, PartitionStatus},
    redis::RedisCallError,
    stream::{Source, Surviving},
};

/// Entries per page.
const PAGE: usize = 1000;

fn not_ready(what: &'static str, source: impl Into<RebuildError>) -> RebuildError {
    RebuildError::NotReady { what, source: Box::new(source.into()) }
}

impl Recovery {
    /// Checks that Redis holds data of this deployment and accepts writes, that every surviving entry can be read, and
    /// that there is an epoch left. Returns the highest epoch of the partition that Redis or this process knows; `None` for
    /// a new partition of which neither knows that it was open: it is opened, not rebuilt.
    pub(super) async fn check_ready(
        &self,
        seen: PartitionRow,
    ) -> Result<Option<Epoch>, RebuildError> {
        let partition = seen.partition;
        let held = self.lifecycle.held(partition).await;
        let held = held.map_err(|error| not_ready("Redis cannot be read", error))?;
        if held.is_some_and(|held| held.owner != self.deployment.id) {
            return Err(RebuildError::Foreign);
        }
        let known = self.lifecycle.partitions().seen(partition).map(|(epoch, _)| epoch);
        let was_open = held.is_some_and(|held| held.in_use) || known > Some(seen.epoch);
        if seen.status == PartitionStatus::New && !was_open {
            return Ok(None);
        }
        let above = held.map(|held| held.epoch).max(known).unwrap_or(seen.epoch);
        if seen.epoch.max(above) >= Epoch::MAX {
            return Err(RebuildError::EpochsUsedUp);
        }
        let writable = self.lifecycle.check_writable(partition).await;
        writable.map_err(|error| not_ready("Redis refuses writes", error))?;
        self.read_surviving(partition, async |_| Ok(())).await?;
        Ok(Some(above))
    }

    /// Reads every surviving entry, a page at a time, and changes nothing.
    pub(super) async fn read_surviving(
        &self,
        partition: Partition,
        mut visit: impl AsyncFnMut(&[Surviving]) -> Result<(), RebuildError>,
    ) -> Result<(), RebuildError> {
        let unreadable = |error: RedisCallError| not_ready("Redis cannot be read", error);
        for source in [Source::Orders, Source::Dead] {
            // Reads only as many entries as there were at the start: new ones may be added while it reads.
            let mut left = self.streams.length(partition, source).await.map_err(unreadable)?;
            let mut after = String::new();
            while left > 0 {
                let page = self.streams.surviving(partition, source, &after, PAGE).await;
                let page = page.map_err(unreadable)?;
                let Some(last) = page.last() else { break };
                orders_in(partition, &page)?;
                visit(&page).await?;
                after.clone_from(&last.entry.id);
                left = left.saturating_sub(u64::try_from(page.len()).unwrap_or(u64::MAX));
            }
        }
        Ok(())
    }
}
