//! `lua/release.lua`: gives the unit of a voided order back, once (R5, R6).

use super::Stock;
use crate::{
    domain::Partition,
    redis::{FenceError, GROUP, script},
};

/// Which stream holds the order's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseFrom<'a> {
    /// Still `orders` (R6).
    Orders,
    /// `dead` (R5).
    Dead {
        /// Its key in the dead index.
        dead_key: &'a str,
    },
}

/// What a release did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// It gave the unit back.
    Now,
    /// Nothing: the entry is no longer there, because another call gave its unit back.
    Before,
    /// Nothing: the entry is not an order that this program wrote, or its product has no stock.
    Never,
}

script!(RELEASE: Released = "release", include_str!("../../lua/release.lua"),
    [Meta, Stock, Idempotency, Bought, Orders, Dead, DeadIndex] {
    ["released", _] => Released::Now,
    ["gone"] => Released::Before,
    ["unreleasable"] => Released::Never,
});

impl Stock {
    /// Removes the entry `entry_id` and gives its unit, the user's limit and the request id back, once. The
    /// caller has committed the reservation's void before.
    pub async fn release(
        &self,
        partition: Partition,
        from: ReleaseFrom<'_>,
        entry_id: &str,
    ) -> Result<Released, FenceError> {
        let (stream, dead_key) = match from {
            ReleaseFrom::Orders => ("orders", ""),
            ReleaseFrom::Dead { dead_key } => ("dead", dead_key),
        };
        let args = [GROUP, stream, entry_id, dead_key];
        self.partitions.run(partition, &RELEASE, &args).await
    }
}
