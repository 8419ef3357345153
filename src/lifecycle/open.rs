//! `lua/open.lua`: opens a new partition for the first time.

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
    Late,
    /// This key exists and does not belong to this deployment.
    Foreign {
        /// The key.
        key: String,
    },
}

// The keys that must not exist yet follow meta.
script!(OPEN: Opening = "open", include_str!("../../lua/open.lua"),
    [Meta, Orders, Stock, Supply, Dead, Catalogue, Bought, DeadIndex] {
    ["opened"] => Opening::Opened,
    ["late"] => Opening::Late,
    ["foreign", key] => Opening::Foreign { key: key.to_owned() },
});

impl Lifecycle {
    /// A key of this partition that does not belong to this deployment, if there is one.
    pub async fn unrecognized(
        &self,
        partition: Partition,
        deployment: Uuid,
    ) -> Result<Option<String>, FenceError> {
        let mut keys = OPEN.keys.iter().map(|key| self.partitions.key(partition, *key));
        if let Some(held) = self.held(partition).await? {
            return Ok(keys.next().filter(|_meta| held.owner != deployment));
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
        self.partitions.run_in(at, &OPEN, &[GROUP, timeline.unwrap_or_default()]).await
    }
}
