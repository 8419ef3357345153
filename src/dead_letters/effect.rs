//! What would happen: the effect of work on dead entries, without doing it.
//!
//! Must never: write anything that stays.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;

use super::{Chosen, DeadLetterError, DeadLetters, Settled, Tally, Work};
use crate::{
    domain::{Epoch, Partition, ProductId, ReservationId},
    ledger::LedgerError,
    stock::Levels,
    stream::DeadEntry,
};

/// What would happen to one product.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProductEffect {
    /// Units that would come back.
    pub released: u64,
    /// Orders that would be stored.
    pub stored: u64,
    /// Orders that the ledger would refuse again.
    pub refused: u64,
    /// Units that are for sale now; `None` if Redis does not know the product.
    pub stock_now: Option<i64>,
}

impl ProductEffect {
    /// Entries that something would be done to.
    pub fn entries(&self) -> u64 {
        self.released + self.stored + self.refused
    }

    /// Units that would be for sale if nobody bought meanwhile.
    pub fn stock_after(&self) -> Option<i64> {
        let back = i64::try_from(self.released).unwrap_or(i64::MAX);
        self.stock_now.map(|now| now.saturating_add(back))
    }
}

/// What would happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effect {
    /// All in all. What is settled already and what is none of ours is counted only here.
    pub tally: Tally,
    /// By product.
    pub products: BTreeMap<ProductId, ProductEffect>,
}

impl Effect {
    fn add(&mut self, product: Option<(ProductId, Option<i64>)>, settled: Settled) {
        self.tally.add(settled);
        let Some((product, stock_now)) = product else { return };
        let mut effect = ProductEffect { stock_now, ..ProductEffect::default() };
        match settled {
            Settled::Released => effect.released = 1,
            Settled::Stored => effect.stored = 1,
            Settled::Refused => effect.refused = 1,
            Settled::Before | Settled::Unrecognized => return,
        }
        let so_far = self.products.entry(product).or_default();
        so_far.released += effect.released;
        so_far.stored += effect.stored;
        so_far.refused += effect.refused;
        so_far.stock_now = stock_now;
    }
}

impl DeadLetters {
    /// What work on the chosen entries would do if nothing else happened meanwhile. A retry is tried in
    /// transactions that are rolled back.
    ///
    /// # Errors
    ///
    /// As the work itself.
    pub async fn effect(&self, work: Work, chosen: &Chosen) -> Result<Effect, DeadLetterError> {
        let mut effect = Effect::default();
        let mut walk = self.walk(chosen).await?;
        while let Some(page) = walk.next().await? {
            effect.tally.settled += page.gone;
            let mut by_partition: BTreeMap<Partition, Vec<DeadEntry>> = BTreeMap::new();
            for dead in page.entries {
                by_partition.entry(dead.partition).or_default().push(dead);
            }
            for (partition, entries) in by_partition {
                self.dry_run(work, partition, &entries, &mut effect).await?;
            }
        }
        Ok(effect)
    }

    /// Those whose orders are stored.
    async fn confirmed(&self, ids: &[ReservationId]) -> Result<HashSet<Uuid>, LedgerError> {
        let ids: Vec<Uuid> = ids.iter().map(ReservationId::to_uuid).collect();
        let settled = self.ledger.settled(&ids).await?;
        Ok(settled.into_iter().filter(|(_, void)| void.is_none()).map(|(id, _)| id).collect())
    }

    async fn dry_run(
        &self,
        work: Work,
        partition: Partition,
        entries: &[DeadEntry],
        effect: &mut Effect,
    ) -> Result<(), DeadLetterError> {
        let epoch = self.streams.partitions().epoch(partition)?;
        let products: Vec<ProductId> = entries.iter().filter_map(product).collect();
        let levels = self.stock.levels(partition, products).await?;
        let ids: Vec<ReservationId> =
            entries.iter().filter_map(|dead| dead.reservation_id().ok()).collect();
        let confirmed = match work {
            Work::Release => self.confirmed(&ids).await?,
            Work::Retry => HashSet::new(),
        };
        for dead in entries {
            let settled = match (work, dead.reservation_id()) {
                (_, Err(_)) => Settled::Unrecognized,
                (_, Ok(id)) if id.epoch() != epoch => Settled::Before,
                (Work::Release, Ok(id)) if confirmed.contains(&id.to_uuid()) => Settled::Before,
                (Work::Release, Ok(_)) => would_release(dead, &levels),
                (Work::Retry, Ok(_)) => self.would_store(dead, epoch, &levels).await?,
            };
            let level = |product: ProductId| {
                let now = levels.get(&product).copied();
                (product, now)
            };
            effect.add(product(dead).map(level), settled);
        }
        Ok(())
    }

    async fn would_store(
        &self,
        dead: &DeadEntry,
        epoch: Epoch,
        levels: &Levels,
    ) -> Result<Settled, DeadLetterError> {
        let Ok(order) = dead.order() else { return Ok(Settled::Unrecognized) };
        match self.ledger.try_store(dead.partition, epoch, &order).await {
            Err(LedgerError::Rejected { .. }) => Ok(Settled::Refused),
            Err(error) => Err(error.into()),
            Ok(stored) if !stored.mismatched.is_empty() => Ok(Settled::Refused),
            Ok(stored) if !stored.voided.is_empty() => Ok(would_release(dead, levels)),
            Ok(stored) if stored.inserted == 0 => Ok(Settled::Before),
            Ok(_) => Ok(Settled::Stored),
        }
    }
}

fn product(dead: &DeadEntry) -> Option<ProductId> {
    dead.entry.field("p")?.parse().ok()
}

/// As `lua/release.lua` decides.
fn would_release(dead: &DeadEntry, levels: &Levels) -> Settled {
    let whole = ["p", "u", "r", "rid"].into_iter().all(|name| dead.entry.field(name).is_some());
    let known = product(dead).is_some_and(|product| levels.contains_key(&product));
    if whole && known { Settled::Released } else { Settled::Unrecognized }
}
