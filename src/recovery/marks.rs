//! What this process saw of an epoch is reported when the epoch ends, and what was accepted in it and is
//! nowhere is counted (R10).

use std::time::Duration;

use tokio::time::Instant;

use super::Recovery;
use crate::{
    domain::{Lost, Partition},
    ledger::{LedgerError, Mark, PartitionRow, PartitionStatus},
};

/// How long a count waits for gateways that live: each looks twice a second, and ends what it has begun
/// within the time that Redis has to answer.
const TIMEOUT: Duration = Duration::from_secs(4);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What a gateway has told the ledger of itself.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Its last mark of each partition.
    marks: Vec<Mark>,
    /// It takes no more orders.
    left: bool,
}

impl Recovery {
    /// Believes the ledger. Before an epoch is left, its mark is reported; before one is begun, this
    /// gateway stands in the ledger, so that a count knows whom it has not heard.
    pub(super) async fn believe(
        &self,
        rows: &[PartitionRow],
        told: &mut Told,
    ) -> Result<(), LedgerError> {
        if told.left {
            return Ok(());
        }
        let partitions = self.lifecycle.partitions();
        let (mut begun, mut marks) = (Vec::new(), Vec::new());
        for row in rows {
            let (partition, open) = (row.partition, row.status == PartitionStatus::Open);
            let last = partitions.seen(partition);
            // An epoch that was open once is never closed: only a later one is.
            if last.is_some_and(|(epoch, _)| row.epoch < epoch || (row.epoch == epoch && !open)) {
                continue;
            }
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
        self.report(marks, told).await?;
        for row in begun {
            partitions.set_epoch(row.partition, Some(row.epoch));
        }
        Ok(())
    }

    async fn report(&self, marks: Vec<Mark>, told: &mut Told) -> Result<(), LedgerError> {
        let Some(gateway) = &self.gateway else { return Ok(()) };
        let new: Vec<Mark> = marks.into_iter().filter(|mark| !told.marks.contains(mark)).collect();
        self.ledger.report_marks(gateway, &new).await?;
        told.marks.retain(|old| !new.iter().any(|mark| mark.partition == old.partition));
        told.marks.extend(new);
        Ok(())
    }

    /// The last words of a gateway, which takes no more orders.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer: a later count then says "at least".
    pub async fn leave(&self) -> Result<(), LedgerError> {
        let mut told = self.told.lock().await;
        told.left = true;
        let partitions = self.lifecycle.partitions();
        let quiet = |partition: &Partition| !partitions.is_taking(*partition);
        let mark = |partition| {
            let (epoch, seq) = partitions.seen(partition)?;
            Some(Mark { partition, epoch, seq: Some(seq) })
        };
        let all = self.deployment.partitions.all();
        all.clone().for_each(|partition| partitions.set_epoch(partition, None));
        self.report(all.filter(quiet).filter_map(mark).collect(), &mut told).await
    }

    /// What the epochs that these partitions were sold in last have lost, after they were rebuilt. Waits
    /// some seconds for gateways that have not reported.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer.
    pub async fn count_lost(&self, rebuilt: &[Partition]) -> Result<Vec<Lost>, LedgerError> {
        let started = Instant::now();
        let mut lost = Vec::new();
        for row in self.ledger.partitions(self.deployment.partitions).await? {
            if !rebuilt.contains(&row.partition) {
                continue;
            }
            let sold = loop {
                match self.ledger.unreported(row.partition, row.epoch).await? {
                    Some((_, missing)) if missing > 0 && started.elapsed() < TIMEOUT => {
                        tokio::time::sleep(POLL_INTERVAL).await;
                    }
                    last => break last.map_or(row.epoch, |(epoch, _)| epoch),
                }
            };
            let all = self.ledger.lost(row.partition, row.epoch).await?;
            lost.extend(all.into_iter().filter(|lost| lost.epoch >= sold));
        }
        Ok(lost)
    }
}
