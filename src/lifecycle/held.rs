//! What Redis holds of a partition and whether it accepts writes. Reads without the fence and changes nothing.

use redis::AsyncCommands as _;
use uuid::Uuid;

use super::Lifecycle;
use crate::{
    domain::{Epoch, Partition, ProductId},
    redis::{Key, RedisCallError, script},
};

/// A partition's meta as Redis holds it, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The deployment that wrote it; nil where that is not an id.
    pub owner: Uuid,
    /// Its epoch.
    pub epoch: Epoch,
    /// Accepts in this epoch.
    pub seq: u64,
    /// Whether more than a first opening has been done with it: the ledger had it open before.
    pub in_use: bool,
}

/// A seq in a meta, which has 36 bits.
pub(super) fn seq_of(text: &str) -> Option<u64> {
    text.parse().ok().filter(|seq| *seq < 1 << 36)
}

script!(HELD: Option<Held> = "held", include_str!("../../lua/held.lua"),
    [Meta, Orders, Stock, Supply, Dead, Catalogue, Bought, DeadIndex] {
    ["none"] => None,
    ["held", owner, epoch, seq, in_use] => Some(Held {
        owner: owner.parse().unwrap_or(Uuid::nil()),
        epoch: Epoch(epoch.parse().ok()?),
        seq: seq_of(seq)?,
        in_use: in_use == "1",
    }),
});

impl Lifecycle {
    /// What Redis holds of a partition, if anything; read before an epoch is used for it. `Fenced` if Redis is a replica.
    pub async fn held(&self, partition: Partition) -> Result<Option<Held>, RedisCallError> {
        self.partitions.call_script(partition, &HELD, &[]).await
    }

    /// A product's stock as Redis holds it, unchecked.
    pub async fn held_stock(
        &self,
        partition: Partition,
        product: &ProductId,
    ) -> Result<Option<i64>, RedisCallError> {
        let key = self.partitions.key(partition, Key::Stock);
        Ok(self.partitions.connection().hget(key, product.as_str()).await?)
    }

    /// Checks that Redis accepts the writes of an opening or a rebuild now. Each script of a rebuild begins with a command that
    /// needs no memory, and so does this check, because a rebuild must also work on a full Redis. A replica, a failing disk, too
    /// few replicas or a user without permission are errors.
    pub async fn check_writable(&self, partition: Partition) -> Result<(), RedisCallError> {
        let scratch = self.partitions.key(partition, Key::Scratch);
        let _unlinked: u32 = self.partitions.connection().unlink(scratch).await?;
        Ok(())
    }
}
