//! Logs and metrics; every instrument is named here.
//!
//! Must never: carry an id of a buyer, a request id or a secret, or a label that grows with products or
//! users.

mod logs;
mod metrics;

pub use logs::init;
pub use metrics::{Metrics, MetricsError, PartitionReading, PoolReading};
