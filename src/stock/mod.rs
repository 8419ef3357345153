//! The typed face of `lua/`: takes units, gives them back, grants them, reads them.
//!
//! Must never: touch a unit other than by a script, or ask a script a second time when the outcome of
//! the first is unknown.

mod batcher;
mod drain;
mod grant;
mod levels;
mod lost;
mod meta;
mod open;
mod rebuild;
mod release;
mod reserve;

use std::sync::Arc;

pub use batcher::BatcherClosed;
pub use grant::{Grant, Offer};
pub use levels::Levels;
pub use lost::{OldBucket, OldClaim};
pub use meta::{Held, SinceOpened};
pub use open::Opening;
pub use rebuild::{ClaimParts, Filling, Reopened, Seized};
pub use release::{ReleaseFrom, Released};
pub use reserve::MAX_BATCH;
use tracing::Instrument as _;

use self::{batcher::Batcher, levels::LevelsReader, reserve::Reserver};
use crate::{
    domain::{Epoch, IdWindow, Outcome, Partition, Reserve},
    redis::{FenceError, Partitions, Script, expect},
    tasks::Tasks,
    telemetry,
};

/// Settings of the stock.
#[derive(Debug, Clone, Copy)]
pub struct StockSettings {
    /// How long a request id is remembered at least, in milliseconds. The same for every process.
    pub idempotency_window_ms: u64,
    /// Most entries in a partition's orders stream before intake is refused.
    pub backlog_max_entries: u64,
}

impl StockSettings {
    fn id_window(&self) -> IdWindow {
        IdWindow::new(self.idempotency_window_ms)
    }
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
    /// The service broke off while the request may have been under way; the outcome is open.
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

/// A handle on the stock of every partition; clones share the batchers.
#[derive(Clone)]
pub struct Stock {
    partitions: Partitions,
    settings: StockSettings,
    scripts: Arc<Scripts>,
    reservers: Arc<[Batcher<Reserve, Decision>]>,
    levels: Arc<[LevelsReader]>,
}

struct Scripts {
    release: Script,
    restock: Script,
    publish: Script,
    open: Script,
    close: Script,
    probe: Script,
    held: Script,
    seize: Script,
    fill: Script,
    lost: Script,
    reopen: Script,
}

impl Stock {
    /// Starts a batcher for each partition on `tasks`; they end when the last handle is dropped.
    pub fn start(partitions: Partitions, settings: StockSettings, tasks: &Tasks) -> Self {
        let reserver = Reserver::new(partitions.clone(), settings);
        let count = partitions.count();
        let reservers = count.all().map(|partition| reserver.clone().start(partition, tasks));
        let levels = count.all().map(|p| LevelsReader::start(partitions.clone(), p, tasks));
        Self {
            reservers: reservers.collect(),
            levels: levels.collect(),
            scripts: Arc::new(Scripts {
                release: Script::new("release", include_str!("../../lua/release.lua")),
                restock: Script::new("restock", include_str!("../../lua/restock.lua")),
                publish: Script::new("publish", include_str!("../../lua/publish.lua")),
                open: Script::new("open", include_str!("../../lua/open.lua")),
                close: Script::new("close", include_str!("../../lua/close.lua")),
                probe: Script::new("probe", include_str!("../../lua/probe.lua")),
                held: Script::new("held", include_str!("../../lua/held.lua")),
                seize: Script::new("seize", include_str!("../../lua/seize.lua")),
                fill: Script::new("fill", include_str!("../../lua/fill.lua")),
                lost: Script::new("lost", include_str!("../../lua/lost.lua")),
                reopen: Script::new("reopen", include_str!("../../lua/reopen.lua")),
            }),
            partitions,
            settings,
        }
    }

    /// The partitions behind this stock.
    pub fn partitions(&self) -> &Partitions {
        &self.partitions
    }

    /// Asks Redis to decide a request, together with whatever else waits for the same partition. Once
    /// queued it is decided even if the caller goes away while it is under way.
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

    /// Closes a partition: nothing is taken from it until it is rebuilt.
    ///
    /// # Errors
    ///
    /// When it is fenced already, or Redis is away.
    pub async fn close(&self, partition: Partition) -> Result<(), FenceError> {
        self.close_in(partition, self.partitions.epoch(partition)?).await
    }

    /// Closes a partition that is open in this epoch.
    ///
    /// # Errors
    ///
    /// When it is not, or Redis is away.
    pub async fn close_in(&self, partition: Partition, epoch: Epoch) -> Result<(), FenceError> {
        let keys = [self.partitions.keys().meta(partition)];
        let answer = self.partitions.run_in(epoch, &self.scripts.close, &keys, &[]).await?;
        expect(answer, &["closed"])
    }
}
