//! Rebuilds a fenced partition from the ledger (R7–R9).
//!
//! ```text
//! ledger: epoch + 1, closed ─> Redis: seized ─> drained ─> filled ─> Redis: open ─> ledger: open
//! ```
//!
//! A crash anywhere leaves the partition closed in the ledger; the next rebuild starts under an epoch of
//! its own, and every script of this one is refused from then on.

use jiff::Timestamp;

use super::Recovery;
use crate::{
    crash_point,
    domain::{Epoch, Order, Partition},
    fence::FenceError,
    ledger::{DeadAction, LedgerError, PartitionRow, Void},
    stock::{ClaimParts, Filling, Offer, Reopened, Seized},
    stream::{EntryError, Source, Surviving},
};

/// Entries or rows a step.
const BATCH: usize = 500;
const CLAIMS_BATCH: i64 = 5000;

/// Why a partition stays closed for now.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// Postgres did not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Redis did not answer, or another rebuild has taken over.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// An entry of a newer program: that one must rebuild.
    #[error(transparent)]
    NewerFormat(#[from] EntryError),
    /// Redis holds another deployment's data.
    #[error("Redis holds another deployment's data")]
    Foreign,
}

impl From<redis::RedisError> for RebuildError {
    fn from(error: redis::RedisError) -> Self {
        Self::Fence(error.into())
    }
}

/// What a rebuild did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Orders that were in the streams and are stored now, or were before.
    pub stored: usize,
    /// Orders that were in the streams and are voided now, or were before.
    pub voided: usize,
}

impl Recovery {
    /// Rebuilds a partition; `None` when somebody else does.
    ///
    /// # Errors
    ///
    /// See [`RebuildError`]; the partition stays closed, and the next rebuild starts anew.
    pub async fn rebuild(&self, seen: PartitionRow) -> Result<Option<Rebuilt>, RebuildError> {
        let partition = seen.partition;
        let Some(_lock) = self.ledger.rebuild_lock(partition).await? else { return Ok(None) };
        // An epoch is spent only on a Redis that answers and is not somebody else's.
        if self.stock.owner(partition).await?.is_some_and(|owner| owner != self.deployment.id) {
            return Err(RebuildError::Foreign);
        }
        let Some(epoch) = self.ledger.close_partition(seen).await? else { return Ok(None) };
        self.stock.partitions().set_epoch(partition, None);
        crash_point::reach("rebuild_closed");
        match self.stock.seize(partition, epoch).await? {
            Seized::Ours => {}
            Seized::Late => return Ok(None),
            Seized::Foreign => return Err(RebuildError::Foreign),
        }
        crash_point::reach("rebuild_seized");
        let mut rebuilt = Rebuilt::default();
        loop {
            for source in [Source::Orders, Source::Dead] {
                self.drain(partition, epoch, source, &mut rebuilt).await?;
            }
            crash_point::reach("rebuild_drained");
            self.fill(partition, epoch).await?;
            crash_point::reach("rebuild_filled");
            match self.stock.reopen(partition, epoch).await? {
                Reopened::Opened => break,
                Reopened::NotEmpty => {}
            }
        }
        crash_point::reach("rebuild_opened");
        if !self.ledger.reopen_partition(partition, epoch).await? {
            return Ok(None);
        }
        tracing::warn!(
            %partition, %epoch, stored = rebuilt.stored, voided = rebuilt.voided, "rebuilt and open"
        );
        // It sells again, here as in every other process: from the next look at the ledger.
        Ok(Some(rebuilt))
    }

    /// R8: whatever survived is stored, or voided; then nothing is in flight.
    async fn drain(
        &self,
        partition: Partition,
        epoch: Epoch,
        source: Source,
        rebuilt: &mut Rebuilt,
    ) -> Result<(), RebuildError> {
        loop {
            let entries = self.streams.surviving(partition, source, BATCH).await?;
            if entries.is_empty() {
                return Ok(());
            }
            let orders = orders(partition, &entries)?;
            let whole: Vec<&Order> = orders.iter().collect();
            if orders.len() == entries.len() && self.stored(partition, epoch, &whole).await? {
                rebuilt.stored += entries.len();
            } else {
                for entry in &entries {
                    self.drain_one(partition, epoch, entry, rebuilt).await?;
                }
            }
            let ids: Vec<&str> = entries.iter().map(|entry| entry.entry.id.as_str()).collect();
            self.streams.drained((partition, source), epoch, &ids).await?;
        }
    }

