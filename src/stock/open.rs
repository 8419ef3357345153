//! `lua/open.lua`: a new partition's first life.

use redis::AsyncCommands as _;
use uuid::Uuid;

use super::Stock;
use crate::{
    domain::{Epoch, Partition},
    redis::{FenceError, GROUP},
};

/// What opening a new partition found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// It is open, and empty.
    Opened,
    /// Another attempt is further.
    Late,
    /// This key is there already and is not ours.
    Foreign {
        /// The key.
        key: String,
    },
}

impl Stock {
    /// A key of this partition that is not this deployment's, if there is one.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn unrecognized(
        &self,
        partition: Partition,
        deployment: Uuid,
    ) -> Result<Option<String>, FenceError> {
        let [meta, others @ ..] = self.keys_of_new(partition);
        if let Some(owner) = self.owner(partition).await? {
            return Ok((owner != deployment).then_some(meta));
        }
        let mut connection = self.partitions.connection();
        for key in others {
            if connection.exists(&key).await? {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// As `lua/open.lua` wants them: meta first.
    fn keys_of_new(&self, partition: Partition) -> [String; 8] {
        let keys = self.partitions.keys();
        [
            keys.meta(partition),
            keys.orders(partition),
            keys.stock(partition),
            keys.supply(partition),
            keys.dead(partition),
            keys.catalogue(partition),
            keys.bought(partition),
            keys.dead_index(partition),
        ]
    }

    /// Writes the meta of a partition that is still new in the ledger, under an epoch that is this attempt's
    /// alone; the timeline is that of the ledger before it gave that epoch.
    ///
    /// # Errors
    ///
    /// When Redis is away; repeat it.
    pub async fn open(
        &self,
        partition: Partition,
        (deployment, timeline): (Uuid, Option<&str>),
        epoch: Epoch,
    ) -> Result<Opening, FenceError> {
        let keys = self.keys_of_new(partition);
        let (deployment, epoch) = (deployment.to_string(), epoch.to_string());
        let args = [deployment.as_str(), epoch.as_str(), GROUP, timeline.unwrap_or_default()];
        let answer = self.partitions.call_script(&self.scripts.open, &keys, &args).await?;
        match answer.as_slice() {
            [status] if status == "opened" => Ok(Opening::Opened),
            [status] if status == "late" => Ok(Opening::Late),
            [status, key] if status == "foreign" => Ok(Opening::Foreign { key: key.clone() }),
            _ => Err(FenceError::Malformed(answer)),
        }
    }
}
