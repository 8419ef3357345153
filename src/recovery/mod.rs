//! The life of a partition: a new one is opened, a fenced one is rebuilt from the ledger, and what the
//! ledger says of the others is believed. Redis answers for itself, by the fence, whether that is true.
//!
//! Must never: open a partition twice, or one with anything in flight.

mod marks;
mod rebuild;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::marks::Told;
pub use self::rebuild::{RebuildError, Rebuilt};
use crate::{
    domain::{Epoch, Partition},
    fence::{FenceError, FenceReason},
    ledger::{Deployment, Ledger, LedgerError, PartitionRow, PartitionStatus},
    stock::{Opening, Stock},
    stream::Streams,
};

/// How often the ledger is asked.
const LOOK: Duration = Duration::from_millis(500);
/// Rebuilds side by side: each holds a connection to Postgres.
const AT_A_TIME: usize = 4;
/// Between attempts at rebuilding a partition.
const AGAIN: Duration = Duration::from_secs(5);

/// Keeps what is believed of the partitions true.
#[derive(Clone)]
pub struct Recovery {
    ledger: Ledger,
    stock: Stock,
    streams: Streams,
    deployment: Deployment,
    seen_fenced: Arc<Mutex<Vec<Partition>>>,
    /// What this process is called, if it takes orders.
    gateway: Option<String>,
    /// Held while the ledger is read and believed: an older look must not undo a newer one.
    told: Arc<tokio::sync::Mutex<Told>>,
}

impl Recovery {
    /// Of this deployment; a process that takes orders has a name of its own.
    pub fn new(
        (ledger, stock, streams): (Ledger, Stock, Streams),
        deployment: Deployment,
        gateway: Option<String>,
    ) -> Self {
        let (seen_fenced, told) = (Arc::default(), Arc::default());
        Self { ledger, stock, streams, deployment, seen_fenced, gateway, told }
    }

    /// Opens what is new, and believes the ledger of all.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer; then nothing changes.
    pub async fn look(&self) -> Result<(), LedgerError> {
        let mut told = self.told.lock().await;
        let mut rows = self.ledger.partitions(self.deployment.partitions).await?;
        let is_new = |row: &&PartitionRow| row.status == PartitionStatus::New;
        if rows.iter().any(|row| is_new(&row)) {
            for row in rows.iter().filter(is_new) {
                self.open(row.partition).await?;
            }
            // Read again, also for what somebody else has opened meanwhile.
            rows = self.ledger.partitions(self.deployment.partitions).await?;
        }
        self.believe(&rows, &mut told).await
    }

    /// Opens a new partition. Nobody sells from it before the ledger calls it open.
    async fn open(&self, partition: Partition) -> Result<(), LedgerError> {
        let open = async |epoch: Epoch| match self
            .stock
            .open(partition, self.deployment.id, epoch)
            .await
        {
            Ok(Opening::Opened) => {
                tracing::info!(%partition, %epoch, "opened");
                true
            }
            Ok(Opening::Foreign { key }) => {
                tracing::error!(%partition, key, "Redis holds keys of another deployment: it stays closed");
                false
            }
            Err(error) => {
                tracing::warn!(%partition, error = &error as &dyn std::error::Error, "a new partition cannot be opened yet");
                false
            }
        };
        self.ledger.open_partition(partition, open).await.map(drop)
    }

    /// Partitions that are closed, or that Redis refuses to what the ledger says of them.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer.
    pub async fn fenced(&self) -> Result<Vec<(PartitionRow, FenceReason)>, LedgerError> {
        let mut fenced = Vec::new();
        for row in self.ledger.partitions(self.deployment.partitions).await? {
            match row.status {
                PartitionStatus::New => {}
                PartitionStatus::Closed => fenced.push((row, FenceReason::Closed)),
                PartitionStatus::Open => {
                    // A Redis that is away tells nothing.
                    let probed = self.stock.probe_in(row.partition, row.epoch).await;
                    if let Err(FenceError::Fenced(reason)) = probed {
                        fenced.push((row, reason));
                    }
                }
            }
        }
        Ok(fenced)
    }

    /// Looks until stopped.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            if let Err(error) = self.look().await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the partitions cannot be read"
                );
            }
        }
    }

    /// Watches for fenced partitions until stopped and, with `rebuild`, rebuilds them.
    pub async fn mend(self, rebuild: bool, stop: CancellationToken) {
        let mut tried: HashMap<Partition, Instant> = HashMap::new();
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let Ok(fenced) = self.fenced().await else {
                // Nothing can be rebuilt without the ledger; Redis is asked all the same.
                self.see_fenced(self.refused().await);
                continue;
            };
            self.see_fenced(fenced.iter().map(|(row, _)| row.partition).collect());
            tried.retain(|partition, _| fenced.iter().any(|(row, _)| row.partition == *partition));
            let due = |row: &PartitionRow| {
                tried.get(&row.partition).is_none_or(|at| at.elapsed() >= AGAIN)
            };
            let due: Vec<_> = fenced.into_iter().filter(|(row, _)| due(row)).collect();
            for (row, reason) in &due {
                let (partition, epoch) = (row.partition, row.epoch);
                tracing::error!(%partition, %epoch, rebuild, "fenced: {reason}");
            }
            tried.extend(due.iter().map(|(row, _)| (row.partition, Instant::now())));
            if rebuild {
                for (partition, rebuilt) in self.rebuild_all(due).await {
                    if let Err(error) = rebuilt {
                        tracing::error!(%partition, error = &error as &dyn std::error::Error, "not rebuilt yet");
                    }
                }
            }
        }
    }

    /// Rebuilds fenced partitions, some at a time, each for itself.
    pub async fn rebuild_all(
        &self,
        fenced: Vec<(PartitionRow, FenceReason)>,
    ) -> Vec<(Partition, Result<Option<Rebuilt>, RebuildError>)> {
        let rebuilds = fenced.into_iter().map(|(row, _)| async move {
            let rebuilt = self.rebuild(row).await;
            if matches!(rebuilt, Ok(Some(_))) {
                self.seen().retain(|partition| *partition != row.partition);
            }
            (row.partition, rebuilt)
        });
        stream::iter(rebuilds).buffer_unordered(AT_A_TIME).collect().await
    }

    /// The partitions that were last seen to be fenced.
    pub fn seen_fenced(&self) -> Vec<Partition> {
        self.seen().clone()
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Partition>> {
        self.seen_fenced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see_fenced(&self, partitions: Vec<Partition>) {
        *self.seen() = partitions;
    }

    /// The partitions that Redis refuses under the epoch last believed in.
    async fn refused(&self) -> Vec<Partition> {
        let mut refused = Vec::new();
        for partition in self.deployment.partitions.all() {
            let Some((epoch, _)) = self.stock.partitions().seen(partition) else { continue };
            let probed = self.stock.probe_in(partition, epoch).await;
            if matches!(probed, Err(FenceError::Fenced(_))) {
                refused.push(partition);
            }
        }
        refused
    }
}
