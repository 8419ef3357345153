//! Detects a ledger that lost commits: by its timeline, by an order that was stored and is missing, by an epoch that is
//! lower than an earlier one, or by a partition that is new in it and in use in Redis.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use super::Recovery;
use crate::{
    domain::{Epoch, Partition},
    ledger::{LedgerError, PartitionRow, PartitionStatus, Timeline},
    lifecycle::StoredState,
    redis::{FenceReason, RedisCallError},
};

/// The last stored seq of each partition, as Redis had it. A ledger that lost this order may have stored later ones
/// by the time it is read.
#[derive(Debug, Clone, Default)]
pub(super) struct LastStored {
    seqs: Arc<Mutex<HashMap<Partition, (Epoch, u64)>>>,
}

impl LastStored {
    pub(super) fn set(&self, partition: Partition, epoch: Epoch, stored_seq: u64) {
        let mut seqs = self.seqs.lock().unwrap_or_else(PoisonError::into_inner);
        seqs.insert(partition, (epoch, stored_seq));
    }

    fn get(&self, partition: Partition, epoch: Epoch) -> Option<u64> {
        let seqs = self.seqs.lock().unwrap_or_else(PoisonError::into_inner);
        seqs.get(&partition).filter(|(of, _)| *of == epoch).map(|(_, stored_seq)| *stored_seq)
    }
}

impl Recovery {
    /// The timeline of the ledger, where Postgres reports one.
    pub(super) async fn timeline(&self) -> Result<Option<String>, LedgerError> {
        if self.timeline_refused.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match self.ledger.timeline().await? {
            Timeline::On(timeline) => Ok(Some(timeline)),
            Timeline::Standby => Ok(None),
            Timeline::Refused => {
                // Not read again after a refusal, because Postgres logs each one as an error.
                if !self.timeline_refused.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "Postgres refuses to report its timeline (pg_current_wal_lsn, pg_walfile_name): a failover \
                         that loses commits is detected only where a stored order is missing"
                    );
                }
                Ok(None)
            }
        }
    }

    /// The last epoch that this process took from the ledger, by partition.
    pub(super) fn known_epochs(&self) -> BTreeMap<Partition, Epoch> {
        let epoch = |partition| Some((partition, self.lifecycle.partitions().mark(partition)?.0));
        self.deployment.partitions.all().filter_map(epoch).collect()
    }

    /// Those of these partitions that are new in the ledger and in use in Redis.
    pub(super) async fn in_use_while_new(&self, rows: &[PartitionRow]) -> Vec<Partition> {
        let mut in_use = Vec::new();
        for row in rows.iter().filter(|row| row.status == PartitionStatus::New) {
            // Nothing follows from a Redis that does not answer.
            let meta = self.lifecycle.read_meta(row.partition).await.ok().flatten();
            if meta.is_some_and(|meta| meta.deployment == self.deployment.id && meta.in_use) {
                in_use.push(row.partition);
            }
        }
        in_use
    }

    /// The partitions for which the ledger holds an earlier state than one that it held before: before `rows` were read,
    /// it had the `known` epochs, and those `in_use` were open in it. A standby may be behind its primary, so nothing
    /// follows from it.
    pub(super) async fn behind(
        &self,
        known: &BTreeMap<Partition, Epoch>,
        in_use: &[Partition],
        rows: &[PartitionRow],
    ) -> Result<HashMap<Partition, FenceReason>, LedgerError> {
        let reason = |row: &PartitionRow| {
            let is_lower = known.get(&row.partition).is_some_and(|known| row.epoch < *known);
            if row.status == PartitionStatus::New && in_use.contains(&row.partition) {
                Some(FenceReason::OpeningLost)
            } else {
                is_lower.then_some(FenceReason::LedgerBehind)
            }
        };
        let behind = rows.iter().filter_map(|row| Some((row.partition, reason(row)?)));
        let behind: HashMap<_, _> = behind.collect();
        if behind.is_empty() || self.ledger.is_standby().await? {
            return Ok(HashMap::new());
        }
        Ok(behind)
    }

    /// Those of these open partitions for which the ledger lost commits, and how that was detected. Redis was read
    /// before the ledger is: an order is settled in Redis only after its commit.
    pub(super) async fn lost_commits(
        &self,
        open: &[(PartitionRow, StoredState)],
    ) -> Result<Vec<(PartitionRow, FenceReason)>, LedgerError> {
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let mut stored = Vec::new();
        for (row, StoredState { stored_seq, .. }) in open {
            let before = self.last_stored.get(row.partition, row.epoch);
            let seqs = std::iter::once(*stored_seq).chain(before.filter(|b| b != stored_seq));
            stored.extend(seqs.filter(|seq| *seq > 0).map(|seq| (row.partition, row.epoch, seq)));
        }
        let missing = self.ledger.without_order(&stored).await?;
        for (row, StoredState { stored_seq, .. }) in open {
            self.last_stored.set(row.partition, row.epoch, *stored_seq);
        }
        let now = self.timeline().await?;
        let reason = |(row, state): &(PartitionRow, StoredState)| {
            let moved =
                now.as_ref().zip(state.timeline.as_ref()).is_some_and(|(now, then)| now != then);
            let reason = if moved {
                FenceReason::Timeline
            } else if missing.contains(&row.partition) {
                FenceReason::StoredLost
            } else {
                return None;
            };
            Some((*row, reason))
        };
        Ok(open.iter().filter_map(reason).collect())
    }

    /// Closes the partitions for which the ledger lost commits: nothing more is sold until they are rebuilt.
    pub(super) async fn close_after_lost_commits(&self, fenced: &[(PartitionRow, FenceReason)]) {
        for (row, reason) in fenced {
            let epoch = match (reason, self.lifecycle.partitions().mark(row.partition)) {
                (FenceReason::Timeline | FenceReason::StoredLost, _) => row.epoch,
                (FenceReason::LedgerBehind | FenceReason::OpeningLost, Some((known, _))) => known,
                _ => continue,
            };
            match self.lifecycle.close_in(row.partition, epoch).await {
                // Fenced: another process has closed it.
                Ok(()) | Err(RedisCallError::Fenced(_)) => {}
                Err(error) => tracing::warn!(
                    partition = %row.partition, %epoch, error = &error as &dyn std::error::Error,
                    "Postgres lost commits, and Redis did not confirm that the partition is closed: it may still \
                     sell; trying again"
                ),
            }
        }
    }
}
