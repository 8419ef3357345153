//! Reservations that were accepted and are nowhere.

use std::fmt;

use super::{Epoch, Partition};

/// What an epoch of a partition lost with its Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// Of this partition.
    pub partition: Partition,
    /// In this epoch.
    pub epoch: Epoch,
    /// Reservations, each of one unit.
    pub count: u64,
    /// Whether every gateway told what it saw; else there may be more.
    pub exact: bool,
}

impl Lost {
    /// `exactly` or `at least`.
    pub fn certainty(&self) -> &'static str {
        if self.exact { "exactly" } else { "at least" }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, epoch, count, .. } = self;
        write!(f, "partition {partition} lost {} {count} of epoch {epoch}", self.certainty())
    }
}
