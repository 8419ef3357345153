//! The life of a partition as this process sees it: a new one is opened, and what the ledger says of the
//! others is believed. Redis answers for itself, by the fence, whether that is still true.
//!
//! Must never: open a partition twice, or one that something may have been sold from.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Epoch, Partition},
    ledger::{Deployment, Ledger, LedgerError, PartitionStatus},
    stock::{Opening, Stock},
};

/// How often the ledger is asked.
const LOOK: Duration = Duration::from_millis(500);

/// Keeps what is believed of the partitions true.
#[derive(Clone)]
pub struct Recovery {
    ledger: Ledger,
    stock: Stock,
    deployment: Deployment,
}

impl Recovery {
    /// Of this deployment.
    pub fn new(ledger: Ledger, stock: Stock, deployment: Deployment) -> Self {
        Self {
            ledger,
            stock,
            deployment,
        }
    }

    /// Opens what is new, and believes the ledger of the rest.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer; then nothing changes.
    pub async fn look(&self) -> Result<(), LedgerError> {
        let partitions = self.stock.partitions();
        for row in self.ledger.partitions(self.deployment.partitions).await? {
            let epoch = match row.status {
                PartitionStatus::Open => Some(row.epoch),
                PartitionStatus::Closed => None,
                PartitionStatus::New => {
                    self.open(row.partition).await?;
                    continue;
                }
            };
            partitions.set_epoch(row.partition, epoch);
        }
        Ok(())
    }

    async fn open(&self, partition: Partition) -> Result<(), LedgerError> {
        let stock = &self.stock;
        let mut opened = None;
        let open = async |epoch: Epoch| match stock.open(partition, self.deployment.id, epoch).await
        {
            Ok(Opening::Opened) => Some(epoch),
            Ok(Opening::Foreign { key }) => {
                tracing::error!(%partition, key, "Redis holds keys of another deployment: it stays closed");
                None
            }
            Err(error) => {
                tracing::warn!(%partition, error = &error as &dyn std::error::Error, "a new partition cannot be opened yet");
                None
            }
        };
        self.ledger
            .open_partition(partition, async |epoch| {
                opened = open(epoch).await;
                opened.is_some()
            })
            .await?;
        // Only after the commit: nobody sells from a partition that the ledger calls new.
        if let Some(epoch) = opened {
            stock.partitions().set_epoch(partition, Some(epoch));
            tracing::info!(%partition, %epoch, "opened");
        }
        Ok(())
    }

    /// Looks until stopped.
    pub async fn run(self, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK))
            .await
            .is_some()
        {
            if let Err(error) = self.look().await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the partitions cannot be read"
                );
            }
        }
    }
}
