//! Reservations that were accepted and are nowhere.

use std::fmt;

use super::{Epoch, Partition, ReservationId};

/// What an epoch of a partition lost, with Redis or with commits of Postgres.
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

/// An order that was accepted and is in neither store, as far as its request id still tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostOrder {
    /// The reservation.
    pub id: ReservationId,
    /// The buyer.
    pub user: String,
    /// The product.
    pub product: String,
}

impl fmt::Display for LostOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, user, product } = self;
        write!(f, "reservation {id} of user {user} for product {product} was lost")
    }
}
