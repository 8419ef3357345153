//! What a rebuild checks before it changes anything: an epoch is used only where the rebuild can succeed.

use super::{RebuildError, Recovery, steps::orders_in};
use crate::{
    domain::{Epoch, Partition},
    ledger::{PartitionRow, PartitionStatus},
    redis::RedisCallError,
    stream::{Source, UndrainedEntry},
};

/// Entries per page.
const PAGE: usize = 1000;

fn not_ready(what: &'static str, source: impl Into<RebuildError>) -> RebuildError {
    RebuildError::NotReady { what, source: Box::new(source.into()) }
}

impl Recovery {
    /// Checks that Redis holds no data of another deployment, accepts writes and permits every command of a rebuild, that
    /// every entry in the streams can be read, and that there is an epoch left. Returns the highest epoch of the partition
    /// that Redis or this process knows; `None` for a new partition of which neither knows that it was open: it is opened,
    /// not rebuilt.
    pub(super) async fn check_ready(
        &self,
        row: PartitionRow,
    ) -> Result<Option<Epoch>, RebuildError> {
        let partition = row.partition;
        let meta = self.lifecycle.read_meta(partition).await;
        let meta = meta.map_err(|error| not_ready("Redis cannot be read", error))?;
        if meta.is_some_and(|meta| meta.deployment != self.deployment.id) {
            return Err(RebuildError::OtherDeployment);
        }
        let known = self.lifecycle.partitions().mark(partition).map(|(epoch, _)| epoch);
        let was_open = meta.is_some_and(|meta| meta.in_use) || known > Some(row.epoch);
        if row.status == PartitionStatus::New && !was_open {
            return Ok(None);
        }
        let above = meta.map(|meta| meta.epoch).max(known).unwrap_or(row.epoch);
        if row.epoch.max(above) >= Epoch::MAX {
            return Err(RebuildError::EpochsUsedUp);
        }
        let writable = self.lifecycle.check_writable(partition).await;
        writable.map_err(|error| not_ready("Redis refuses writes", error))?;
        let permitted = self.lifecycle.not_permitted_for(partition).await;
        if let Some(refused) =
            permitted.map_err(|error| not_ready("Redis cannot be read", error))?
        {
            return Err(not_ready("the user of Redis cannot be used", refused));
        }
        self.read_undrained(partition, async |_| Ok(())).await?;
        Ok(Some(above))
    }

    /// Reads every entry in the streams, a page at a time, and changes nothing.
    pub(super) async fn read_undrained(
        &self,
        partition: Partition,
        mut visit: impl AsyncFnMut(&[UndrainedEntry]) -> Result<(), RebuildError>,
    ) -> Result<(), RebuildError> {
        let unreadable = |error: RedisCallError| not_ready("Redis cannot be read", error);
        for source in [Source::Orders, Source::Dead] {
            // Reads only as many entries as there were at the start: new ones may be added while it reads.
            let mut left = self.streams.length(partition, source).await.map_err(unreadable)?;
            let mut after = String::new();
            while left > 0 {
                let page = self.streams.undrained(partition, source, &after, PAGE).await;
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
