//! What an action would do, without doing it.
//!
//! Must never: commit a write.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;

use super::{Action, DeadLetterError, DeadLetters, EntryOutcome, OutcomeCounts, Selection};
use crate::{
    domain::{Epoch, ProductId},
    ledger::LedgerError,
    stock::StockByProduct,
    stream::DeadEntry,
};

/// What would happen to one product.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProductEffect {
    /// The entries that would be released, stored or refused.
    pub counts: OutcomeCounts,
    /// Units that are for sale now; `None` if Redis does not know the product.
    pub stock_now: Option<i64>,
}

impl ProductEffect {
    /// How many entries would be released, stored or refused.
    pub fn entries(&self) -> u64 {
        self.counts.released + self.counts.stored + self.counts.refused
    }

    /// Units that would be for sale afterwards if none were bought meanwhile.
    pub fn stock_after(&self) -> Option<i64> {
        self.stock_now?.checked_add_unsigned(self.counts.released)
    }
}

/// What an action would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DryRun {
    /// All entries.
    pub counts: OutcomeCounts,
    /// By product, of the entries that would be released, stored or refused.
    pub products: BTreeMap<ProductId, ProductEffect>,
}

impl DryRun {
    fn add(&mut self, dead: &DeadEntry, stock: &StockByProduct, outcome: EntryOutcome) {
        self.counts.add(outcome);
        let (EntryOutcome::Released | EntryOutcome::Stored | EntryOutcome::Refused) = outcome
        else {
            return;
        };
        if let Some(product) = dead.product() {
            let stock_now = stock.get(&product).copied();
            let effect = self.products.entry(product).or_default();
            effect.counts.add(outcome);
            effect.stock_now = stock_now;
        }
    }
}

impl DeadLetters {
    /// What [`DeadLetters::apply`] would do if nothing else changed meanwhile. A retry is tried in
    /// transactions that are rolled back.
    pub async fn dry_run(
        &self,
        action: Action,
        selection: &Selection,
    ) -> Result<DryRun, DeadLetterError> {
        let mut dry_run = DryRun::default();
        let mut cursor = self.cursor(selection).await?;
        while let Some(page) = cursor.next_page().await? {
            dry_run.counts.not_found += page.not_found;
            for entries in page.entries.chunk_by(|a, b| a.partition == b.partition) {
                self.add_page(action, entries, &mut dry_run).await?;
            }
        }
        Ok(dry_run)
    }

    /// Adds what would happen to some entries of a page, all of one partition.
    async fn add_page(
        &self,
        action: Action,
        entries: &[DeadEntry],
        dry_run: &mut DryRun,
    ) -> Result<(), DeadLetterError> {
        let [first, ..] = entries else { return Ok(()) };
        let epoch = self.streams.partitions().epoch(first.partition)?;
        let products: Vec<ProductId> = entries.iter().filter_map(DeadEntry::product).collect();
        let stock = self.stock.read(first.partition, products).await?;
        let confirmed = match action {
            Action::Release => self.confirmed(entries).await?,
            Action::Retry => HashSet::new(),
        };
        for dead in entries {
            let outcome = match (action, dead.reservation_id()) {
                (_, Err(_)) => EntryOutcome::Unrecognized,
                (_, Ok(id)) if id.epoch() != epoch || confirmed.contains(&id.to_uuid()) => {
                    EntryOutcome::AlreadyDecided
                }
                (Action::Release, Ok(_)) => would_release(dead, &stock),
                (Action::Retry, Ok(_)) => self.would_store(dead, epoch, &stock).await?,
            };
            dry_run.add(dead, &stock, outcome);
        }
        Ok(())
    }

    /// The entries' reservations whose orders are stored.
    async fn confirmed(&self, entries: &[DeadEntry]) -> Result<HashSet<Uuid>, LedgerError> {
        let ids = entries.iter().filter_map(|dead| dead.reservation_id().ok());
        let ids: Vec<Uuid> = ids.map(|id| id.to_uuid()).collect();
        let decided = self.ledger.decided(&ids).await?;
        Ok(decided.into_iter().filter(|(_, void)| void.is_none()).map(|(id, _)| id).collect())
    }

    async fn would_store(
        &self,
        dead: &DeadEntry,
        epoch: Epoch,
        stock: &StockByProduct,
    ) -> Result<EntryOutcome, DeadLetterError> {
        let Ok(order) = dead.order() else { return Ok(EntryOutcome::Unrecognized) };
        match self.ledger.try_store(dead.partition, epoch, &order).await {
            Err(LedgerError::Rejected { .. }) => Ok(EntryOutcome::Refused),
            Err(error) => Err(error.into()),
            Ok(stored) if !stored.mismatched.is_empty() => Ok(EntryOutcome::Refused),
            Ok(stored) if !stored.voided.is_empty() => Ok(would_release(dead, stock)),
            Ok(stored) if stored.inserted == 0 => Ok(EntryOutcome::AlreadyDecided),
            Ok(_) => Ok(EntryOutcome::Stored),
        }
    }
}

/// Decides as `lua/release.lua` and [`DeadLetters::give_back`] do.
fn would_release(dead: &DeadEntry, stock: &StockByProduct) -> EntryOutcome {
    let complete = ["p", "u", "r", "rid"].into_iter().all(|name| dead.entry.field(name).is_some());
    match dead.product() {
        Some(product) if complete && stock.contains_key(&product) => EntryOutcome::Released,
        Some(_) if complete => EntryOutcome::NoStock,
        Some(_) | None => EntryOutcome::Unrecognized,
    }
}
