//! A reservation as it is stored and as it is read.

use super::{ProductId, RequestId, ReservationId, UserId};

/// An accepted reservation on its way to the ledger, or in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the glossary")]
pub struct Order {
    pub id: ReservationId,
    pub product: ProductId,
    pub user: UserId,
    pub request: Option<RequestId>,
    /// When the unit was taken, in milliseconds since 1970.
    pub reserved_at_ms: i64,
    /// The trace of its commit, as a W3C `traceparent`.
    pub traceparent: Option<String>,
}

/// The state of a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReservationState {
    /// The unit is taken, the order is not stored yet.
    Accepted,
    /// The order is stored.
    Confirmed {
        /// When it was stored, in milliseconds since 1970.
        recorded_at_ms: i64,
    },
    /// The ledger records that the order will never be stored; its unit is given back after that.
    Voided {
        /// When that was recorded, in milliseconds since 1970.
        recorded_at_ms: i64,
        /// Why.
        reason: String,
    },
}

/// A reservation and its state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the glossary")]
pub struct Reservation {
    pub id: ReservationId,
    pub state: ReservationState,
    /// A voided row keeps neither.
    pub product_and_user: Option<(ProductId, UserId)>,
    /// The request id it was made with; a voided row does not keep it.
    pub request: Option<RequestId>,
    /// When the unit was taken, in milliseconds since 1970.
    pub reserved_at_ms: i64,
}

/// The request id of a confirmed order, and what a repeated request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `Order`")]
pub struct IdempotencyRecord {
    pub id: ReservationId,
    pub user: String,
    pub product: String,
    pub request: String,
    pub reserved_at_ms: i64,
}
