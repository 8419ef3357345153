//! Marks (R10): what this process saw of an epoch is recorded when the epoch ends, so that what was accepted in it and
//! is in neither store can be counted.

use std::time::Duration;

use tokio::time::Instant;

use super::Recovery;
use crate::{
    domain::{Lost, Partition},
    ledger::{LedgerError, Mark, PartitionRow, PartitionStatus},
};

/// How long a count waits for the marks of running gateways: each reads the ledger twice a second, and its scripts end
/// within the time that Redis has to answer.
const MARKS_TIMEOUT: Duration = Duration::from_secs(4);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What this gateway has recorded in the ledger.
#[derive(Debug, Default)]
pub(super) struct Reported {
    /// Its last mark of each partition.
    marks: Vec<Mark>,
    /// The marks are its last ones: it accepts no more reservations.
    is_final: bool,
}

impl Recovery {
    /// Takes the epochs from the ledger. The mark of an epoch is recorded before the epoch is left. Before an epoch is
    /// begun, this gateway is recorded without a mark, so that a count knows which gateways are missing.
    pub(super) async fn take_epochs_from_ledger(
        &self,
        rows: &[PartitionRow],
        reported: &mut Reported,
    ) -> Result<(), LedgerError> {
        if reported.is_final {
            return Ok(());
        }
        let partitions = self.lifecycle.partitions();
        let (mut begun, mut marks) = (Vec::new(), Vec::new());
        for row in rows {
            let (partition, open) = (row.partition, row.status == PartitionStatus::Open);
            let last = partitions.mark(partition);
            // An epoch that was open once is closed only by a higher one.
            if last.is_some_and(|(epoch, _)| row.epoch < epoch || (row.epoch == epoch && !open)) {
                continue;
            }
            if open && last.is_some_and(|(epoch, _)| epoch == row.epoch) {
                partitions.set_epoch(partition, Some(row.epoch));
                continue;
            }
            partitions.set_epoch(partition, None);
            if self.gateway.is_some() && partitions.is_selling(partition) {
                // A script is under way; the epoch is left at the next refresh.
                continue;
            }
            if let Some((epoch, seq)) = last {
                tracing::debug!(%partition, %epoch, seq, "the epoch has ended");
                marks.push(Mark { partition, epoch, seq: Some(seq) });
            }
            if open {
                marks.push(Mark { partition, epoch: row.epoch, seq: None });
                begun.push(row);
            }
        }
        self.report(marks, reported).await?;
        for PartitionRow { partition, epoch, .. } in begun {
            partitions.set_epoch(*partition, Some(*epoch));
            self.status.set_open(*partition);
            tracing::debug!(%partition, %epoch, "the epoch has begun: the partition is open");
        }
        Ok(())
    }

    async fn report(&self, marks: Vec<Mark>, reported: &mut Reported) -> Result<(), LedgerError> {
        let Some(gateway) = &self.gateway else { return Ok(()) };
        let new: Vec<Mark> =
            marks.into_iter().filter(|mark| !reported.marks.contains(mark)).collect();
        self.ledger.report_marks(gateway, &new).await?;
        reported.marks.retain(|old| !new.iter().any(|mark| mark.partition == old.partition));
        reported.marks.extend(new);
        Ok(())
    }

    /// Records the last marks of a gateway, which accepts no more reservations.
    /// After an error, a later count is a minimum.
    pub async fn report_final_marks(&self) -> Result<(), LedgerError> {
        let mut reported = self.reported.lock().await;
        reported.is_final = true;
        let partitions = self.lifecycle.partitions();
        let mark = |partition| {
            let (epoch, seq) = partitions.mark(partition)?;
            Some(Mark { partition, epoch, seq: Some(seq) })
        };
        let all = self.deployment.partitions.all();
        all.clone().for_each(|partition| partitions.set_epoch(partition, None));
        let idle = all.filter(|partition| !partitions.is_selling(*partition));
        self.report(idle.filter_map(mark).collect(), &mut reported).await
    }

    /// Counts what was lost in the last epoch in which each of these partitions was sold, after they were rebuilt.
    /// Waits some seconds for gateways that have not recorded their marks.
    pub async fn count_lost(&self, rebuilt: &[Partition]) -> Result<Vec<Lost>, LedgerError> {
        let started = Instant::now();
        let mut lost = Vec::new();
        for row in self.ledger.partitions(self.deployment.partitions).await? {
            if !rebuilt.contains(&row.partition) {
                continue;
            }
            let sold = loop {
                match self.ledger.unreported(row.partition, row.epoch).await? {
                    Some((_, missing)) if missing > 0 && started.elapsed() < MARKS_TIMEOUT => {
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
