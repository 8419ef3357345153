//! What a rebuild checks before it changes anything: an epoch is used only where the rebuild can succeed.

use super::{RebuildError, Recovery, steps::orders_in};
use crate::{
    domain::{Epoch, Partition},
    ledger::{PartitionRow, PartitionStatus},
    lifecycle::Meta,
    redis::RedisCallError,
    stream::{Source, UndrainedEntry},
};

/// Entries per page.
const PAGE: usize = 1000;

fn not_ready(what: &'static str, source: impl Into<RebuildError>) -> RebuildError {
    RebuildError::NotReady { what, source: Box::new(source.into()) }
}

/// Whether another Redis was opened after this one, and this one has lost nothing. What lost data, was promoted or has
/// restarted is not the instance that wrote its meta. A rebuild there would void what the other one has accepted and what
/// is not stored yet, only because its address is not known here.
fn was_left_behind(meta: Meta, last_open: Epoch) -> bool {
    meta.is_of_instance && meta.epoch < last_open
}

impl Recovery {
    /// Checks that Redis holds no data of another deployment, accepts writes and permits every command of a rebuild, that
    /// every entry in the streams can be read, that there is an epoch left, and that no later epoch was opened on another
    /// Redis. Returns the highest epoch of the partition that Redis or this process knows; `None` for a new partition of
    /// which neither knows that it was open: it is opened, not rebuilt.
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
        if let Some(meta) = meta
            && self.lifecycle.partitions().is_discovered()
        {
            let last_open = self.ledger.last_open(partition).await?;
            if was_left_behind(meta, last_open) {
                return Err(RebuildError::LeftBehind { meta: meta.epoch, last_open });
            }
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_an_instance_that_lost_nothing_is_left_behind_by_a_later_epoch() {
        let meta = |epoch, is_of_instance| Meta {
            deployment: Uuid::nil(),
            epoch: Epoch(epoch),
            seq: 0,
            in_use: true,
            is_of_instance,
        };
        assert!(was_left_behind(meta(5, true), Epoch(6)));
        // It was promoted, or has restarted.
        assert!(!was_left_behind(meta(5, false), Epoch(6)));
        // The rebuild that closed the partition in the ledger was interrupted.
        assert!(!was_left_behind(meta(6, true), Epoch(6)));
        // The rebuild that closed it in Redis was.
        assert!(!was_left_behind(meta(7, true), Epoch(6)));
    }
}
