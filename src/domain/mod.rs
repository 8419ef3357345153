//! The types and decisions of a sale: pure, no async, no I/O.
//!
//! Values are checked when they are parsed and are valid from then on; no later code checks them again.

mod ack;
mod base64;
mod caller;
mod claim;
mod delivery;
mod field;
#[cfg(test)]
mod fuzz;
mod id;
mod idempotency_window;
mod jwt_algorithm;
mod lost;
mod name;
mod order;
mod partition;
mod price;
mod product;
mod reservation_id;
mod reserve;
mod time;

pub use ack::Ack;
pub use caller::{CallerRole, CallerRoleError, CertificateRole};
pub use claim::{claim_text, parse_claim};
pub use delivery::next_delivery;
pub use field::{join_field, split_field};
pub use id::{IdError, ProductId, RequestId, UserId};
pub use idempotency_window::IdempotencyWindow;
pub use jwt_algorithm::{JwtAlgorithm, JwtAlgorithmError};
pub use lost::{Lost, LostOrder};
pub use name::{NameError, OperatorText, OperatorTextError};
pub use order::{IdempotencyRecord, Order, Reservation, ReservationState};
pub use partition::{Epoch, Partition, PartitionCount, PartitionCountError, PartitionEpoch};
pub use price::{Price, PriceError};
pub use product::{
    Bought, NewProduct, Product, ProductError, ProductStatus, ProductWithSold, Sale, UNITS_MAX,
};
pub use reservation_id::{ReservationId, ReservationIdError};
pub use reserve::{Outcome, Receipt, ReserveRequest};
pub use time::{TimeError, ms_from_unix, parse_rfc3339_ms};
