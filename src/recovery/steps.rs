//! The steps of a rebuild on a partition that is closed: drain, fill, look the other request ids up, open in Redis.

use std::{collections::HashSet, pin::pin};

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use super::{RebuildError, Rebuilt, Recovery, status::Progress};
use crate::{
    crash_point,
    domain::{Epoch, LostOrder, Order, Partition},
    ledger::{DeadAction, LedgerError, Void},
    stock::{ClaimParts, Filling, Offer, OldClaim, Reopened},
    stream::{EntryError, Source, Surviving},
};

/// Entries a step.
const BATCH: usize = 500;
/// Rows of the ledger a step.
const ROWS: usize = 5000;
/// Most lost orders that a rebuild names.
const NAMED_MAX: usize = 50;
/// Why an order is voided that was not moved to the dead stream.
const REFUSED: &str = "refused while its partition was rebuilt";
/// Redis went back twice: the buyer may have bought again since.
const GIVEN_UP: &str = "came back with an older Redis after it was given up as lost";

/// A rebuild of a partition that is closed in both stores, in the epoch of this rebuild.
pub(super) struct Rebuild<'a> {
    pub(super) recovery: &'a Recovery,
    pub(super) partition: Partition,
    pub(super) epoch: Epoch,
    /// Orders of earlier epochs than this one were settled or given up as lost before.
    pub(super) last_open: Epoch,
    /// The timeline of the ledger before this rebuild began.
    pub(super) timeline: Option<String>,
    pub(super) progress: Progress,
    pub(super) rebuilt: Rebuilt,
}

