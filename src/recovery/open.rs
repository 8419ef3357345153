//! A new partition's first life.

use super::{RebuildError, Recovery};
use crate::{
    crash_point,
    domain::Epoch,
    ledger::{LedgerError, PartitionRow, PartitionStatus},
    stock::Opening,
};

impl Recovery {
    /// Opens what is new among these; returns them as they are then. One process at a time, and whoever
    /// waited finds everything open.
    pub(super) async fn open_new(
        &self,
        rows: Vec<PartitionRow>,
    ) -> Result<Vec<PartitionRow>, LedgerError> {
        let is_new = |row: &&PartitionRow| row.status == PartitionStatus::New;
        if !rows.iter().any(|row| is_new(&row)) {
            return Ok(rows);
        }
        let _turn = self.ledger.lock_opening().await?;
        for row in self.ledger.partitions(self.deployment.partitions).await?.iter().filter(is_new) {
            self.open(*row).await?;
        }
        self.ledger.partitions(self.deployment.partitions).await
    }

    /// Opens a new partition. Nobody sells from it before the ledger calls it open.
    async fn open(&self, row: PartitionRow) -> Result<(), LedgerError> {
        let (partition, deployment) = (row.partition, self.deployment.id);
        if row.epoch >= Epoch::LAST {
            let error = RebuildError::EpochsUsedUp(partition);
            if self.watched.see_failure(partition, error.to_string()) {
                tracing::error!(%partition, "a new partition cannot be opened: {error}");
            }
            return Ok(());
        }
        // An epoch is spent only where nothing stands in the way.
        let opening = match self.stock.unrecognized(partition, deployment).await {
            Ok(Some(key)) => Ok(Opening::Foreign { key }),
            Err(error) => Err(error),
            Ok(None) => {
                let timeline = self.timeline().await?;
                let Some(epoch) = self.ledger.begin_opening(row).await? else { return Ok(()) };
                crash_point::reach("opening_begun");
                let opening =
                    self.stock.open(partition, (deployment, timeline.as_deref()), epoch).await;
                crash_point::reach("opening_opened");
                if matches!(opening, Ok(Opening::Opened))
                    && self.ledger.opened(partition, epoch).await?
                {
                    tracing::info!(%partition, %epoch, "opened");
                }
                opening
            }
        };
        match opening {
            // Late: whoever is further opens it.
            Ok(Opening::Opened | Opening::Late) => {}
            Ok(Opening::Foreign { key }) => {
                tracing::error!(%partition, key, "Redis holds keys of another deployment: it stays closed");
            }
            Err(error) => {
                tracing::warn!(%partition, error = &error as &dyn std::error::Error, "a new partition cannot be opened yet");
            }
        }
        Ok(())
    }
}
