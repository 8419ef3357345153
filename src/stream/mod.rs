//! The streams between Redis and the ledger: `orders` with its consumer group, and `dead`.
//!
//! Must never: trim a stream, count a delivery for a read of pending entries or a takeover (R4), acknowledge
//! without deleting, or hold a shared connection with a blocking read.

mod cut;
mod dead;
mod drain;
mod entry;
#[cfg(test)]
mod fuzz;
mod group;
mod read;

pub use cut::{Cut, CutError, IdempotencyCut, ProductCut};
pub use dead::{DeadEntry, DeadPage, MoveToDead};
pub use drain::{Source, UndrainedEntry};
pub use entry::{Entry, EntryError, FORMAT};
pub use group::PendingEntry;
pub use read::{Found, Progress};

use crate::redis::Partitions;

/// A handle on the streams of every partition. Commands fail when Redis is unavailable, those of a consumer also when the
/// consumer group does not exist; scripts fail as [`Partitions::run`]. A failed call may be repeated.
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
