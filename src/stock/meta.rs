//! What Redis holds of a partition and whether it takes writes: asked without the fence, and changing nothing.

use redis::AsyncCommands as _;
use uuid::Uuid;

use super::Stock;
use crate::{
    domain::{Epoch, Partition, ProductId},
    redis::FenceError,
};

/// A partition's meta, as it is: nobody has checked that it may be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Whose data it is.
    pub owner: Uuid,
    /// Its epoch, as Redis has it.
    pub epoch: Epoch,
    /// Accepts in this epoch.
    pub seq: u64,
}

/// What Redis remembers of the ledger since the partition was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinceOpened {
    /// The highest seq of this epoch that was settled as stored; 0 for none.
    pub stored: u64,
    /// The timeline of the ledger before the partition was opened, if that is known.
    pub timeline: Option<String>,
}

impl Stock {
    /// What Redis holds of a partition, if anything: asked before an epoch is spent on it.
    ///
    /// # Errors
    ///
    /// When Redis is away; `Fenced` when it is a replica.
    pub async fn held(&self, partition: Partition) -> Result<Option<Held>, FenceError> {
        let keys = [self.partitions.keys().meta(partition)];
        let answer = self.partitions.call_script(&self.scripts.held, &keys, &[]).await?;
        match answer.as_slice() {
            [status] if status == "none" => Ok(None),
            [status, owner, epoch, seq] if status == "held" => {
                let (Ok(epoch), Ok(seq)) = (epoch.parse(), seq.parse()) else {
                    return Err(FenceError::Malformed(answer));
                };
                // What is no id of a deployment is certainly not ours.
                let owner = owner.parse().unwrap_or(Uuid::nil());
                Ok(Some(Held { owner, epoch: Epoch(epoch), seq }))
            }
            _ => Err(FenceError::Malformed(answer)),
        }
    }

    /// A product's stock as Redis holds it, whether it may be believed or not.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn held_stock(
        &self,
        partition: Partition,
        product: &ProductId,
    ) -> Result<Option<i64>, FenceError> {
        let key = self.partitions.keys().stock(partition);
        Ok(self.partitions.connection().hget(key, product.as_str()).await?)
    }

    /// Whose data Redis holds for a partition, if any.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn owner(&self, partition: Partition) -> Result<Option<Uuid>, FenceError> {
        Ok(self.held(partition).await?.map(|held| held.owner))
    }

    /// Whether Redis takes the writes of a rebuild now. Each of its scripts begins with a command that takes no
    /// memory, and so does this: a full Redis can be rebuilt.
    ///
    /// # Errors
    ///
    /// When Redis is away or refuses: a replica, a failing disk, too few replicas, a user without the right.
    pub async fn check_writable(&self, partition: Partition) -> Result<(), FenceError> {
        let scratch = self.partitions.keys().scratch(partition);
        let _none: u32 = self.partitions.connection().unlink(scratch).await?;
        Ok(())
    }
}
