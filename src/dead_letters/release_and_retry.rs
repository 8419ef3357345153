//! Releases or retries one dead entry, and records it.

use super::{DeadLetterError, DeadLetters, EntryOutcome};
use crate::{
    crash_point,
    domain::ReservationId,
    ledger::{ActionBy, LedgerError, RecordedAction, VoidOutcome, VoidRequest},
    stock::{ReleaseFrom, ReleaseOutcome},
    stream::DeadEntry,
};

impl DeadLetters {
    /// Voids the order of an entry, then gives its unit back. If the order was stored meanwhile, only the
    /// dead entry is removed. Callers may race: the unit is given back once.
    pub async fn release(
        &self,
        dead: &DeadEntry,
        by: &ActionBy,
    ) -> Result<EntryOutcome, DeadLetterError> {
        let partition = dead.partition;
        let Ok(id) = dead.reservation_id() else {
            return Ok(EntryOutcome::Unrecognized);
        };
        let epoch = self.streams.partitions().epoch(partition)?;
        if id.epoch() != epoch {
            return Ok(EntryOutcome::AlreadyDecided);
        }
        let void = VoidRequest {
            id,
            reserved_at_ms: dead.entry.reserved_at_ms().unwrap_or(0),
            reason: dead.reason().to_owned(),
            entry: dead.entry.to_bytes(),
        };
        let outcome = self.ledger.void(partition, epoch, &void, by).await?;
        if outcome != VoidOutcome::Confirmed {
            crash_point::reach("after_void");
        }
        match outcome {
            VoidOutcome::Confirmed => self.discard(dead, id, by).await,
            VoidOutcome::Voided => self.give_back(dead).await,
            VoidOutcome::VoidedBefore => self.finish_release(dead, id, by).await,
        }
    }

    /// Stores the order of an entry, then removes the entry.
    pub async fn retry(
        &self,
        dead: &DeadEntry,
        by: &ActionBy,
    ) -> Result<EntryOutcome, DeadLetterError> {
        let partition = dead.partition;
        let Ok(order) = dead.order() else {
            return Ok(EntryOutcome::Unrecognized);
        };
        let epoch = self.streams.partitions().epoch(partition)?;
        if order.id.epoch() != epoch {
            return Ok(EntryOutcome::AlreadyDecided);
        }
        let retried = match self.ledger.retry(partition, epoch, &order, by).await {
            Err(LedgerError::Rejected { .. }) => None,
            Ok(stored) if !stored.mismatched.is_empty() => {
                tracing::error!(reservation.id = %order.id, differs = ?stored.mismatched, "the ledger holds another order under this id, and the dead entry stays: run `yoink audit`, and compare the row and the entry (docs/operations.md, YoinkNotConserved)");
                None
            }
            retried => Some(retried?),
        };
        let Some(stored) = retried else {
            self.ledger.record(order.id, RecordedAction::Refused, by).await?;
            return Ok(EntryOutcome::Refused);
        };
        if !stored.voided.is_empty() {
            // Voided before: only its unit is left to give back.
            self.finish_release(dead, order.id, by).await
        } else if stored.inserted == 0 {
            self.discard(dead, order.id, by).await
        } else {
            // Stored and recorded by this call, even if another caller removes the entry.
            self.streams.discard(dead).await?;
            Ok(EntryOutcome::Stored)
        }
    }

    /// Gives the unit of an entry back. The void must be committed.
    async fn give_back(&self, dead: &DeadEntry) -> Result<EntryOutcome, DeadLetterError> {
        let from = ReleaseFrom::Dead { dead_key: dead.dead_key() };
        match self.stock.release(dead.partition, from, dead.dead_id()).await? {
            ReleaseOutcome::Released => Ok(EntryOutcome::Released),
            ReleaseOutcome::AlreadyReleased => Ok(EntryOutcome::AlreadyDecided),
            ReleaseOutcome::Unrecognized => Ok(EntryOutcome::Unrecognized),
            // Redis never has stock of what is not a product id.
            ReleaseOutcome::NoStock if dead.product().is_none() => Ok(EntryOutcome::Unrecognized),
            ReleaseOutcome::NoStock => Ok(EntryOutcome::NoStock),
        }
    }

    /// Gives back the unit of an order that another caller voided.
    async fn finish_release(
        &self,
        dead: &DeadEntry,
        id: ReservationId,
        by: &ActionBy,
    ) -> Result<EntryOutcome, DeadLetterError> {
        let recorded = |outcome: &EntryOutcome| {
            (*outcome == EntryOutcome::Released).then_some(RecordedAction::Finish)
        };
        self.with_record(id, by, self.give_back(dead), recorded).await
    }

    /// Removes the entry of an order that is stored.
    async fn discard(
        &self,
        dead: &DeadEntry,
        id: ReservationId,
        by: &ActionBy,
    ) -> Result<EntryOutcome, DeadLetterError> {
        let discard = async { Ok(self.streams.discard(dead).await?) };
        let recorded = |removed: &bool| removed.then_some(RecordedAction::Discard);
        self.with_record(id, by, discard, recorded).await?;
        Ok(EntryOutcome::AlreadyDecided)
    }

    /// Changes Redis and records it. `recorded` derives the record from the result; `None` means that
    /// nothing was done. If the change may be applied, or this call is cancelled, the record stays
    /// `unknown`.
    async fn with_record<T>(
        &self,
        id: ReservationId,
        by: &ActionBy,
        change: impl Future<Output = Result<T, DeadLetterError>>,
        recorded: impl FnOnce(&T) -> Option<RecordedAction>,
    ) -> Result<T, DeadLetterError> {
        let record = self.ledger.begin_record(id, by).await?;
        let changed = change.await;
        let action = match &changed {
            Ok(result) => recorded(result),
            Err(error) if error.may_be_applied() => return changed,
            Err(_) => None,
        };
        let ended = self.ledger.end_record(record, action).await;
        let result = changed?;
        ended?;
        Ok(result)
    }
}
