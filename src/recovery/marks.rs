//! What this process saw of an epoch is reported when the epoch ends, and what was accepted in it and is
//! nowhere is counted (R10).

use std::time::Duration;

use tokio::time::Instant;

use super::Recovery;
use crate::{
    domain::{Epoch, Lost, Partition},
    ledger::{LedgerError, Mark, PartitionRow, PartitionStatus},
};

/// How long a count waits for gateways that live: each looks twice a second, and ends what it has begun
/// within the time that Redis has to answer.
const PATIENCE: Duration = Duration::from_secs(4);
const LOOK: Duration = Duration::from_millis(100);

impl Recovery {
    /// Believes the ledger. Before an epoch is left, its mark is reported; before one is begun, this
    /// gateway stands in the ledger, so that a count knows whom it has not heard.
    pub(super) async fn believe(&self, rows: &[PartitionRow]) -> Result<(), LedgerError> {
        let partitions = self.stock.partitions();
        let (mut begun, mut marks) = (Vec::new(), Vec::new());
        for row in rows {
            let (partition, open) = (row.partition, row.status == PartitionStatus::Open);
            let last = partitions.seen(partition);
            if open && last.is_some_and(|(epoch, _)| epoch == row.epoch) {
                partitions.set_epoch(partition, Some(row.epoch));
                continue;
            }
            partitions.set_epoch(partition, None);
            if self.gateway.is_some() && partitions.is_taking(partition) {
                // Its answers are still on their way: at the next look.
                continue;
            }
            if let Some((epoch, seq)) = last {
                marks.push(Mark { partition, epoch, seq: Some(seq) });
            }
            if open {
                marks.push(Mark { partition, epoch: row.epoch, seq: None });
                begun.push(row);
            }
        }
        self.report(marks).await?;
        for row in begun {
            partitions.set_epoch(row.partition, Some(row.epoch));
        }
        Ok(())
    }

    async fn report(&self, marks: Vec<Mark>) -> Result<(), LedgerError> {
        let Some(gateway) = &self.gateway else { return Ok(()) };
        let mut told = self.told.lock().await;
        let new: Vec<Mark> = marks.into_iter().filter(|mark| !told.contains(mark)).collect();
        self.ledger.report_marks(gateway, &new).await?;
        told.retain(|old| !new.iter().any(|mark| mark.partition == old.partition));
        told.extend(new);
        Ok(())
    }

    /// The last words of a gateway that takes no more orders.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer: a later count then says "at least".
    pub async fn leave(&self) -> Result<(), LedgerError> {
        let partitions = self.stock.partitions();
        let quiet = |partition: &Partition| !partitions.is_taking(*partition);
        let mark = |partition| {
            let (epoch, seq) = partitions.seen(partition)?;
            Some(Mark { partition, epoch, seq: Some(seq) })
        };
        let all = self.deployment.partitions.all();
        all.clone().for_each(|partition| partitions.set_epoch(partition, None));
        self.report(all.filter(quiet).filter_map(mark).collect()).await
    }

    /// What the epoch that was sold from before this one lost. Waits some seconds for gateways that have
    /// not reported.
    pub(super) async fn count_lost(
        &self,
        partition: Partition,
        before: Epoch,
    ) -> Result<Vec<Lost>, LedgerError> {
        let started = Instant::now();
        let sold = loop {
            match self.ledger.unreported(partition, before).await? {
                Some((_, missing)) if missing > 0 && started.elapsed() < PATIENCE => {
                    tokio::time::sleep(LOOK).await;
                }
                Some((epoch, _)) => break epoch,
                None => return Ok(Vec::new()),
            }
        };
        let mut lost = self.ledger.lost(partition, before).await?;
        lost.retain(|lost| lost.epoch >= sold);
        for lost in &lost {
            tracing::error!(
                %partition, epoch = %lost.epoch, lost = lost.count, certainty = lost.certainty(),
                "accepted reservations were lost with Redis"
            );
            self.stock.partitions().metrics().lost(lost.certainty(), lost.count);
        }
        Ok(lost)
    }
}
