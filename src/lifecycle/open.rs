//! A partition is opened: for the first time, and by a rebuild (R7, R9). Each script of a rebuild acts only while the
//! partition is closed under this rebuild's epoch, on the instance of Redis on which it began.

use redis::AsyncCommands as _;
use uuid::Uuid;

use super::Lifecycle;
use crate::{
    domain::{Partition, PartitionEpoch},
    redis::{FenceError, GROUP, script},
};

/// What opening a new partition found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// It is open, and empty.
    Opened,
    /// Another attempt has opened it in a later epoch.
    Superseded,
    /// This key exists and belongs to another deployment.
    OtherDeployment(String),
}

// The keys that must not exist yet follow meta.
script!(OPEN: Opening = "open", include_str!("../../lua/open.lua"),
    [Meta, Orders, Stock, Supply, Dead, Catalogue, Bought, DeadIndex] {
    ["opened"] => Opening::Opened,
    ["superseded"] => Opening::Superseded,
    ["other_deployment", key] => Opening::OtherDeployment(key.to_owned()),
});

/// What the start of a rebuild found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebuildStart {
    /// The partition is closed under this rebuild's epoch.
    Begun,
    /// Another rebuild has begun in a later epoch.
    Superseded,
    /// Redis holds another deployment's data.
    OtherDeployment,
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
    ["superseded"] => RebuildStart::Superseded,
    ["other_deployment"] => RebuildStart::OtherDeployment,
});

script!(REOPEN: Reopened = "reopen", include_str!("../../lua/reopen.lua"),
    [Meta, Orders, Dead, DeadIndex] {
    ["opened"] => Reopened::Opened,
    ["not_empty"] => Reopened::NotEmpty,
});

impl Lifecycle {
    /// A key of this partition that belongs to another deployment, if there is one.
    pub async fn other_deployments_key(
        &self,
        partition: Partition,
        deployment: Uuid,
    ) -> Result<Option<String>, FenceError> {
        let mut keys = OPEN.keys.iter().map(|key| self.partitions.key(partition, *key));
        if let Some(meta) = self.read_meta(partition).await? {
            return Ok(keys.next().filter(|_key| meta.deployment != deployment));
        }
        let mut connection = self.partitions.connection();
        for key in keys.skip(1) {
            if connection.exists(&key).await? {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// Writes the meta of a partition that is still new in the ledger, under an epoch that only this attempt has;
    /// the timeline is that of the ledger before it gave that epoch.
    pub async fn open(
        &self,
        at: PartitionEpoch,
        timeline: Option<&str>,
    ) -> Result<Opening, FenceError> {
        self.partitions.run_in_epoch(at, &OPEN, &[GROUP, timeline.unwrap_or_default()]).await
    }

    /// Closes a partition under the epoch that the ledger has given this rebuild.
    pub async fn begin_rebuild(&self, at: PartitionEpoch) -> Result<RebuildStart, FenceError> {
        let window_ms = self.idempotency_window.window_ms.to_string();
        self.partitions.run_in_epoch(at, &BEGIN_REBUILD, &[&window_ms]).await
    }

    /// Opens a partition that is filled and has nothing in flight.
    pub async fn reopen(
        &self,
        at: PartitionEpoch,
        timeline: Option<&str>,
    ) -> Result<Reopened, FenceError> {
        self.partitions.run_in_epoch(at, &REOPEN, &[GROUP, timeline.unwrap_or_default()]).await
    }
}
