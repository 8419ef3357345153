//! A partition is opened: for the first time, and by a rebuild (R7, R9). Each script of a rebuild acts only while the
//! partition is closed under this rebuild's epoch, on the instance of Redis on which it began.

use redis::AsyncCommands as _;
use uuid::Uuid;

use super::Lifecycle;
use crate::{
    domain::{Partition, PartitionEpoch},
    redis::{GROUP, RedisCallError, script},
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
    /// It was opened before and used. The ledger lost that commit, or another process opened the partition after this one
    /// had read the ledger.
    InUse,
}

// The keys that must not exist yet follow meta.
script!(OPEN: Opening = "open", include_str!("../../lua/open.lua"),
    [Meta, Orders, Stock, Supply, Dead, Catalogue, Bought, DeadIndex] {
    ["opened"] => Opening::Opened,
    ["superseded"] => Opening::Superseded,
    ["other_deployment", key] => Opening::OtherDeployment(key.to_owned()),
    ["in_use"] => Opening::InUse,
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
    [Meta, Stock, Supply, Catalogue, Bought, Idempotency, Lost] {
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
    /// What Redis would answer to every attempt at opening this partition, if it holds data that prevent it.
    pub async fn prevented_opening(
        &self,
        partition: Partition,
        deployment: Uuid,
    ) -> Result<Option<Opening>, RedisCallError> {
        let mut keys = OPEN.keys.iter().map(|key| self.partitions.key(partition, *key));
        match self.read_meta(partition).await? {
            Some(meta) if meta.deployment != deployment => {
                return Ok(keys.next().map(Opening::OtherDeployment));
            }
            Some(meta) => return Ok(meta.in_use.then_some(Opening::InUse)),
            None => {}
        }
        let mut connection = self.partitions.connection(partition);
        for key in keys.skip(1) {
            if connection.exists(&key).await? {
                return Ok(Some(Opening::OtherDeployment(key)));
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
    ) -> Result<Opening, RedisCallError> {
        self.partitions.run_in_epoch(at, &OPEN, &[GROUP, timeline.unwrap_or_default()]).await
    }

    /// Closes a partition under the epoch that the ledger has given this rebuild.
    pub async fn begin_rebuild(&self, at: PartitionEpoch) -> Result<RebuildStart, RedisCallError> {
        let window_ms = self.idempotency_window.window_ms.to_string();
        self.partitions.run_in_epoch(at, &BEGIN_REBUILD, &[&window_ms]).await
    }

    /// Opens a partition that is filled and has nothing in flight.
    pub async fn reopen(
        &self,
        at: PartitionEpoch,
        timeline: Option<&str>,
    ) -> Result<Reopened, RedisCallError> {
        self.partitions.run_in_epoch(at, &REOPEN, &[GROUP, timeline.unwrap_or_default()]).await
    }
}
