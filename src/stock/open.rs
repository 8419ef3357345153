//! `lua/open.lua`: a new partition's first life.

use uuid::Uuid;

use super::Stock;
use crate::{
    domain::{Epoch, Partition},
    fence::FenceError,
    keys::GROUP,
};

/// What opening a new partition found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// It is open, and empty.
    Opened,
    /// This key is there already and is not ours.
    Foreign {
        /// The key.
        key: String,
    },
}

impl Stock {
    /// Writes the meta of a partition that is still new in the ledger; the caller holds its row.
    ///
    /// # Errors
    ///
    /// When Redis is away; repeat it.
    pub async fn open(
        &self,
        partition: Partition,
        deployment: Uuid,
        epoch: Epoch,
    ) -> Result<Opening, FenceError> {
        let keys = self.partitions.keys();
        let keys = [
            keys.meta(partition),
            keys.orders(partition),
            keys.stock(partition),
            keys.supply(partition),
            keys.dead(partition),
            keys.catalogue(partition),
            keys.bought(partition),
            keys.buried(partition),
        ];
        let (deployment, epoch) = (deployment.to_string(), epoch.to_string());
        let args = [deployment.as_str(), epoch.as_str(), GROUP];
        let answer = self.partitions.run_unfenced(&self.scripts.open, &keys, &args).await?;
        match answer.as_slice() {
            [status] if status == "opened" => Ok(Opening::Opened),
            [status, key] if status == "foreign" => Ok(Opening::Foreign { key: key.clone() }),
            _ => Err(FenceError::Malformed(answer)),
        }
    }
}
