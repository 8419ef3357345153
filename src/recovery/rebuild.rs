//! Rebuilds a fenced partition from the ledger (R7–R9).
//!
//! ```text
//! ledger: epoch + 1, closed ─> Redis: closed ─> drained ─> filled ─> Redis: open ─> ledger: open
//! ```
//!
//! A crash anywhere leaves the partition closed in the ledger. The next rebuild starts in an epoch of its own, and
//! every script of this one is refused from then on.

use super::{Recovery, steps::Rebuild};
use crate::{
    crash_point,
    domain::{Epoch, LostOrder, Partition, PartitionEpoch},
    ledger::{ClosedForRebuild, LedgerError, Mark, PartitionRow, PartitionStatus},
    lifecycle::{Meta, NotPermitted, RebuildStart},
    redis::RedisCallError,
    stream::EntryError,
};

/// The name under which Redis's own count is recorded as a mark.
const REDIS: &str = "redis";

/// Why a partition is not rebuilt yet.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Postgres did not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Redis did not answer, or another rebuild has begun.
    #[error(transparent)]
    Redis(#[from] RedisCallError),
    /// An entry was written by a newer program, which must rebuild the partition.
    #[error(transparent)]
    NewerFormat(#[from] EntryError),
    /// Redis would refuse a command in the middle of the rebuild.
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    /// Redis holds another deployment's data.
    #[error(
        "Redis holds another deployment's data: set redis_url and key_prefix to those of this deployment"
    )]
    OtherDeployment,
    /// A reservation id holds epochs up to this one, and ids are never used again.
    #[error(
        "the partition has used the last of its {last} epochs and cannot be opened again: move its products to a \
         new deployment (another database and another key_prefix)",
        last = Epoch::MAX
    )]
    EpochsUsedUp,
    /// A discovered master holds an earlier state that is not due to a loss of its own.
    #[error(
        "this Redis was left behind by a failover: it has epoch {meta} of the partition, and a later one was opened on \
         another Redis, epoch {last_open}; wait until the other one is found. If it is lost for good, restart this Redis, \
         and the partition is rebuilt on it"
    )]
    #[expect(missing_docs, reason = "the epochs of both")]
    LeftBehind { meta: Epoch, last_open: Epoch },
    /// A check failed before anything was changed.
    #[error("{what}")]
    #[expect(missing_docs, reason = "what is wrong, and how the check failed")]
    NotReady { what: &'static str, source: Box<RebuildError> },
}

impl RebuildError {
    /// Whether the rebuild failed or did not begin, as the start of a message.
    pub fn summary(&self) -> &'static str {
        match self {
            Self::NotReady { .. } | Self::LeftBehind { .. } | Self::EpochsUsedUp => {
                "the rebuild cannot begin"
            }
            Self::Ledger(_)
            | Self::Redis(_)
            | Self::NewerFormat(_)
            | Self::NotPermitted(_)
            | Self::OtherDeployment => "the rebuild failed",
        }
    }
}

/// What a rebuild did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Orders that were in the streams and are stored now, or were before.
    pub stored: usize,
    /// Orders that were in the streams and are voided now, or were before.
    pub voided: usize,
    /// Request ids whose orders are in neither store.
    pub lost_requests: usize,
    /// Some of their orders, by name.
    pub lost: Vec<LostOrder>,
}

impl Recovery {
    /// Rebuilds a partition; `None` when another process does, or opens it for the first time.
    /// After an error the partition stays closed, and the next rebuild starts from the beginning.
    pub async fn rebuild(&self, row: PartitionRow) -> Result<Option<Rebuilt>, RebuildError> {
        let partition = row.partition;
        let Some(_lock) = self.ledger.lock_rebuild(partition).await? else { return Ok(None) };
        let Some(above) = self.check_ready(row).await? else { return Ok(None) };
        // Read before the ledger is written, so that a later failover shows as another timeline.
        let timeline = self.timeline().await?;
        let closed = self.ledger.close_partition(row, above).await?;
        let Some(ClosedForRebuild { epoch, last_open }) = closed else { return Ok(None) };
        self.lifecycle.partitions().set_epoch(partition, None);
        tracing::debug!(%partition, %epoch, "the rebuild begins: the partition is closed in the ledger");
        crash_point::reach("rebuild_closed");
        self.mark_from_redis(partition, epoch).await?;
        let at = PartitionEpoch { partition, epoch };
        match self.lifecycle.begin_rebuild(at).await? {
            RebuildStart::Begun => {}
            RebuildStart::Superseded => return Ok(None),
            RebuildStart::OtherDeployment => return Err(RebuildError::OtherDeployment),
        }
        crash_point::reach("rebuild_begun");
        tracing::debug!(%partition, %epoch, "the partition is closed in Redis");
        let rebuild = Rebuild {
            recovery: self,
            at,
            last_open,
            timeline,
            progress: self.status.progress(partition),
            rebuilt: Rebuilt::default(),
        };
        let rebuilt = rebuild.run().await?;
        crash_point::reach("rebuild_opened");
        if !self.ledger.set_open(partition, epoch, PartitionStatus::Closed).await? {
            return Ok(None);
        }
        tracing::warn!(
            %partition, %epoch, stored = rebuilt.stored, voided = rebuilt.voided,
            lost_requests = rebuilt.lost_requests, "the partition is rebuilt and open"
        );
        for lost in &rebuilt.lost {
            tracing::error!(
                %partition, reservation.id = %lost.id, product = lost.product,
                "the reservation is lost: Postgres lost the commit that stored it"
            );
        }
        // Every process, this one too, sells again as soon as it has read the new epoch from the ledger.
        Ok(Some(rebuilt))
    }

    /// Records Redis's own count of accepted reservations as a mark (R10) before it is deleted: with it, what the
    /// ledger lost of that epoch can be counted. Redis is closed first, so that the count is final.
    async fn mark_from_redis(
        &self,
        partition: Partition,
        below: Epoch,
    ) -> Result<(), RebuildError> {
        let Some(Meta { epoch, deployment, .. }) = self.lifecycle.read_meta(partition).await?
        else {
            return Ok(());
        };
        // Another rebuild has a higher epoch, or the data is another deployment's: the next script reports it.
        if epoch >= below || deployment != self.deployment.id {
            return Ok(());
        }
        match self.lifecycle.close_in(partition, epoch).await {
            Ok(()) | Err(RedisCallError::Fenced(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(meta) = self.lifecycle.read_meta(partition).await? else { return Ok(()) };
        if meta.deployment == self.deployment.id && meta.epoch == epoch && meta.seq > 0 {
            let mark = Mark { partition, epoch, seq: Some(meta.seq) };
            self.ledger.report_marks(REDIS, &[mark]).await?;
        }
        Ok(())
    }
}
