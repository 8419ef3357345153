//! What a rebuild checks before it changes anything: an epoch is spent only where it can succeed.

use super::{RebuildError, Recovery, rebuild::orders};
use crate::{
    domain::{Epoch, Partition},
    ledger::PartitionRow,
    stream::{Source, Surviving},
};

/// Entries a page.
const PAGE: usize = 1000;

fn not_ready(what: &'static str, source: impl Into<RebuildError>) -> RebuildError {
    RebuildError::NotReady { what, source: Box::new(source.into()) }
}

impl Recovery {
    /// Checks that Redis is ours and takes writes, that every surviving entry can be read, and that there is an
    /// epoch left. Returns the highest epoch that is known of the partition beside the ledger's.
    pub(super) async fn check_ready(&self, seen: PartitionRow) -> Result<Epoch, RebuildError> {
        let partition = seen.partition;
        let held = self.lifecycle.held(partition).await;
        let held = held.map_err(|error| not_ready("Redis cannot be read", error))?;
        if held.is_some_and(|held| held.owner != self.deployment.id) {
            return Err(RebuildError::Foreign);
        }
        let believed = self.lifecycle.partitions().seen(partition).map(|(epoch, _)| epoch);
        let above = held.map(|held| held.epoch).max(believed).unwrap_or(seen.epoch);
        if seen.epoch.max(above) >= Epoch::LAST {
            return Err(RebuildError::EpochsUsedUp(partition));
        }
        let writable = self.lifecycle.check_writable(partition).await;
        writable.map_err(|error| not_ready("Redis takes no writes", error))?;
        self.survey(partition, async |_| Ok(())).await?;
        Ok(above)
    }

    /// Reads every surviving entry, a page at a time, and changes nothing.
    pub(super) async fn survey(
        &self,
        partition: Partition,
        mut visit: impl AsyncFnMut(&[Surviving]) -> Result<(), RebuildError>,
    ) -> Result<(), RebuildError> {
        let away = |error| not_ready("Redis cannot be read", RebuildError::from(error));
        for source in [Source::Orders, Source::Dead] {
            // What is added meanwhile is not waited for.
            let mut left = self.streams.length(partition, source).await.map_err(away)?;
            let mut after = String::new();
            while left > 0 {
                let page = self.streams.surviving(partition, source, &after, PAGE).await;
                let page = page.map_err(away)?;
                let Some(last) = page.last() else { break };
                orders(partition, &page)?;
                visit(&page).await?;
                after.clone_from(&last.entry.id);
                left = left.saturating_sub(u64::try_from(page.len()).unwrap_or(u64::MAX));
            }
        }
        Ok(())
    }
}
