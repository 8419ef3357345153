//! `lua/release.lua`: gives the unit of a voided order back, once (R5, R6).

use super::Stock;
use crate::{
    domain::Partition,
    redis::{FenceError, GROUP, Key, Script},
};

/// Which stream holds the order's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseFrom<'a> {
    /// Still `orders` (R6).
    Orders,
    /// `dead` (R5).
    Dead {
        /// The name under which it was moved there.
        named: &'a str,
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

static RELEASE: Script<Released> = Script::new(
    "release",
    include_str!("../../lua/release.lua"),
    &[Key::Meta, Key::Stock, Key::Idempotency, Key::Bought, Key::Orders, Key::Dead, Key::DeadIndex],
    |words| match words {
        ["released", _] => Some(Released::Now),
        ["gone"] => Some(Released::Before),
        ["unreleasable"] => Some(Released::Never),
        _ => None,
    },
);

impl Stock {
    /// Removes the entry `entry_id` and gives its unit, the user's limit and the request id back, once. The
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
        let (stream, named) = match from {
            ReleaseFrom::Orders => ("orders", ""),
            ReleaseFrom::Dead { named } => ("dead", named),
        };
        let args = [GROUP, stream, entry_id, named];
        self.partitions.run(partition, &RELEASE, &args).await
    }
}
