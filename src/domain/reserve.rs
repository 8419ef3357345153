//! A buyer's request for one unit, and every possible answer.

use std::time::Duration;

use super::{ProductId, RequestId, ReservationId, UserId, field::needs_escape};

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
    /// Whether its ids are the same in the name of a field (`join_field`), so that nothing is to be escaped.
    pub fn is_plain(&self) -> bool {
        // A product's id never has a character to escape.
        let request = self.request.as_ref().map_or("", RequestId::as_str);
        !needs_escape(self.user.as_str()) && !needs_escape(request)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_plain_if_neither_its_user_nor_its_request_id_is_escaped() {
        let is_plain = |user: &str, request: Option<&str>| {
            let request = request.map(|request| request.parse().unwrap());
            let (product, user) = ("shoe:a+b@1".parse().unwrap(), user.parse().unwrap());
            ReserveRequest { product, user, request, traceparent: None }.is_plain()
        };
        let long = "x".repeat(128);
        for user in ["ann", "a:1", "a@b", "a|b", &long] {
            assert!(is_plain(user, None) && is_plain(user, Some("r:1")), "{user}");
        }
        for other in ["a/b", "a%b", "%", "/"] {
            assert!(!is_plain(other, Some("r")) && !is_plain("ann", Some(other)), "{other}");
        }
    }
}
