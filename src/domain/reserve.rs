//! A buyer's request for one unit, and every answer there is.

use std::time::Duration;

use super::{ProductId, RequestId, ReservationId, UserId};

/// Asks for one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserve {
    /// The product.
    pub product: ProductId,
    /// The buyer.
    pub user: UserId,
    /// The idempotency key, scoped to user and product.
    pub request: Option<RequestId>,
    /// The trace that its order will belong to, as W3C writes it.
    pub traceparent: Option<String>,
}

impl Reserve {
    /// Whether programs understand its order that take ids of at most 64 bytes, and fewer characters.
    pub fn is_plain(&self) -> bool {
        self.product.is_plain()
            && self.user.is_plain()
            && self.request.as_ref().is_none_or(RequestId::is_plain)
    }
}

/// What an accepted buyer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Names the reservation.
    pub reservation_id: ReservationId,
    /// When the unit was taken: milliseconds since 1970, by the clock of Redis.
    pub reserved_at_ms: i64,
    /// Units available now.
    pub remaining: i64,
}

/// What Redis decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A unit was taken.
    Accepted(Receipt),
    /// This request had been accepted before; nothing was taken now.
    Duplicate(Receipt),
    /// This request had been accepted before, and its order was lost with a store.
    Lost(ReservationId),
    /// No unit is left.
    SoldOut,
    /// The user has bought as many as a user may.
    LimitReached {
        /// Units a user may buy.
        limit: u32,
    },
    /// The sale has not begun.
    NotOpen {
        /// When it begins, in milliseconds since 1970.
        opens_at_ms: i64,
    },
    /// The sale has ended, or the product is retired.
    Closed,
    /// An administrator stopped the sale.
    Stopped,
    /// Redis knows no such product.
    UnknownProduct,
    /// Too many accepted orders wait to be stored.
    BacklogFull {
        /// Until when there is room again, as the stream drains now.
        retry_after: Duration,
    },
}