impl Rebuild<'_> {
    /// Runs the steps until the partition is open in Redis.
    pub(super) async fn run(mut self) -> Result<Rebuilt, RebuildError> {
        let (partition, epoch) = (self.partition, self.epoch);
        loop {
            for (source, what) in
                [(Source::Orders, "orders drained"), (Source::Dead, "dead entries drained")]
            {
                let of = self.recovery.streams.length(partition, source).await?;
                self.progress.begin(what, Some(of));
                self.drain(source).await?;
            }
            let Rebuilt { stored, voided, .. } = self.rebuilt;
            tracing::debug!(%partition, %epoch, stored, voided, "drained");
            crash_point::reach("rebuild_drained");
            self.fill().await?;
            tracing::debug!(%partition, %epoch, "filled");
            crash_point::reach("rebuild_filled");
            self.resolve_old_request_ids().await?;
            let lost = self.rebuilt.lost_requests;
            tracing::debug!(%partition, %epoch, lost, "other request ids looked up");
            crash_point::reach("rebuild_concluded");
            let timeline = self.timeline.as_deref();
            match self.recovery.stock.reopen(partition, epoch, timeline).await? {
                Reopened::Opened => {
                    tracing::debug!(%partition, %epoch, "open in Redis");
                    return Ok(self.rebuilt);
                }
                Reopened::NotEmpty => {}
            }
        }
    }

    /// R8: every entry that survived is stored or voided; then nothing is in flight.
    async fn drain(&mut self, source: Source) -> Result<(), RebuildError> {
        let partition = self.partition;
        loop {
            let entries = self.recovery.streams.surviving(partition, source, ("", BATCH)).await?;
            if entries.is_empty() {
                return Ok(());
            }
            let orders = orders_in(partition, &entries)?;
            let all: Vec<&Order> = orders.iter().collect();
            let given_up = all.iter().any(|order| order.id.epoch() < self.last_open);
            if all.len() == entries.len() && !given_up && self.store(&all).await? {
                self.rebuilt.stored += entries.len();
            } else {
                for entry in &entries {
                    self.drain_one(entry).await?;
                }
            }
            let ids: Vec<&str> = entries.iter().map(|entry| entry.entry.id.as_str()).collect();
            self.recovery.streams.drained((partition, source), self.epoch, &ids).await?;
            self.progress.add(ids.len());
        }
    }

    async fn drain_one(&mut self, entry: &Surviving) -> Result<(), RebuildError> {
        let partition = self.partition;
        let order = orders_in(partition, std::slice::from_ref(entry))?.pop();
        let given_up = order.as_ref().is_some_and(|order| order.id.epoch() < self.last_open);
        if let Some(order) = &order
            && !given_up
            && self.store(&[order]).await?
        {
            self.rebuilt.stored += 1;
            return Ok(());
        }
        let Ok(id) = entry.entry.reservation_id(partition, &entry.accepted_as) else {
            tracing::error!(
                %partition, entry = entry.entry.id,
                "the rebuild dropped an entry that was not written by this service"
            );
            return Ok(());
        };
        let default = if given_up { GIVEN_UP } else { REFUSED };
        let reason = entry.entry.field("reason").unwrap_or(default);
        let void = Void {
            id,
            reserved_at_ms: entry.entry.reserved_at_ms().unwrap_or(0),
            reason: reason.to_owned(),
            entry: entry.entry.to_bytes(),
        };
        let action = DeadAction { actor: "rebuild".to_owned(), reason: reason.to_owned() };
        self.recovery.ledger.void(partition, self.epoch, &void, &action).await?;
        self.rebuilt.voided += 1;
        Ok(())
    }

    /// Stores these orders; returns whether all are settled in the ledger now: stored, or voided before.
    async fn store(&self, orders: &[&Order]) -> Result<bool, LedgerError> {
        match self.recovery.ledger.store(self.partition, self.epoch, orders).await {
            Ok(stored) => {
                for mismatch in stored.mismatched {
                    tracing::error!(
                        reservation.id = %mismatch.id, column = mismatch.column,
                        "the ledger holds another order under this reservation id"
                    );
                }
                Ok(true)
            }
            // The supply is exceeded, or this order itself is refused: it cannot be stored although Redis accepted it.
            Err(LedgerError::Rejected { .. } | LedgerError::Inconsistent { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// R9: stock = supply − sold; request ids and limits from confirmed rows only.
    async fn fill(&self) -> Result<(), RebuildError> {
        let (stock, ledger) = (&self.recovery.stock, &self.recovery.ledger);
        let (partition, epoch, progress) = (self.partition, self.epoch, &self.progress);
        let remaining = ledger.remaining(partition).await?;
        let products: Vec<Filling> = remaining
            .iter()
            .map(|remaining| Filling {
                offer: Offer::from(&remaining.product),
                supply: remaining.product.supply,
                available: remaining.product.supply - remaining.sold,
            })
            .collect();
        progress.begin("products filled", u64::try_from(products.len()).ok());
        stock.fill_products(partition, epoch, &products).await?;
        progress.begin("buyers' counts restored", None);
        let mut bought = pin!(ledger.bought(partition).await?.try_chunks(ROWS));
        while let Some(rows) = bought.next().await {
            let rows = rows.map_err(|broken| broken.1)?;
            progress.add(rows.len());
            let held = rows.into_iter().map(|held| (held.user, held.product, held.units));
            stock.fill_bought(partition, epoch, held).await?;
        }
        progress.begin("request ids restored", None);
        let since = stock.remembered_since_ms(Timestamp::now().as_millisecond());
        let mut claims = pin!(ledger.claims(partition, since).await?.try_chunks(ROWS));
        while let Some(rows) = claims.next().await {
            let rows = rows.map_err(|broken| broken.1)?;
            let parts: Vec<ClaimParts<'_>> = rows
                .iter()
                .map(|claim| ClaimParts {
                    user: &claim.user,
                    product: &claim.product,
                    request: &claim.request,
                    id: claim.id,
                    reserved_at_ms: claim.reserved_at_ms,
                })
                .collect();
            stock.fill_claims(partition, epoch, &parts).await?;
            progress.add(rows.len());
        }
        Ok(())
    }

    /// Looks up every request id that was remembered and that the ledger did not confirm. One whose order is in
    /// neither store stays remembered as lost, so that a repeated request does not buy a second time unnoticed. (An
    /// order and its request id are written in one step, so Redis loses both or none; the ledger may lose the order
    /// alone.)
    async fn resolve_old_request_ids(&mut self) -> Result<(), RebuildError> {
        let (stock, partition) = (&self.recovery.stock, self.partition);
        self.progress.begin("unconfirmed request ids looked up", None);
        for bucket in stock.old_buckets().await? {
            let mut cursor = 0;
            loop {
                let (next, page) = stock.old_claims(partition, bucket, cursor).await?;
                let ids: Vec<_> = page.iter().filter_map(|claim| claim.id).collect();
                let uuids: Vec<_> = ids.iter().map(|id| id.to_uuid()).collect();
                let settled = self.recovery.ledger.settled(&uuids).await?;
                let settled: HashSet<_> = settled.into_iter().map(|(id, _)| id).collect();
                let is_lost =
                    |claim: &OldClaim| claim.id.is_some_and(|id| !settled.contains(&id.to_uuid()));
                let claims: Vec<(OldClaim, bool)> = page
                    .into_iter()
                    .map(|claim| {
                        let lost = is_lost(&claim);
                        (claim, lost)
                    })
                    .collect();
                if !claims.is_empty() {
                    stock.conclude_claims((partition, bucket), self.epoch, &claims).await?;
                }
                self.progress.add(claims.len());
                self.name_lost(&claims);
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    fn name_lost(&mut self, claims: &[(OldClaim, bool)]) {
        let lost = claims.iter().filter(|(_, is_lost)| *is_lost);
        for (claim, id) in lost.filter_map(|(claim, _)| Some((claim, claim.id?))) {
            self.rebuilt.lost_requests += 1;
            if self.rebuilt.lost.len() < NAMED_MAX {
                let (user, product) = claim.buyer();
                self.rebuilt.lost.push(LostOrder { id, user, product });
            }
        }
    }
}

/// The orders in entries; an entry that this service did not write has none.
pub(super) fn orders_in(
    partition: Partition,
    entries: &[Surviving],
) -> Result<Vec<Order>, RebuildError> {
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
