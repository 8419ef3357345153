//! Dead letters: orders that could not be stored are released (voided, and their units given back), or
//! stored by a retry.
//!
//! A [`Selection`] states which dead entries, a [`Cursor`] reads them page by page,
//! [`DeadLetters::apply`] applies an [`Action`] to each of them, and [`DeadLetters::dry_run`] reports
//! what it would do.
//!
//! Must never: give a unit back before its void is committed (R5), or put an entry back into `orders`.

mod cursor;
mod dry_run;
mod release_and_retry;
mod selection;

use std::ops::ControlFlow;

pub use self::{
    cursor::{Cursor, PAGE, Page, Position},
    dry_run::{DryRun, ProductEffect},
    selection::{DeadFilter, Selection, SqlstateError, SqlstateFilter},
};
use crate::{
    domain::ReservationId,
    ledger::{ActionBy, Ledger, LedgerError},
    redis::{Applied, RedisCallError},
    stock::{Stock, StockError},
    stream::{DeadEntry, Streams},
};

/// What to do with dead entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Void the orders and give their units back.
    Release,
    /// Store the orders.
    Retry,
}

/// What an action did with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryOutcome {
    /// The order is voided, and its unit is given back.
    Released,
    /// The order is stored.
    Stored,
    /// Nothing: the order was stored, or voided and released, by another caller or by a rebuild.
    AlreadyDecided,
    /// The ledger refused the order again; the entry stays dead.
    Refused,
    /// This program did not write the entry; it stays.
    Unrecognized,
    /// The order is voided, but Redis has no stock of the product; the entry stays.
    NoStock,
}

/// How many entries had each outcome, and how many named reservations have no dead entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants of `EntryOutcome`, and `not_found`")]
pub struct OutcomeCounts {
    pub released: u64,
    pub stored: u64,
    pub decided: u64,
    pub refused: u64,
    pub unrecognized: u64,
    pub no_stock: u64,
    pub not_found: u64,
}

impl OutcomeCounts {
    fn add(&mut self, outcome: EntryOutcome) {
        *match outcome {
            EntryOutcome::Released => &mut self.released,
            EntryOutcome::Stored => &mut self.stored,
            EntryOutcome::AlreadyDecided => &mut self.decided,
            EntryOutcome::Refused => &mut self.refused,
            EntryOutcome::Unrecognized => &mut self.unrecognized,
            EntryOutcome::NoStock => &mut self.no_stock,
        } += 1;
    }
}

/// Why an entry could not be read, released or stored. It is still dead, or another caller has removed it.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is described by its error")]
pub enum DeadLetterError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Redis(#[from] RedisCallError),
    #[error(transparent)]
    Stock(#[from] StockError),
}

impl DeadLetterError {
    /// Whether a partition is fenced: its dead stream must not be read before a rebuild.
    pub fn is_fenced(&self) -> bool {
        matches!(
            self,
            Self::Redis(RedisCallError::Fenced(_))
                | Self::Stock(StockError::Redis(RedisCallError::Fenced(_)))
        )
    }

    /// Whether the call that failed may have been applied.
    fn may_be_applied(&self) -> bool {
        let (Self::Redis(error) | Self::Stock(StockError::Redis(error))) = self else {
            return true;
        };
        !matches!(
            error,
            RedisCallError::Fenced(_) | RedisCallError::Unavailable { applied: Applied::No, .. }
        )
    }
}

/// An action that stopped before the end of its selection.
#[derive(Debug, thiserror::Error)]
#[error("the action stopped before the last entry: repeat it to continue")]
pub struct Interrupted {
    /// What was done before.
    pub done: OutcomeCounts,
    /// Why it stopped.
    #[source]
    pub error: DeadLetterError,
}

/// The dead entries of every partition. A call that fails may be repeated.
#[derive(Clone)]
pub struct DeadLetters {
    streams: Streams,
    stock: Stock,
    ledger: Ledger,
}

impl DeadLetters {
    /// The dead letters of these stores.
    pub fn new(streams: Streams, stock: Stock, ledger: Ledger) -> Self {
        Self { streams, stock, ledger }
    }

    /// The dead entry of a reservation.
    pub async fn find(&self, id: ReservationId) -> Result<Option<DeadEntry>, DeadLetterError> {
        let count = self.streams.partitions().count();
        let Some(partition) = count.get_partition(id.partition()) else { return Ok(None) };
        Ok(self.streams.dead_of(partition, &id.to_string()).await?)
    }

    /// Applies an action to the selected entries, one after the other, and calls `on_entry` after each, which can end it.
    /// The error has what was done before the entry that failed.
    pub async fn apply(
        &self,
        action: Action,
        selection: &Selection,
        by: &ActionBy,
        mut on_entry: impl FnMut(&DeadEntry, EntryOutcome) -> ControlFlow<()>,
    ) -> Result<OutcomeCounts, Interrupted> {
        let mut done = OutcomeCounts::default();
        let applied: Result<(), DeadLetterError> = async {
            let mut cursor = self.cursor(selection).await?;
            while let Some(page) = cursor.next_page().await? {
                done.not_found += page.not_found;
                for dead in &page.entries {
                    let outcome = match action {
                        Action::Release => self.release(dead, by).await?,
                        Action::Retry => self.retry(dead, by).await?,
                    };
                    tracing::debug!(
                        reservation.id = dead.entry.field("rid"),
                        actor = by.actor,
                        ?outcome,
                        "dead entry processed"
                    );
                    done.add(outcome);
                    if on_entry(dead, outcome).is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        }
        .await;
        match applied {
            Ok(()) => Ok(done),
            Err(error) => Err(Interrupted { done, error }),
        }
    }
}
