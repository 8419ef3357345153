//! A request id that belongs to an order.

use super::ReservationId;

/// The request id of a confirmed order, and what a repeated request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// The order.
    pub id: ReservationId,
    /// Its user.
    pub user: String,
    /// Its product.
    pub product: String,
    /// Its request id.
    pub request: String,
    /// When its unit was taken, in milliseconds since 1970.
    pub reserved_at_ms: i64,
}
