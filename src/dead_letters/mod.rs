//! The dead-letter dead_letters: what was given up on is voided and released, or stored after all.
//!
//! Must never: give a unit back before its void is committed (R5), or put an entry back into `orders`.

mod chosen;
mod effect;

pub use chosen::{Chosen, DeadFilter, PAGE, Page, Place, SqlstateError, SqlstateFilter, Walk};
pub use effect::{Effect, ProductEffect};
use redis::RedisError;

use crate::{
    crash_point,
    domain::ReservationId,
    ledger::{Action, DeadAction, Ledger, LedgerError, Void, VoidOutcome},
    redis::{Applied, FenceError},
    stock::{ReleaseFrom, Released, Stock, StockError},
    stream::{DeadEntry, Streams},
};

/// What is to be done with dead entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Void them and give their units back.
    Release,
    /// Store them after all.
    Retry,
}

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
    Unrecognized,
}

/// How often each was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants of `Settled`")]
pub struct Tally {
    pub released: u64,
    pub stored: u64,
    pub settled: u64,
    pub refused: u64,
    pub unrecognized: u64,
}

impl Tally {
    /// Counts one entry.
    pub fn add(&mut self, settled: Settled) {
        *match settled {
            Settled::Released => &mut self.released,
            Settled::Stored => &mut self.stored,
            Settled::Before => &mut self.settled,
            Settled::Refused => &mut self.refused,
            Settled::Unrecognized => &mut self.unrecognized,
        } += 1;
    }
}

/// Why a dead entry could not be settled; it is still there, or somebody else settled it.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The ledger did not do it.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A script did not run to its end.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// The stock could not be read.
    #[error(transparent)]
    Stock(#[from] StockError),
}

impl DeadLetterError {
    /// Whether a partition is fenced: what its dead stream holds is not to be believed before it is rebuilt.
    pub fn is_fenced(&self) -> bool {
        matches!(
            self,
            Self::Fence(FenceError::Fenced(_))
                | Self::Stock(StockError::Fence(FenceError::Fenced(_)))
        )
    }

    /// Whether the script that failed may have taken effect all the same.
    fn may_have_happened(&self) -> bool {
        match self {
            Self::Fence(error) | Self::Stock(StockError::Fence(error)) => match error {
                FenceError::Fenced(_) => false,
                FenceError::Unavailable { applied, .. } => *applied == Applied::Maybe,
                FenceError::Malformed(_) => true,
            },
            Self::Ledger(_) | Self::Stock(_) => true,
        }
    }
}

impl From<RedisError> for DeadLetterError {
    fn from(error: RedisError) -> Self {
        Self::Fence(error.into())
    }
}

/// The dead_letters.
#[derive(Clone)]
pub struct DeadLetters {
    streams: Streams,
    stock: Stock,
    ledger: Ledger,
}

impl DeadLetters {
    /// Over these.
    pub fn new(streams: Streams, stock: Stock, ledger: Ledger) -> Self {
        Self { streams, stock, ledger }
    }

    /// The dead entry of a reservation.
    ///
    /// # Errors
    ///
    /// When Redis is away, or the partition is fenced.
    pub async fn find(&self, id: ReservationId) -> Result<Option<DeadEntry>, DeadLetterError> {
        let count = self.streams.partitions().count();
        match count.get_partition(id.partition()) {
            Some(partition) => Ok(self.streams.dead_of(partition, &id.to_string()).await?),
            None => Ok(None),
        }
    }

    /// Does this work on an entry.
    ///
    /// # Errors
    ///
    /// See [`DeadLetterError`]; repeat it.
    pub async fn settle(
        &self,
        work: Work,
        dead: &DeadEntry,
        action: &DeadAction,
    ) -> Result<Settled, DeadLetterError> {
        match work {
            Work::Release => self.replay(dead, action).await,
            Work::Retry => self.retry(dead, action).await,
        }
    }

