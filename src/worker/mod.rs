//! The loops behind the API: orders go to the ledger, what cannot is buried, what is buried is voided and
//! released.
//!
//! ```text
//! orders ──read──> held ──store──> settled           (acknowledged and deleted)
//!            ▲       │ this order itself fails
//!            │       ▼
//!            └── suspect ──past max_deliveries──> dead ──replay──> voided, released
//! ```
//!
//! Must never: spend a delivery on an outage, drop what it holds, or bury what it has not just seen fail.

mod consumer;
mod pause;
mod releaser;
mod store;
mod suspects;

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

pub use self::{
    consumer::{Consumer, Step},
    pause::{Kept, Pause, PauseReason, Pauses},
    releaser::Releaser,
};
use crate::{
    dead_letters::DeadLetters, ledger::Ledger, lifecycle::Lifecycle, redis::Connection,
    stock::Stock, stream::Streams, telemetry::Metrics,
};

/// Settings of the loops.
#[derive(Debug, Clone, Copy)]
pub struct WorkerSettings {
    /// Attempts at storing an order before it is buried.
    pub max_deliveries: u32,
    /// An entry that nobody touched for so long is taken over.
    pub takeover_idle: Duration,
    /// Between an order's own failure and its next attempt; doubled each time.
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
    /// The instruments.
    pub metrics: Metrics,
    /// The ledger.
    pub ledger: Ledger,
    /// The dead_letters.
    pub dead_letters: DeadLetters,
    /// The settings.
    pub settings: WorkerSettings,
    /// Where consumption stands still, and why.
    pub pauses: Arc<Pauses>,
    /// The name of this process in the consumer group; never reused.
    pub consumer: String,
}

impl WorkerContext {
    /// The consumer of one partition, reading on a connection of its own.
    pub fn consumer(&self, partition: crate::domain::Partition, reader: Connection) -> Consumer {
        Consumer::new(self.clone(), partition, reader)
    }
}

/// Sleeps, unless stopped first.
async fn sleep(delay: Duration, stop: &CancellationToken) {
    stop.run_until_cancelled(tokio::time::sleep(delay)).await;
}
