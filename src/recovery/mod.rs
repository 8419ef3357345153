//! The epochs of partitions: a new partition is opened, a fenced one is rebuilt from the ledger, and this process reads
//! the epochs of all other partitions from the ledger. Redis itself refuses, by the fence, what does not agree with it.
//!
//! Must never: open a partition twice, or one with anything in flight.

mod attempts;
mod dry_run;
mod lost_commits;
mod marks;
mod open;
mod ready;
mod rebuild;
mod status;
mod steps;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all, stream};
use tokio_util::sync::CancellationToken;

use self::{
    attempts::{Attempts, CONCURRENCY_MAX},
    lost_commits::LastStored,
    marks::Reported,
};
pub use self::{
    rebuild::{RebuildError, Rebuilt},
    status::{Stage, Status, StatusSnapshot},
};
use crate::{
    domain::Partition,
    ledger::{Deployment, Ledger, LedgerError, PartitionRow, PartitionStatus},
    lifecycle::Lifecycle,
    redis::{FenceReason, RedisCallError},
    stream::Streams,
    tasks::tick,
    telemetry::Metrics,
};

/// How often the ledger and Redis are read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Opens and rebuilds partitions; clones share what they know. A call fails when Postgres does not answer.
#[derive(Clone)]
pub struct Recovery {
    ledger: Ledger,
    lifecycle: Lifecycle,
    streams: Streams,
    deployment: Deployment,
    metrics: Metrics,
    /// The name of this process, if it accepts reservations.
    gateway: Option<String>,
    status: Status,
    /// Held while the epochs of the ledger are applied, so that an older read cannot undo a newer one.
    reported: Arc<tokio::sync::Mutex<Reported>>,
    /// Postgres refuses to report its timeline.
    timeline_refused: Arc<AtomicBool>,
    last_stored: LastStored,
}

impl Recovery {
    /// For the partitions of this deployment, in a process that accepts no reservations.
    pub fn new(
        ledger: Ledger,
        lifecycle: Lifecycle,
        streams: Streams,
        deployment: Deployment,
        metrics: Metrics,
    ) -> Self {
        Self {
            ledger,
            lifecycle,
            streams,
            deployment,
            metrics,
            gateway: None,
            status: Status::default(),
            reported: Arc::default(),
            timeline_refused: Arc::default(),
            last_stored: LastStored::default(),
        }
    }

    /// In a process that accepts reservations and has this unique name.
    #[must_use]
    pub fn for_gateway(self, name: String) -> Self {
        Self { gateway: Some(name), ..self }
    }

    /// Reads the partitions from the ledger, opens the new ones, and applies the epochs of all.
    /// After an error nothing has changed.
    pub async fn refresh(&self) -> Result<(), LedgerError> {
        let mut reported = self.reported.lock().await;
        let rows = self.ledger.partitions(self.deployment.partitions).await?;
        let rows = self.open_new(rows).await?;
        self.apply_epochs(&rows, &mut reported).await
    }

