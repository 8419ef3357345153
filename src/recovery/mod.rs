//! The life of a partition: a new one is opened, a fenced one is rebuilt from the ledger, and what the
//! ledger says of the others is believed. Redis answers for itself, by the fence, whether that is true.
//!
//! Must never: open a partition twice, or one with anything in flight.

mod kept;
mod marks;
mod mending;
mod open;
mod plan;
mod progress;
mod ready;
mod rebuild;
mod watched;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::{kept::StoredSeen, marks::Told, mending::Mending, progress::Progress, watched::Watched};
pub use self::{
    plan::{Plan, PlannedStock},
    progress::Stage,
    rebuild::{RebuildError, Rebuilt},
};
use crate::{
    domain::Partition,
    ledger::{Deployment, Ledger, LedgerError, PartitionRow, PartitionStatus},
    lifecycle::Lifecycle,
    redis::{FenceError, FenceReason},
    stream::Streams,
    telemetry::Metrics,
};

/// How often the ledger is asked.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Rebuilds side by side: each holds a connection to Postgres.
const CONCURRENCY_MAX: usize = 4;

/// Keeps what is believed of the partitions true.
#[derive(Clone)]
pub struct Recovery {
    ledger: Ledger,
    lifecycle: Lifecycle,
    streams: Streams,
    deployment: Deployment,
    watched: Watched,
    progress: Progress,
    /// What this process is called, if it takes orders.
    gateway: Option<String>,
    /// Held while the ledger is read and believed: an older look must not undo a newer one.
    told: Arc<tokio::sync::Mutex<Told>>,
    /// Postgres does not tell its timeline.
    timeline_refused: Arc<AtomicBool>,
    stored_seen: StoredSeen,
    metrics: Metrics,
}

impl Recovery {
    /// Of this deployment; a process that takes orders has a name of its own.
    pub fn new(
        (ledger, lifecycle, streams): (Ledger, Lifecycle, Streams),
        deployment: Deployment,
        gateway: Option<String>,
        metrics: Metrics,
    ) -> Self {
        let (watched, progress, told) = (Watched::default(), Progress::default(), Arc::default());
        let (timeline_refused, stored_seen) = Default::default();
        Self {
            ledger,
            lifecycle,
            streams,
            deployment,
            watched,
            progress,
            gateway,
            told,
            timeline_refused,
            stored_seen,
            metrics,
        }
    }

    /// Opens what is new, and believes the ledger of all.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer; then nothing changes.
    pub async fn look(&self) -> Result<(), LedgerError> {
        let mut told = self.told.lock().await;
        let rows = self.ledger.partitions(self.deployment.partitions).await?;
        let rows = self.open_new(rows).await?;
        self.believe(&rows, &mut told).await
    }

    /// Partitions that are closed, that Redis refuses to what the ledger says of them, or for which the ledger
    /// went back.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer.
    pub async fn fenced(&self) -> Result<Vec<(PartitionRow, FenceReason)>, LedgerError> {
        let (mut fenced, mut open) = (Vec::new(), Vec::new());
        // Before the ledger is read: each was believed because the ledger had it.
        let believed = self.believed();
        let rows = self.ledger.partitions(self.deployment.partitions).await?;
        let behind = self.behind(&believed, &rows).await?;
        for row in rows {
            if behind.contains(&row.partition) {
                fenced.push((row, FenceReason::LedgerBehind));
                continue;
            }
            match row.status {
                PartitionStatus::New => {}
                PartitionStatus::Closed => fenced.push((row, FenceReason::Closed)),
                PartitionStatus::Open => {
                    match self.lifecycle.probe_in(row.partition, row.epoch).await {
                        Ok(since) => open.push((row, since)),
                        Err(FenceError::Fenced(reason)) => fenced.push((row, reason)),
                        // A Redis that is away tells nothing.
                        Err(_) => {}
                    }
                }
            }
        }
        fenced.extend(self.went_back(&open).await?);
        Ok(fenced)
    }

