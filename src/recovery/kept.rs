//! Notices a ledger that lost commits: by its timeline, by an order that it had stored and no longer holds, or by
//! an earlier epoch than one that it had.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use super::Recovery;
use crate::{
    domain::{Epoch, Partition},
    ledger::{LedgerError, PartitionRow, Timeline},
    lifecycle::SinceOpened,
    redis::{FenceError, FenceReason},
};

/// The last stored seqs that were read from Redis, by partition. A ledger that comes back without them may have stored
/// later ones by the time it is looked at.
#[derive(Debug, Clone, Default)]
pub(super) struct StoredSeen {
    seen: Arc<Mutex<HashMap<Partition, (Epoch, u64)>>>,
}

impl StoredSeen {
    pub(super) fn see(&self, partition: Partition, epoch: Epoch, stored: u64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(partition, (epoch, stored));
    }

    fn of(&self, partition: Partition, epoch: Epoch) -> Option<u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&partition).filter(|(of, _)| *of == epoch).map(|(_, stored)| *stored)
    }
}

impl Recovery {
    /// The timeline of the ledger, where it tells one.
    pub(super) async fn timeline(&self) -> Result<Option<String>, LedgerError> {
        if self.timeline_refused.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match self.ledger.timeline().await? {
            Timeline::On(timeline) => Ok(Some(timeline)),
            Timeline::Standby => Ok(None),
            Timeline::Refused => {
                // Asked once: each refusal is an error in the log of Postgres.
                if !self.timeline_refused.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "Postgres does not tell its timeline (pg_current_wal_lsn, pg_walfile_name): a failover that \
                         loses commits is noticed only where a stored order is missing"
                    );
                }
                Ok(None)
            }
        }
    }

    /// The last epoch that this process believed in, by partition.
    pub(super) fn believed(&self) -> HashMap<Partition, Epoch> {
        let of = |partition| Some((partition, self.lifecycle.partitions().seen(partition)?.0));
        self.deployment.partitions.all().filter_map(of).collect()
    }

    /// The partitions for which the ledger holds an earlier epoch than one that it had before. A standby may be
    /// behind, and is not asked.
    pub(super) async fn behind(
        &self,
        believed: &HashMap<Partition, Epoch>,
        rows: &[PartitionRow],
    ) -> Result<Vec<Partition>, LedgerError> {
        let is_behind = |row: &&PartitionRow| {
            believed.get(&row.partition).is_some_and(|believed| row.epoch < *believed)
        };
        let behind: Vec<Partition> =
            rows.iter().filter(is_behind).map(|row| row.partition).collect();
        if behind.is_empty() || self.ledger.is_standby().await? {
            return Ok(Vec::new());
        }
        Ok(behind)
    }

    /// Those of these open partitions for which the ledger went back, and how that was noticed. What Redis
    /// remembers was read before the ledger is: an order is settled only after its commit.
    pub(super) async fn went_back(
        &self,
        open: &[(PartitionRow, SinceOpened)],
    ) -> Result<Vec<(PartitionRow, FenceReason)>, LedgerError> {
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let mut stored = Vec::new();
        for (row, since) in open {
            let before = self.stored_seen.of(row.partition, row.epoch);
            let seqs = std::iter::once(since.stored).chain(before.filter(|b| *b != since.stored));
            stored.extend(seqs.filter(|seq| *seq > 0).map(|seq| (row.partition, row.epoch, seq)));
        }
        let missing = self.ledger.without_order(&stored).await?;
        for (row, since) in open {
            self.stored_seen.see(row.partition, row.epoch, since.stored);
        }
        let now = self.timeline().await?;
        let reason = |(row, since): &(PartitionRow, SinceOpened)| {
            let moved =
                now.as_ref().zip(since.timeline.as_ref()).is_some_and(|(now, then)| now != then);
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

    /// Closes the partitions for which the ledger went back: nothing more is taken until they are rebuilt.
    pub(super) async fn close_gone_back(&self, fenced: &[(PartitionRow, FenceReason)]) {
        for (row, reason) in fenced {
            let epoch = match (reason, self.lifecycle.partitions().seen(row.partition)) {
                (FenceReason::Timeline | FenceReason::StoredLost, _) => row.epoch,
                (FenceReason::LedgerBehind, Some((believed, _))) => believed,
                _ => continue,
            };
            match self.lifecycle.close_in(row.partition, epoch).await {
                // Fenced: another process was first.
                Ok(()) | Err(FenceError::Fenced(_)) => {}
                Err(error) => tracing::warn!(
                    partition = %row.partition, error = &error as &dyn std::error::Error,
                    "a partition whose ledger went back is not closed yet"
                ),
            }
        }
    }
}
