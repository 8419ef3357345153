//! `lua/release.lua`: gives the unit of a voided order back, once (R5, R6).

use super::Stock;
use crate::{
    domain::Partition,
    redis::{GROUP, RedisCallError, script},
};

/// Which stream holds the order's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseFrom<'a> {
    /// In `orders` (R6).
    Orders,
    /// In `dead` (R5).
    Dead {
        /// Its key in the dead index.
        dead_key: &'a str,
    },
}

/// What a release did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// It gave the unit back.
    Released,
    /// Nothing: the entry is no longer there, because another call gave its unit back.
    AlreadyReleased,
    /// Nothing: this program did not write the entry.
    Unrecognized,
    /// Nothing: Redis has no stock of the product.
    NoStock,
}

script!(RELEASE: ReleaseOutcome = "release", include_str!("../../lua/release.lua"),
    [Meta, Stock, Idempotency, Bought, Orders, Dead, DeadIndex] {
    ["released", _] => ReleaseOutcome::Released,
    ["gone"] => ReleaseOutcome::AlreadyReleased,
    ["unrecognized"] => ReleaseOutcome::Unrecognized,
    ["no_stock"] => ReleaseOutcome::NoStock,
});

impl Stock {
    /// Removes the entry `entry_id` and gives its unit, the user's limit and the request id back, once. The
    /// caller has committed the reservation's void before.
    pub async fn release(
        &self,
        partition: Partition,
        from: ReleaseFrom<'_>,
        entry_id: &str,
    ) -> Result<ReleaseOutcome, RedisCallError> {
        let (stream, dead_key) = match from {
            ReleaseFrom::Orders => ("orders", ""),
            ReleaseFrom::Dead { dead_key } => ("dead", dead_key),
        };
        let args = [GROUP, stream, entry_id, dead_key];
        self.partitions.run(partition, &RELEASE, &args).await
    }
}
