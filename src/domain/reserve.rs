//! A buyer's request for one unit, and every possible answer.

use std::time::Duration;

use super::{ProductId, RequestId, ReservationId, UserId};

/// A request for one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the glossary")]
pub struct ReserveRequest {
    pub product: ProductId,
    pub user: UserId,
    /// The request id, which belongs to this user and product.
    pub request: Option<RequestId>,
    /// The span that reserved its unit, as a W3C `traceparent`; the span that stores the order joins its trace.
    pub traceparent: Option<String>,
}

impl ReserveRequest {
    /// Whether none of its ids has a character that is escaped in the name of a field.
    pub fn is_plain(&self) -> bool {
        self.product.is_plain()
            && self.user.is_plain()
            && self.request.as_ref().is_none_or(RequestId::is_plain)
    }
}

/// The answer to an accepted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Names the reservation.
    pub reservation_id: ReservationId,
    /// When the unit was taken: milliseconds since 1970, by the clock of Redis.
    pub reserved_at_ms: i64,
    /// Units available now.
    pub remaining: i64,
}

/// The decision of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A unit was taken.
    Accepted(Receipt),
    /// This request had been accepted before; nothing was taken now.
    Duplicate(Receipt),
    /// This request had been accepted before, and its order was lost because a store lost data.
    LostOrUnknown(ReservationId),
    /// No unit is left.
    SoldOut,
    /// The user has bought the units that one user may buy.
    LimitReached {
        /// Units a user may buy.
        limit: u32,
    },
    /// The sale has not begun.
    SaleNotOpen {
        /// When it begins, in milliseconds since 1970.
        opens_at_ms: i64,
    },
    /// The sale has ended.
    SaleClosed {
        /// When it ended, in milliseconds since 1970; `None` if the product is no longer offered.
        closes_at_ms: Option<i64>,
    },
    /// An operator stopped the sale.
    SaleStopped,
    /// Redis knows no such product.
    ProductNotFound,
    /// Too many accepted orders wait to be stored.
    BacklogFull {
        /// When to try again, estimated from the rate at which the stream drains.
        retry_after: Duration,
    },
}