    /// Voids an entry's reservation, then gives its unit back; an order that was stored meanwhile only
    /// loses its dead entry. Several may race: the unit goes back once.
    ///
    /// # Errors
    ///
    /// See [`DeadLetterError`]; repeat it.
    pub async fn replay(
        &self,
        dead: &DeadEntry,
        action: &DeadAction,
    ) -> Result<Settled, DeadLetterError> {
        let partition = dead.partition;
        let Ok(id) = dead.reservation_id() else {
            return Ok(Settled::Unrecognized);
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
        let outcome = self.ledger.void(partition, epoch, &void, action).await?;
        if outcome != VoidOutcome::Confirmed {
            crash_point::reach("after_void");
        }
        match outcome {
            VoidOutcome::Confirmed => self.discard(dead, id, action).await,
            VoidOutcome::Voided => self.release(dead).await,
            VoidOutcome::VoidedBefore => self.finish(dead, id, action).await,
        }
    }

    /// Stores an entry's order from where it lies, then removes the entry.
    ///
    /// # Errors
    ///
    /// See [`DeadLetterError`]; repeat it.
    pub async fn retry(
        &self,
        dead: &DeadEntry,
        action: &DeadAction,
    ) -> Result<Settled, DeadLetterError> {
        let partition = dead.partition;
        let Ok(order) = dead.order() else {
            return Ok(Settled::Unrecognized);
        };
        let epoch = self.streams.partitions().epoch(partition)?;
        if order.id.epoch() != epoch {
            return Ok(Settled::Before);
        }
        match self.ledger.retry(partition, epoch, &order, action).await {
            Err(LedgerError::Rejected { .. }) => {
                self.ledger.record(order.id, Action::Refused, action).await?;
                Ok(Settled::Refused)
            }
            Err(error) => Err(error.into()),
            Ok(stored) if !stored.mismatched.is_empty() => {
                tracing::error!(reservation.id = %order.id, differs = ?stored.mismatched, "the ledger holds something else under this id");
                self.ledger.record(order.id, Action::Refused, action).await?;
                Ok(Settled::Refused)
            }
            // Voided before: only its unit is still to go back.
            Ok(stored) if !stored.voided.is_empty() => self.finish(dead, order.id, action).await,
            Ok(stored) if stored.inserted == 0 => self.discard(dead, order.id, action).await,
            // Stored, and recorded, by this call, whoever removes the entry.
            Ok(_) => {
                self.streams.discard(dead).await?;
                Ok(Settled::Stored)
            }
        }
    }

    /// The caller knows its void to be committed.
    async fn release(&self, dead: &DeadEntry) -> Result<Settled, DeadLetterError> {
        let from = ReleaseFrom::Dead { named: dead.named() };
        match self.stock.release(dead.partition, from, dead.dead_id()).await? {
            Released::Now => Ok(Settled::Released),
            Released::Before => Ok(Settled::Before),
            Released::Never => Ok(Settled::Unrecognized),
        }
    }

    /// Gives back the unit of an order that somebody else voided, and did not or not yet release.
    async fn finish(
        &self,
        dead: &DeadEntry,
        id: ReservationId,
        action: &DeadAction,
    ) -> Result<Settled, DeadLetterError> {
        let release = self.release(dead);
        let released =
            |settled: &Settled| (*settled == Settled::Released).then_some(Action::Finish);
        self.recorded(id, action, release, released).await
    }

    /// Removes the entry of an order that is stored.
    async fn discard(
        &self,
        dead: &DeadEntry,
        id: ReservationId,
        action: &DeadAction,
    ) -> Result<Settled, DeadLetterError> {
        let discard = async { Ok(self.streams.discard(dead).await?) };
        let removed = |removed: &bool| removed.then_some(Action::Discard);
        self.recorded(id, action, discard, removed).await?;
        Ok(Settled::Before)
    }

    /// Does something beside the ledger and records it, if `deed` finds in its result that it was done; also
    /// if it may have been done. A caller that gives up meanwhile leaves a record that says so.
    async fn recorded<T>(
        &self,
        id: ReservationId,
        action: &DeadAction,
        doing: impl Future<Output = Result<T, DeadLetterError>>,
        deed: impl FnOnce(&T) -> Option<Action>,
    ) -> Result<T, DeadLetterError> {
        let record = self.ledger.begin_record(id, action).await?;
        let done = doing.await;
        let deed = match &done {
            Ok(done) => deed(done),
            Err(error) if error.may_have_happened() => return done,
            Err(_) => None,
        };
        let ended = self.ledger.end_record(record, deed).await;
        let done = done?;
        ended?;
        Ok(done)
    }
}
