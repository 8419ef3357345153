//! `lua/release.lua`: a voided order's unit comes back, once (R5, R6).

use super::Stock;
use crate::{
    domain::Partition,
    redis::{FenceError, GROUP},
};

/// Where the order's entry lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseFrom<'a> {
    /// Still in `orders` (R6).
    Orders,
    /// In `dead` (R5).
    Dead {
        /// The name it was buried under.
        named: &'a str,
    },
}

/// What a release did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// The unit went back.
    Now,
    /// Somebody else gave it back before.
    Before,
    /// The entry is no order of ours, or its product has no stock: it was left alone.
    Never,
}

impl Stock {
    /// Removes the entry `entry_id` and gives its unit, the user's limit and the claim back, once. The
    /// caller has committed the reservation's void before.
    ///
    /// # Errors
    ///
    /// As [`crate::redis::Partitions::run`]; repeat it.
    pub async fn release(
        &self,
        partition: Partition,
        from: ReleaseFrom<'_>,
        entry_id: &str,
    ) -> Result<Released, FenceError> {
        let keys = self.partitions.keys();
        let keys = [
            keys.meta(partition),
            keys.stock(partition),
            keys.claims(partition),
            keys.bought(partition),
            keys.orders(partition),
            keys.dead(partition),
            keys.dead_index(partition),
        ];
        let (source, named) = match from {
            ReleaseFrom::Orders => ("orders", ""),
            ReleaseFrom::Dead { named } => ("dead", named),
        };
        let args = [GROUP, source, entry_id, named];
        let answer = self.partitions.run(partition, &self.scripts.release, &keys, &args).await?;
        match answer[0].as_str() {
            "released" => Ok(Released::Now),
            "gone" => Ok(Released::Before),
            "unreleasable" => Ok(Released::Never),
            _ => Err(FenceError::Malformed(answer)),
        }
    }
}
