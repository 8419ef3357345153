//! The streams between Redis and the ledger: `orders` with its consumer group, and `dead`.
//!
//! Must never: trim a stream, spend a delivery on a read of history or a takeover (R4), acknowledge
//! without deleting, or hold a shared connection with a blocking read.

mod adopt;
mod cut;
mod dead;
mod depth;
mod drain;
mod entry;
mod find;
mod group;
mod move_to_dead;

pub use cut::{Cut, CutError, IdempotencyCut, ProductCut};
pub use dead::{DeadEntry, DeadPage};
pub use depth::Depth;
pub use drain::{Source, Surviving};
pub use entry::{Entry, EntryError, FORMAT};
pub use find::Found;
pub use group::Delivery;
pub use move_to_dead::Rejection;

use crate::redis::Partitions;

/// A handle on the streams of every partition. Commands fail when Redis is unavailable, scripts also when the partition
/// is fenced (as [`Partitions::run`]); a failed call may be repeated.
#[derive(Clone)]
pub struct Streams {
    partitions: Partitions,
}

impl Streams {
    /// The streams of these partitions.
    pub fn new(partitions: Partitions) -> Self {
        Self { partitions }
    }

    /// The partitions behind these streams.
    pub fn partitions(&self) -> &Partitions {
        &self.partitions
    }
}
