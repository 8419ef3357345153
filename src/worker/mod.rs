//! The background loops: consumers store accepted orders, releasers void dead ones.
//!
//! ```text
//! orders ──read──> unsettled ──store──> settled          (acknowledged and deleted)
//!            ▲         │ the ledger rejects the order itself
//!            │         ▼
//!            └──── delayed ──past deliveries_max──> dead ──release──> voided, unit given back
//! ```
//!
//! Each partition is owned by one of the workers that run, which reads its new orders (`assignment`, `live_workers`).
//! Two owners at once, or none for some seconds, cost time and nothing else: what a second consumer stores is stored
//! once (R2), and takeovers find what was left behind.
//!
//! Must never: count a delivery for an outage, drop an entry that is not settled, or move an order to the dead stream
//! unless its last delivery has failed: the ledger rejected it, or it cannot be read.

mod assignment;
mod consumer;
mod delayed_orders;
mod live_workers;
mod pause;
mod releaser;
mod store;
mod takeover;
mod unattended;

use std::{sync::Arc, time::Duration};

pub use self::{
    assignment::{is_auditor, owned_partitions, owners},
    consumer::Consumer,
    live_workers::LiveWorkers,
    pause::{Pause, PauseReason, Pauses, UnlistedOrders},
    releaser::Releaser,
    unattended::{READ_ROUNDS, Unattended},
};
use crate::{
    ack::CommitReports, ledger::Ledger, lifecycle::Lifecycle, stock::Stock, stream::Streams,
    telemetry::Metrics,
};

/// The most entries of a batch.
const BATCH_MAX: usize = 500;

/// Settings of the loops.
#[derive(Debug, Clone, Copy)]
pub struct WorkerSettings {
    /// After this many failed deliveries an order is moved to the dead stream.
    pub deliveries_max: u32,
    /// An entry is taken over after it was idle for this long.
    pub takeover_idle: Duration,
    /// The delay between a failed delivery of an order and the next one; it doubles each time.
    pub retry_delay: Duration,
}

/// What every loop works on. `consumer` is the name of this process in the consumer group; no later process has
/// the same name.
#[derive(Clone)]
#[expect(missing_docs, reason = "each is described by its module")]
pub struct WorkerContext {
    pub streams: Streams,
    pub stock: Stock,
    pub lifecycle: Lifecycle,
    pub ledger: Ledger,
    pub commit_reports: CommitReports,
    pub metrics: Metrics,
    pub settings: WorkerSettings,
    pub pauses: Arc<Pauses>,
    pub consumer: String,
}
