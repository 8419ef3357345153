//! Opens a new partition.

use super::{RebuildError, Recovery};
use crate::{
    crash_point,
    domain::{Epoch, Partition, PartitionEpoch},
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
        let _lock = self.ledger.lock_opening().await?;
        for row in self.ledger.partitions(self.deployment.partitions).await?.iter().filter(is_new) {
            self.open(*row).await?;
        }
        self.ledger.partitions(self.deployment.partitions).await
    }

    /// Opens a new partition. No process sells from it before it is open in the ledger.
    async fn open(&self, row: PartitionRow) -> Result<(), LedgerError> {
        let (partition, deployment) = (row.partition, self.deployment.id);
        if row.epoch >= Epoch::MAX {
            self.report_unopened(partition, &RebuildError::EpochsUsedUp.to_string());
            return Ok(());
        }
        // An epoch is used only if Redis holds nothing that would prevent the opening, and accepts writes.
        let checked = async {
            let prevented = self.lifecycle.prevented_opening(partition, deployment).await?;
            // Nothing is written to a Redis of another deployment, not even this check.
            if prevented.is_none() {
                self.lifecycle.check_writable(partition).await?;
            }
            Ok(prevented)
        };
        let opening = match checked.await {
            Ok(Some(prevented)) => Ok(prevented),
            Err(error) => Err(error),
            Ok(None) => {
                let timeline = self.timeline().await?;
                let Some(epoch) = self.ledger.begin_opening(row).await? else { return Ok(()) };
                crash_point::reach("opening_begun");
                let at = PartitionEpoch { partition, epoch };
                let opening = self.lifecycle.open(at, timeline.as_deref()).await;
                crash_point::reach("opening_opened");
                if matches!(opening, Ok(Opening::Opened))
                    && self.ledger.set_open(partition, epoch, PartitionStatus::New).await?
                {
                    tracing::info!(%partition, %epoch, "the new partition is open");
                }
                opening
            }
        };
        match opening {
            // Superseded: the process that took a higher epoch opens it. In use: if the ledger lost the opening, the
            // watch for fenced partitions finds it and reports it.
            Ok(Opening::Opened | Opening::Superseded | Opening::InUse) => {}
            Ok(Opening::OtherDeployment(key)) => self.report_unopened(
                partition,
                &format!(
                    "Redis holds the key {key} of another deployment: set another key_prefix or redis_url, or delete \
                     the keys"
                ),
            ),
            Err(error) => {
                let error = anyhow::Error::from(error);
                if self.status.set_failure(partition, &format!("{error:#}")) {
                    tracing::warn!(
                        %partition, error = error.as_ref() as &dyn std::error::Error,
                        "the new partition cannot be opened yet; trying again"
                    );
                }
            }
        }
        Ok(())
    }

    /// States why a new partition is not opened: in the status until it is open, and in the log if that is new.
    fn report_unopened(&self, partition: Partition, why: &str) {
        if self.status.set_failure(partition, why) {
            tracing::error!(%partition, "the new partition cannot be opened: {why}");
        }
    }
}
