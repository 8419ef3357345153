//! A reservation as it is stored, and as it is looked up.

use super::{ProductId, RequestId, ReservationId, UserId};

/// An accepted reservation on its way to the ledger, or in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Its identity.
    pub id: ReservationId,
    /// The product.
    pub product: ProductId,
    /// The buyer.
    pub user: UserId,
    /// The idempotency key it was made with.
    pub request: Option<RequestId>,
    /// When the unit was taken, in milliseconds since 1970.
    pub reserved_at_ms: i64,
    /// The trace that its commit belongs to, as W3C writes it.
    pub traceparent: Option<String>,
}

/// Where a reservation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReservationState {
    /// The unit is taken, the order is not stored yet.
    Accepted,
    /// The order is stored.
    Confirmed {
        /// When it was stored, in milliseconds since 1970.
        recorded_at_ms: i64,
    },
    /// The order could not be stored and its unit goes, or went, back.
    Voided {
        /// When that was recorded, in milliseconds since 1970.
        recorded_at_ms: i64,
        /// Why.
        reason: String,
    },
}

/// What became of a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// Its identity.
    pub id: ReservationId,
    /// Where it stands.
    pub state: ReservationState,
    /// Product and buyer; a voided row keeps neither.
    pub buyer: Option<(ProductId, UserId)>,
    /// The idempotency key it was made with; a voided row does not keep it.
    pub request: Option<RequestId>,
    /// When the unit was taken, in milliseconds since 1970.
    pub reserved_at_ms: i64,
}
