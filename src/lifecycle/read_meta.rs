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
pub struct Meta {
    /// The deployment that wrote it; nil where that is not an id.
    pub deployment: Uuid,
    /// Its epoch.
    pub epoch: Epoch,
    /// Accepts in this epoch.
    pub seq: u64,
    /// Whether more than a first opening has been done with it: the ledger had it open before.
    pub in_use: bool,
    /// Whether this Redis wrote it as the master that it is now: it has not restarted and was not promoted since.
    pub is_of_instance: bool,
}

/// A seq in a meta, which has 36 bits.
pub(super) fn seq_of(text: &str) -> Option<u64> {
    text.parse().ok().filter(|seq| *seq < 1 << 36)
}

script!(READ_META: Option<Meta> = "read_meta", include_str!("../../lua/read_meta.lua"),
    [Meta, Orders, Stock, Supply, Dead, Catalogue, Bought, DeadIndex] {
    ["none"] => None,
    ["meta", deployment, epoch, seq, in_use, of_this_instance] => Some(Meta {
        deployment: deployment.parse().unwrap_or(Uuid::nil()),
        epoch: Epoch(epoch.parse().ok()?),
        seq: seq_of(seq)?,
        in_use: in_use == "1",
        is_of_instance: of_this_instance == "1",
    }),
});

impl Lifecycle {
    /// The meta of a partition, if Redis holds one; read before an epoch is used for it. `Fenced` if Redis is a
    /// replica.
    pub async fn read_meta(&self, partition: Partition) -> Result<Option<Meta>, RedisCallError> {
        self.partitions.call_script(partition, &READ_META, &[]).await
    }

    /// A product's stock as Redis holds it, unchecked.
    pub async fn stock_in_redis(
        &self,
        partition: Partition,
        product: &ProductId,
    ) -> Result<Option<i64>, RedisCallError> {
        let key = self.partitions.key(partition, Key::Stock);
        Ok(self.partitions.connection(partition).hget(key, product.as_str()).await?)
    }

    /// Checks that Redis accepts the writes of an opening or a rebuild now. Each script of a rebuild begins with a command that
    /// needs no memory, and so does this check, because a rebuild must also work on a full Redis. A replica, a failing disk, too
    /// few replicas or a user without permission are errors.
    pub async fn check_writable(&self, partition: Partition) -> Result<(), RedisCallError> {
        let scratch = self.partitions.key(partition, Key::Scratch);
        let _unlinked: u32 = self.partitions.connection(partition).unlink(scratch).await?;
        Ok(())
    }
}
