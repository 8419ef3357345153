//! Logs, metrics and traces; every instrument is named here.
//!
//! Must never: carry an id of a buyer, a request id or a secret, or a label that grows with products or
//! users.

mod gauges;
mod listeners;
mod logs;
mod metrics;
mod sqlstates;
mod traces;

pub use gauges::{PartitionReading, PoolReading};
pub use listeners::ListenerMetrics;
pub use logs::init;
pub use metrics::{Metrics, MetricsError};
pub use traces::{
    Sampling, Traces, record_failure, record_reservation, record_status, reserve_span, store_span,
    trace_id, traceparent,
};
