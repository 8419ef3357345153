//! Takes units, gives them back, grants them, reads them: each by a script.
//!
//! Must never: change a unit other than by a script, or call a script a second time while the outcome of
//! the first call is unknown.

mod batcher;
mod drain_rate;
mod levels;
mod products;
mod release;
mod reserve;

use std::sync::Arc;

pub use levels::Levels;
pub use release::{ReleaseFrom, Released};
use tracing::Instrument as _;

use self::{batcher::Batcher, levels::LevelsReader, reserve::Reserver};
use crate::{
    domain::{Outcome, Reserve},
    redis::{FenceError, Partitions},
    tasks::Tasks,
    telemetry::{self, Metrics},
};

/// Settings of the stock.
#[derive(Debug, Clone, Copy)]
pub struct StockSettings {
    /// How long a request id is remembered at least, in milliseconds. The same for every process.
    pub idempotency_window_ms: u64,
    /// The most entries in a partition's orders stream before intake is refused.
    pub backlog_max_entries: u64,
}

/// Why a request got no decision.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StockError {
    /// More requests wait than the queue holds; nothing was done.
    #[error("too many requests are waiting for this partition")]
    Overloaded,
    /// The service is shutting down; nothing was done.
    #[error("the service is shutting down")]
    Stopping,
    /// The service stopped while the request may have been under way; the outcome is open.
    #[error("the outcome is unknown")]
    Abandoned,
    /// Redis refused to write the order; nothing was done.
    #[error("Redis refused the order: {0}")]
    Refused(String),
    /// The script did not run to its end.
    #[error(transparent)]
    Fence(#[from] FenceError),
}

type Decision = Result<Outcome, StockError>;

/// A handle on the stock of every partition; clones share the batchers. Calls fail as [`Partitions::run`]; all but
/// [`Stock::reserve`] may be repeated then.
#[derive(Clone)]
pub struct Stock {
    partitions: Partitions,
    reservers: Arc<[Batcher<Reserve, Decision>]>,
    levels: Arc<[LevelsReader]>,
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
        let levels = count.all().map(|p| LevelsReader::start(partitions.clone(), p, tasks));
        Self { reservers: reservers.collect(), levels: levels.collect(), partitions }
    }

    /// The partitions behind this stock.
    pub fn partitions(&self) -> &Partitions {
        &self.partitions
    }

    /// Lets Redis decide a request, together with the other requests that wait for the same partition. Once
    /// queued it is decided even if the caller is dropped while it is under way.
    ///
    /// # Errors
    ///
    /// See [`StockError`]; only `Abandoned`, `Fence(Unavailable { applied: Maybe })` and
    /// `Fence(Malformed)` leave the outcome open.
    pub async fn reserve(&self, mut request: Reserve) -> Decision {
        let partition = self.partitions.count().of(&request.product);
        let span = telemetry::reserve_span(partition.number());
        request.traceparent = telemetry::traceparent(&span);
        self.reservers[partition.index()].ask(request).instrument(span).await?
    }
}
