//! The dead-letter desk: what was given up on is voided and released, or stored after all.
//!
//! Must never: give a unit back before its void is committed (R5), or put an entry back into `orders`.

use redis::RedisError;

use crate::{
    crash_point,
    domain::{Partition, ReservationId},
    fence::FenceError,
    ledger::{DeadAction, Ledger, LedgerError, Void, VoidOutcome},
    stock::{ReleaseFrom, Released, Stock},
    stream::{DeadEntry, Streams},
};

/// What was done with a dead entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Voided, and its unit went back.
    Released,
    /// Stored.
    Stored,
    /// Somebody had settled it before, or it is of an earlier epoch, which a rebuild has settled whole;
    /// nothing was done.
    Before,
    /// The ledger refused it again; it stays dead.
    Refused,
    /// No program of ours wrote it; it stays where it is.
    Stranger,
}

/// Why a dead entry could not be settled; it is still there, or somebody else settled it.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The ledger did not do it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A script did not run to its end.
    #[error(transparent)]
    Fence(#[from] FenceError),
}

impl From<RedisError> for DeskError {
    fn from(error: RedisError) -> Self {
        Self::Fence(error.into())
    }
}

/// The desk.
#[derive(Clone)]
pub struct Desk {
    streams: Streams,
    stock: Stock,
    ledger: Ledger,
}

impl Desk {
    /// Over these.
    pub fn new(streams: Streams, stock: Stock, ledger: Ledger) -> Self {
        Self { streams, stock, ledger }
    }

    /// At most `count` dead entries of a partition after `after`.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn list(
        &self,
        partition: Partition,
        after: Option<&str>,
        count: usize,
    ) -> Result<Vec<DeadEntry>, DeskError> {
        Ok(self.streams.dead(partition, after, count).await?)
    }

    /// The dead entry of a reservation.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn find(&self, id: ReservationId) -> Result<Option<DeadEntry>, DeskError> {
        let count = self.streams.partitions().count();
        match count.get_partition(id.partition()) {
            Some(partition) => Ok(self.streams.dead_of(partition, &id.to_string()).await?),
            None => Ok(None),
        }
    }

    /// Voids an entry's reservation, then gives its unit back; an order that was stored meanwhile only
    /// loses its dead entry. Several may race: the unit goes back once.
    ///
    /// # Errors
    ///
    /// See [`DeskError`]; repeat it.
    pub async fn replay(
        &self,
        dead: &DeadEntry,
        action: &DeadAction,
    ) -> Result<Settled, DeskError> {
        let partition = dead.partition;
        let Ok(id) = dead.reservation_id() else {
            return Ok(Settled::Stranger);
        };
        let epoch = self.streams.partitions().epoch(partition)?;
        if id.epoch() != epoch {
            return Ok(Settled::Before);
        }
        let void = Void {
            id,
            reserved_at_ms: dead.entry.reserved_at_ms().unwrap_or(0),
            reason: dead.reason().to_owned(),
            entry: dead.entry.to_bytes(),
        };
        match self.ledger.void(partition, epoch, &void, action).await? {
            VoidOutcome::Confirmed => self.discard(dead, Settled::Before).await,
            VoidOutcome::Voided => {
                crash_point::reach("after_void");
                self.release(dead).await
            }
        }
    }

    /// Stores an entry's order from where it lies, then removes the entry.
    ///
    /// # Errors
    ///
    /// See [`DeskError`]; repeat it.
    pub async fn retry(&self, dead: &DeadEntry, action: &DeadAction) -> Result<Settled, DeskError> {
        let partition = dead.partition;
        let Ok(order) = dead.order() else {
            return Ok(Settled::Stranger);
        };
        let epoch = self.streams.partitions().epoch(partition)?;
        if order.id.epoch() != epoch {
            return Ok(Settled::Before);
        }
        self.ledger.record_retry(order.id, action).await?;
        match self.ledger.store(partition, epoch, &[&order]).await {
            Err(LedgerError::Rejected { .. }) => Ok(Settled::Refused),
            Err(error) => Err(error.into()),
            Ok(stored) if stored.mismatched.is_empty() && stored.voided.is_empty() => {
                let settled = if stored.inserted == 1 { Settled::Stored } else { Settled::Before };
                self.discard(dead, settled).await
            }
            // Voided before: only its unit is still to go back.
            Ok(stored) if stored.mismatched.is_empty() => self.release(dead).await,
            Ok(stored) => {
                tracing::error!(reservation.id = %order.id, differs = ?stored.mismatched, "the ledger holds something else under this id");
                Ok(Settled::Refused)
            }
        }
    }

    /// The caller knows its void to be committed.
    async fn release(&self, dead: &DeadEntry) -> Result<Settled, DeskError> {
        match self.stock.release(dead.partition, ReleaseFrom::Dead, dead.dead_id()).await? {
            Released::Now => Ok(Settled::Released),
            Released::Before => Ok(Settled::Before),
            Released::Never => Ok(Settled::Stranger),
        }
    }

    async fn discard(&self, dead: &DeadEntry, settled: Settled) -> Result<Settled, DeskError> {
        let ours = self.streams.discard(dead).await?;
        Ok(if ours { settled } else { Settled::Before })
    }
}
