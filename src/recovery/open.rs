//! Opens a new partition.

use super::{RebuildError, Recovery};
use crate::{
    crash_point,
    domain::{Epoch, PartitionEpoch},
    ledger::{LedgerError, PartitionRow, PartitionStatus},
    lifecycle::Opening,
};

impl Recovery {
    /// Opens the new partitions among these; returns the rows as they are then. One process opens at a time; those
    /// that waited find everything open.
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

    /// Opens a new partition. No process sells from it before it is open in the ledger.
    async fn open(&self, row: PartitionRow) -> Result<(), LedgerError> {
        let (partition, deployment) = (row.partition, self.deployment.id);
        if row.epoch >= Epoch::MAX {
            let error = RebuildError::EpochsUsedUp(partition);
            if self.status.set_failure(partition, &error.to_string()) {
                tracing::error!(%partition, "the new partition cannot be opened: {error}");
            }
            return Ok(());
        }
        // An epoch is used only if Redis holds nothing that would prevent the opening.
        let opening = match self.lifecycle.foreign_key(partition, deployment).await {
            Ok(Some(key)) => Ok(Opening::Foreign(key)),
            Err(error) => Err(error),
            Ok(None) => {
                let timeline = self.timeline().await?;
                let Some(epoch) = self.ledger.begin_opening(row).await? else { return Ok(()) };
                crash_point::reach("opening_begun");
                let at = PartitionEpoch { partition, epoch };
                let opening = self.lifecycle.open(at, timeline.as_deref()).await;
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
            // Superseded: the process that took a higher epoch opens it.
            Ok(Opening::Opened | Opening::Superseded) => {}
            Ok(Opening::Foreign(key)) => tracing::error!(
                %partition, key,
                "Redis holds keys of another deployment, so the new partition is not opened"
            ),
            Err(error) => tracing::warn!(
                %partition, error = &error as &dyn std::error::Error,
                "the new partition cannot be opened yet"
            ),
        }
        Ok(())
    }
}