    /// Refreshes until stopped.
    pub async fn run(self, stop: CancellationToken) {
        while tick(POLL_INTERVAL, &stop).await {
            if let Err(error) = self.refresh().await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the partitions cannot be read"
                );
            }
        }
    }

    /// Partitions that are closed, that Redis refuses in the epoch of the ledger, or for which the ledger lost commits.
    pub async fn fenced(&self) -> Result<Vec<(PartitionRow, FenceReason)>, LedgerError> {
        let (mut fenced, mut open) = (Vec::new(), Vec::new());
        // Read before the ledger: each of these epochs was in the ledger at that time.
        let known = self.known_epochs();
        let mut rows = self.ledger.partitions(self.deployment.partitions).await?;
        let in_use = self.in_use_while_new(&rows).await;
        if !in_use.is_empty() {
            // Read again, because another process may have opened them since.
            rows = self.ledger.partitions(self.deployment.partitions).await?;
        }
        let behind = self.behind(&known, &in_use, &rows).await?;
        // At the same time, because one of several masters may not answer.
        let probes = rows.into_iter().map(|row| {
            let behind = behind.get(&row.partition).copied();
            async move {
                let state = match (behind, row.status) {
                    (Some(reason), _) => Some(Err(RedisCallError::Fenced(reason))),
                    (None, PartitionStatus::New) => None,
                    (None, PartitionStatus::Closed) => {
                        Some(Err(RedisCallError::Fenced(FenceReason::Closed)))
                    }
                    (None, PartitionStatus::Open) => {
                        Some(self.lifecycle.probe_in(row.partition, row.epoch).await)
                    }
                };
                (row, state)
            }
        });
        let probes: Vec<_> = probes.collect();
        for (row, state) in join_all(probes).await {
            match state {
                Some(Ok(state)) => open.push((row, state)),
                Some(Err(RedisCallError::Fenced(reason))) => fenced.push((row, reason)),
                // Nothing follows from a Redis that does not answer.
                Some(Err(_)) | None => {}
            }
        }
        fenced.extend(self.lost_commits(&open).await?);
        Ok(fenced)
    }

    /// Checks for fenced partitions until stopped and, with `rebuild`, rebuilds them. A rebuild that is
    /// interrupted by the stop is done again by the next process that finds the partition fenced.
    pub async fn check_fenced(self, rebuild: bool, stop: CancellationToken) {
        let mut attempts = Attempts::new(self.status.clone());
        loop {
            attempts.collect();
            match stop.run_until_cancelled(self.fenced()).await {
                Some(Ok(fenced)) => {
                    self.close_after_lost_commits(&fenced).await;
                    self.handle_fenced(fenced, rebuild, &mut attempts);
                }
                // Nothing can be rebuilt without the ledger, but what Redis refuses is known.
                Some(Err(_)) => self.status.set_fenced(self.refused_by_redis().await),
                None => return,
            }
            if !tick(POLL_INTERVAL, &stop).await {
                return;
            }
        }
    }

    fn handle_fenced(
        &self,
        fenced: Vec<(PartitionRow, FenceReason)>,
        rebuild: bool,
        attempts: &mut Attempts,
    ) {
        self.status.set_fenced(fenced.iter().map(|(row, reason)| (row.partition, *reason)));
        attempts.keep_fenced(&fenced);
        for (row, reason) in fenced {
            let (partition, epoch) = (row.partition, row.epoch);
            if attempts.is_new_reason(partition, reason) {
                let next = if reason == FenceReason::Replica {
                    "a rebuild needs the master".to_owned()
                } else if rebuild {
                    "a rebuild follows".to_owned()
                } else {
                    format!("run `yoink rebuild --partition {partition}`")
                };
                tracing::error!(%partition, %epoch, "the partition is fenced: {reason}; {next}");
            }
            // A replica cannot be rebuilt. At the next check its address may be that of another server.
            if rebuild && reason != FenceReason::Replica {
                attempts.start(self, row);
            }
        }
        if attempts.progress_is_due() {
            for (partition, stage) in self.status.snapshot().stages {
                tracing::warn!(%partition, "rebuilding: {stage}");
            }
        }
    }

    /// Rebuilds a partition that was seen to be fenced, and updates the status.
    async fn rebuild_and_report(&self, row: PartitionRow) -> Result<Option<Rebuilt>, RebuildError> {
        let rebuilt = self.rebuild(row).await;
        match &rebuilt {
            Ok(Some(_)) => self.status.set_open(row.partition),
            Err(RebuildError::Ledger(error)) => {
                if let Some(sqlstate) = error.unlisted() {
                    self.metrics.record_unlisted(sqlstate);
                }
            }
            Ok(None) | Err(_) => {}
        }
        rebuilt
    }

    /// Rebuilds these partitions, some at a time, each independently. One that is open is closed first.
    pub async fn rebuild_all(
        &self,
        rows: Vec<PartitionRow>,
    ) -> Vec<(Partition, Result<Option<Rebuilt>, RebuildError>)> {
        let rebuilds = rows
            .into_iter()
            .map(|row| async move { (row.partition, self.rebuild_and_report(row).await) });
        stream::iter(rebuilds).buffer_unordered(CONCURRENCY_MAX).collect().await
    }

    /// What this process last saw of the partitions.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// The partitions that Redis refuses in the epoch that this process knows.
    async fn refused_by_redis(&self) -> Vec<(Partition, FenceReason)> {
        let mut refused = Vec::new();
        let probes = self.known_epochs().into_iter().map(|(partition, epoch)| async move {
            (partition, epoch, self.lifecycle.probe_in(partition, epoch).await)
        });
        let probes: Vec<_> = probes.collect();
        for (partition, epoch, state) in join_all(probes).await {
            match state {
                Ok(state) => self.last_stored.set(partition, epoch, state.stored_seq),
                Err(RedisCallError::Fenced(reason)) => refused.push((partition, reason)),
                Err(_) => {}
            }
        }
        refused
    }
}
