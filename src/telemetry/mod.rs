//! Logs, metrics and traces; every instrument is named here.
//!
//! Names follow OpenTelemetry's semantic conventions 1.45 where they have one (`rpc.*`, stable; `db.client.operation.*`,
//! stable; `db.client.connection.*`, in development); all others begin with `yoink`.
//!
//! Must never: carry an id of a buyer, a request id or a secret, or a label that grows with products or
//! users.

mod collector;
mod database;
#[cfg(test)]
mod fuzz;
mod gauges;
mod instruments;
mod listeners;
mod logs;
mod metrics;
mod traces;

pub use database::{LedgerOperation, PoolReading};
pub use gauges::PartitionReading;
pub use listeners::ListenerMetrics;
pub use logs::init;
pub use metrics::Metrics;
pub use traces::{
    OTHER_METHOD, Sampling, Traces, record_failure, record_reservation, record_status,
    reserve_span, store_span, trace_id, traceparent,
};