    /// Looks until stopped.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(POLL_INTERVAL)).await.is_some() {
            if let Err(error) = self.look().await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the partitions cannot be read"
                );
            }
        }
    }

    /// Watches for fenced partitions until stopped and, with `rebuild`, rebuilds them, while it goes on
    /// watching. A rebuild that a stop breaks off is begun anew by whoever comes next.
    pub async fn mend(self, rebuild: bool, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut mending = Mending::new(self.watched.clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = mending.at_work.join_next() => mending.ended(ended),
                _ = ticks.tick() => {
                    let Some(fenced) = stop.run_until_cancelled(self.fenced()).await else { return };
                    match fenced {
                        Ok(fenced) => {
                            self.close_gone_back(&fenced).await;
                            self.mend_these(fenced, rebuild, &mut mending);
                        }
                        // Nothing can be rebuilt without the ledger; Redis is asked all the same.
                        Err(_) => self.watched.see_fenced(self.refused().await),
                    }
                }
            }
        }
    }

    fn mend_these(
        &self,
        fenced: Vec<(PartitionRow, FenceReason)>,
        rebuild: bool,
        mending: &mut Mending,
    ) {
        self.watched.see_fenced(fenced.iter().map(|(row, _)| row.partition).collect());
        mending.forget_others(&fenced);
        for (row, reason) in fenced {
            let (partition, epoch) = (row.partition, row.epoch);
            if mending.told.insert(partition, reason) != Some(reason) {
                tracing::error!(%partition, %epoch, rebuild, "fenced: {reason}");
            }
            // A replica cannot be rebuilt; the next look is at whatever the address leads to then.
            let can_be_written = reason != FenceReason::Replica;
            if rebuild && can_be_written && mending.is_due(partition) {
                mending.busy.insert(partition);
                let this = self.clone();
                mending.at_work.spawn(async move { (partition, this.rebuild_seen(row).await) });
            }
        }
        if mending.tell_progress() {
            for (partition, stage) in self.progress() {
                tracing::warn!(%partition, "rebuilding: {stage}");
            }
        }
    }

    /// Rebuilds a partition; what is open is no longer seen to be fenced.
    async fn rebuild_seen(&self, row: PartitionRow) -> Result<Option<Rebuilt>, RebuildError> {
        let rebuilt = self.rebuild(row).await;
        match &rebuilt {
            Ok(Some(_)) => self.watched.see_open(row.partition),
            Err(RebuildError::Ledger(error)) => {
                if let Some(sqlstate) = error.unlisted() {
                    self.metrics.unlisted(sqlstate);
                }
            }
            Ok(None) | Err(_) => {}
        }
        rebuilt
    }

    /// How far the rebuilds of this process are.
    pub fn progress(&self) -> Vec<(Partition, Stage)> {
        self.progress.all()
    }

    /// Rebuilds these partitions, some at a time, each for itself. One that is open is closed first.
    pub async fn rebuild_all(
        &self,
        rows: Vec<PartitionRow>,
    ) -> Vec<(Partition, Result<Option<Rebuilt>, RebuildError>)> {
        let rebuilds = rows
            .into_iter()
            .map(|row| async move { (row.partition, self.rebuild_seen(row).await) });
        stream::iter(rebuilds).buffer_unordered(CONCURRENCY_MAX).collect().await
    }

    /// The partitions that were last seen to be fenced.
    pub fn seen_fenced(&self) -> Vec<Partition> {
        self.watched.fenced()
    }

    /// Why partitions could not be opened or rebuilt when this process last tried.
    pub fn failures(&self) -> BTreeMap<Partition, String> {
        self.watched.failures()
    }

    /// The partitions that Redis refuses under the epoch last believed in.
    async fn refused(&self) -> Vec<Partition> {
        let mut refused = Vec::new();
        for partition in self.deployment.partitions.all() {
            let Some((epoch, _)) = self.lifecycle.partitions().seen(partition) else { continue };
            match self.lifecycle.probe_in(partition, epoch).await {
                Ok(since) => self.stored_seen.see(partition, epoch, since.stored),
                Err(FenceError::Fenced(_)) => refused.push(partition),
                Err(_) => {}
            }
        }
        refused
    }
}
