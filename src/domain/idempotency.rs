//! A request id that belongs to an order.

use super::ReservationId;

/// The request id of a confirmed order, and what a repeated request is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `Reservation`")]
pub struct IdempotencyRecord {
    pub id: ReservationId,
    pub user: String,
    pub product: String,
    pub request: String,
    pub reserved_at_ms: i64,
}
