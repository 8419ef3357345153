//! Takes units, gives them back, grants them, reads them: each by a script.
//!
//! Must never: change a unit other than by a script, or call a script a second time while the outcome of
//! the first call is unknown.

mod batcher;
#[cfg(test)]
mod fuzz;
mod products;
mod read;
mod release;
mod reserve;
mod store_rate;

use std::sync::Arc;

pub use read::StockByProduct;
pub use release::{ReleaseFrom, ReleaseOutcome};
use tracing::Instrument as _;

use self::{batcher::Batcher, read::Reader, reserve::Reserver};
use crate::{
    domain::{Outcome, ReserveRequest},
    redis::{Partitions, RedisCallError},
    tasks::Tasks,
    telemetry::{self, Metrics},
};

/// Settings of the stock.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "each is described by the setting of its name")]
pub struct StockSettings {
    pub idempotency_window_ms: u64,
    pub backlog_max_entries: u64,
}

/// Why a request got no decision.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StockError {
    /// Nothing was done.
    #[error("too many requests wait for this partition: repeat the request later")]
    Overloaded,
    /// Nothing was done.
    #[error("this process is shutting down: repeat the request to another process")]
    ShuttingDown,
    /// The outcome is unknown.
    #[error(
        "this process stopped before Redis answered: repeat the request with the same request id"
    )]
    Abandoned,
    /// Redis refused to write the order; nothing was done.
    #[error("Redis refused the order: {0}")]
    Refused(String),
    /// The call to Redis failed.
    #[error(transparent)]
    Redis(#[from] RedisCallError),
}

type Decision = Result<Outcome, StockError>;

/// A handle on the stock of every partition; clones share the batchers. Calls fail as [`Partitions::run`]; all but
/// [`Stock::reserve`] may be repeated then.
#[derive(Clone)]
pub struct Stock {
    partitions: Partitions,
    reservers: Arc<[Batcher<ReserveRequest, Decision>]>,
    readers: Arc<[Reader]>,
}

impl Stock {
    /// Starts a batcher for each partition on `tasks`; they end when the last handle is dropped.
    pub fn start(
        partitions: Partitions,
        settings: StockSettings,
        metrics: Metrics,
        tasks: &Tasks,
    ) -> Self {
        let reserver = Reserver::new(partitions.clone(), settings, metrics);
        let count = partitions.count();
        let reservers = count.all().map(|partition| reserver.clone().start(partition, tasks));
        let readers =
            count.all().map(|partition| read::start(partitions.clone(), partition, tasks));
        Self { reservers: reservers.collect(), readers: readers.collect(), partitions }
    }

    /// The partitions behind this stock.
    pub fn partitions(&self) -> &Partitions {
        &self.partitions
    }

    /// Lets Redis decide a request, together with the other requests that wait for the same partition. Once
    /// queued it is decided even if the caller is dropped while it is in progress. Of the errors, only `Abandoned`,
    /// `Redis(Unavailable { applied: Maybe })` and `Redis(Malformed)` mean that the outcome is unknown.
    pub async fn reserve(&self, mut request: ReserveRequest) -> Decision {
        let partition = self.partitions.count().of(&request.product);
        let span = telemetry::reserve_span(partition.number());
        request.traceparent = telemetry::traceparent(&span);
        self.reservers[partition.index()].call(request).instrument(span).await?
    }
}
