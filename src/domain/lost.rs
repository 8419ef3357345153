//! Reservations that were accepted and are in no store.

use std::fmt;

use super::{Epoch, Partition, ReservationId};

/// The reservations that an epoch of a partition lost, because Redis or Postgres lost data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the glossary")]
pub struct Lost {
    pub partition: Partition,
    pub epoch: Epoch,
    /// Reservations, each of one unit.
    pub count: u64,
    /// Whether every gateway reported its highest seq; otherwise more may be lost.
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

/// An order that was accepted and is in neither store, found by its request id.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the glossary")]
pub struct LostOrder {
    pub id: ReservationId,
    pub user: String,
    pub product: String,
}

impl fmt::Display for LostOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, user, product } = self;
        write!(f, "reservation {id} of user {user} for product {product} was lost")
    }
}