    async fn drain_one(
        &self,
        partition: Partition,
        epoch: Epoch,
        entry: &Surviving,
        rebuilt: &mut Rebuilt,
    ) -> Result<(), RebuildError> {
        let order = orders(partition, std::slice::from_ref(entry))?.pop();
        if let Some(order) = &order
            && self.stored(partition, epoch, &[order]).await?
        {
            rebuilt.stored += 1;
            return Ok(());
        }
        let Ok(id) = entry.entry.reservation_id(partition, &entry.accepted_as) else {
            tracing::error!(%partition, entry = entry.entry.id, "an entry that is none of ours was dropped by a rebuild");
            return Ok(());
        };
        let reason =
            entry.entry.field("reason").unwrap_or("refused while its partition was rebuilt");
        let void = Void {
            id,
            reserved_at_ms: entry.entry.reserved_at_ms().unwrap_or(0),
            reason: reason.to_owned(),
            entry: entry.entry.to_bytes(),
        };
        let action = DeadAction { actor: "rebuild".to_owned(), reason: reason.to_owned() };
        self.ledger.void(partition, epoch, &void, &action).await?;
        rebuilt.voided += 1;
        Ok(())
    }

    /// Whether these are settled in the ledger now: stored, or (a voided one) never to be.
    async fn stored(
        &self,
        partition: Partition,
        epoch: Epoch,
        orders: &[&Order],
    ) -> Result<bool, LedgerError> {
        match self.ledger.store(partition, epoch, orders).await {
            Ok(stored) => {
                for mismatch in stored.mismatched {
                    tracing::error!(reservation.id = %mismatch.id, column = mismatch.column, "the ledger holds something else under this id");
                }
                Ok(true)
            }
            // Beyond the supply, or refused for itself: it cannot be stored, whatever Redis promised.
            Err(LedgerError::Rejected { .. } | LedgerError::Inconsistent { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// R9: stock = supply − sold; claims and limits from confirmed rows only.
    async fn fill(&self, partition: Partition, epoch: Epoch) -> Result<(), RebuildError> {
        let remaining = self.ledger.remaining(partition).await?;
        let products: Vec<Filling> = remaining
            .iter()
            .map(|remaining| Filling {
                offer: Offer::from(&remaining.product),
                supply: remaining.product.supply,
                available: remaining.product.supply - remaining.sold,
            })
            .collect();
        self.stock.fill_products(partition, epoch, &products).await?;
        let bought = self.ledger.bought(partition).await?;
        let bought = bought.into_iter().map(|held| (held.user, held.product, held.units));
        self.stock.fill_bought(partition, epoch, bought).await?;
        let since = self.stock.claims_since_ms(Timestamp::now().as_millisecond());
        let mut after = None;
        loop {
            let claims = self.ledger.claims(partition, since, (after, CLAIMS_BATCH)).await?;
            let Some(last) = claims.last() else { return Ok(()) };
            after = Some(last.id);
            let parts: Vec<ClaimParts<'_>> = claims
                .iter()
                .map(|claim| ClaimParts {
                    user: &claim.user,
                    product: &claim.product,
                    request: &claim.request,
                    id: claim.id,
                    reserved_at_ms: claim.reserved_at_ms,
                })
                .collect();
            self.stock.fill_claims(partition, epoch, &parts).await?;
        }
    }
}

/// The orders in entries; what no program of ours wrote has none.
fn orders(partition: Partition, entries: &[Surviving]) -> Result<Vec<Order>, RebuildError> {
    let mut orders = Vec::with_capacity(entries.len());
    for surviving in entries {
        match surviving.entry.order(partition, &surviving.accepted_as) {
            Ok(order) => orders.push(order),
            Err(error @ EntryError::NewerFormat(_)) => return Err(error.into()),
            Err(EntryError::Malformed(_)) => {}
        }
    }
    Ok(orders)
}
