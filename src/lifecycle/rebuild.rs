//! The start and the end of a rebuild (R7, R9). Each script of a rebuild acts only while the partition is closed under
//! this rebuild's epoch, on the instance of Redis on which it began.

use super::Lifecycle;
use crate::{
    domain::PartitionEpoch,
    redis::{FenceError, GROUP, script},
};

/// What the start of a rebuild found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebuildStart {
    /// The partition is closed under this rebuild's epoch.
    Begun,
    /// Another rebuild has begun in a later epoch.
    Late,
    /// Redis holds another deployment's data.
    Foreign,
}

/// What an attempt to open a rebuilt partition found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reopened {
    /// It is open.
    Opened,
    /// Its streams hold entries.
    NotEmpty,
}

script!(BEGIN_REBUILD: RebuildStart = "begin_rebuild", include_str!("../../lua/begin_rebuild.lua"),
    [Meta, Stock, Supply, Catalogue, Bought, Idempotency] {
    ["begun"] => RebuildStart::Begun,
    ["late"] => RebuildStart::Late,
    ["foreign"] => RebuildStart::Foreign,
});

script!(REOPEN: Reopened = "reopen", include_str!("../../lua/reopen.lua"),
    [Meta, Orders, Dead, DeadIndex] {
    ["opened"] => Reopened::Opened,
    ["not_empty"] => Reopened::NotEmpty,
});

impl Lifecycle {
    /// Closes a partition under the epoch that the ledger has given this rebuild.
    pub async fn begin_rebuild(&self, at: PartitionEpoch) -> Result<RebuildStart, FenceError> {
        let window_ms = self.idempotency_window_ms.to_string();
        self.partitions.run_in(at, &BEGIN_REBUILD, &[&window_ms]).await
    }

    /// Opens a partition that is filled and has nothing in flight.
    pub async fn reopen(
        &self,
        at: PartitionEpoch,
        timeline: Option<&str>,
    ) -> Result<Reopened, FenceError> {
        self.partitions.run_in(at, &REOPEN, &[GROUP, timeline.unwrap_or_default()]).await
    }
}
