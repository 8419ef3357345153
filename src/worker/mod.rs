//! The background loops: consumers store accepted orders, releasers void dead ones.
//!
//! ```text
//! orders ──read──> held ──store──> settled               (acknowledged and deleted)
//!            ▲       │ the order itself is refused
//!            │       ▼
//!            └── waiting ──past max_deliveries──> dead ──release──> voided, unit given back
//! ```
//!
//! Must never: spend a delivery on an outage, drop what a consumer holds, or move an order to the dead
//! stream that the ledger has not just refused.

mod consumer;
mod pause;
mod releaser;
mod retry_queue;
mod store;
mod takeover;

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

pub use self::{
    consumer::Consumer,
    pause::{Pause, PauseReason, Pauses, UnlistedOrders},
    releaser::Releaser,
};
use crate::{
    domain::Partition, ledger::Ledger, lifecycle::Lifecycle, redis::Connection, stock::Stock,
    stream::Streams, telemetry::Metrics,
};

/// The most entries of a batch.
const BATCH_MAX: usize = 500;

/// Settings of the loops.
#[derive(Debug, Clone, Copy)]
pub struct WorkerSettings {
    /// After this many refusals an order is moved to the dead stream.
    pub max_deliveries: u32,
    /// An entry is taken over after it was idle for this long.
    pub takeover_idle: Duration,
    /// The delay between an order's refusal and its next attempt; it doubles each time.
    pub retry_delay: Duration,
}

/// What every loop works on.
#[derive(Clone)]
pub struct WorkerContext {
    /// The streams.
    pub streams: Streams,
    /// The stock.
    pub stock: Stock,
    /// The life cycle of the partitions.
    pub lifecycle: Lifecycle,
    /// The ledger, through the connections of workers.
    pub ledger: Ledger,
    /// The metrics.
    pub metrics: Metrics,
    /// The settings.
    pub settings: WorkerSettings,
    /// Why each partition's consumption is paused.
    pub pauses: Arc<Pauses>,
    /// The name of this process in the consumer group; it is never used again.
    pub consumer: String,
}

impl WorkerContext {
    /// The consumer of one partition; `reader` is a connection for its blocking reads alone.
    pub fn consumer(&self, partition: Partition, reader: Connection) -> Consumer {
        Consumer::new(self.clone(), partition, reader)
    }
}

/// Sleeps, unless stopped first.
async fn sleep(delay: Duration, stop: &CancellationToken) {
    stop.run_until_cancelled(tokio::time::sleep(delay)).await;
}
