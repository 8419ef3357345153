//! Rebuilds a fenced partition from the ledger (R7–R9).
//!
//! ```text
//! ledger: epoch + 1, closed ─> Redis: seized ─> drained ─> filled ─> Redis: open ─> ledger: open
//! ```
//!
//! A crash anywhere leaves the partition closed in the ledger; the next rebuild starts under an epoch of
//! its own, and every script of this one is refused from then on.

use std::{collections::HashSet, pin::pin};

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use super::{Recovery, progress::Underway};
use crate::{
    crash_point,
    domain::{Epoch, LostOrder, Order, Partition},
    fence::FenceError,
    ledger::{Closed, DeadAction, LedgerError, Mark, PartitionRow, Void},
    stock::{ClaimParts, Filling, Held, Offer, OldClaim, Reopened, Seized},
    stream::{EntryError, Source, Surviving},
};

/// Entries a step.
const BATCH: usize = 500;
/// Rows of the ledger a step.
const ROWS: usize = 5000;
/// Reports what Redis itself counted.
const REDIS: &str = "redis";
/// Most lost orders that are named, by a rebuild.
const MAX_NAMED: usize = 50;
/// Why an order is voided that no one has buried.
const REFUSED: &str = "refused while its partition was rebuilt";
/// Redis went back twice: its buyer may have bought again since.
const GIVEN_UP: &str = "came back with an older Redis after it was given up as lost";

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
    /// Reservation ids have room for so many epochs, and ids are never used again.
    #[error(
        "partition {0} has used the last of its {last} epochs and cannot be opened again: move its products to a \
         new deployment (another database and another key_prefix)",
        last = Epoch::LAST
    )]
    EpochsUsedUp(Partition),
    /// A check failed before anything was changed.
    #[error("{what} (no epoch was spent)")]
    NotReady {
        /// What is wrong.
        what: &'static str,
        /// How the check failed.
        #[source]
        source: Box<RebuildError>,
    },
}

impl RebuildError {
    /// Whether a store was found not to be ready, before anything was changed.
    pub(super) fn is_not_ready(&self) -> bool {
        matches!(self, Self::NotReady { .. })
    }
}

impl From<redis::RedisError> for RebuildError {
    fn from(error: redis::RedisError) -> Self {
        Self::Fence(error.into())
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
    /// Some of their orders.
    pub lost: Vec<LostOrder>,
}

impl Recovery {
    /// Rebuilds a partition; `None` when somebody else does.
    ///
    /// # Errors
    ///
    /// See [`RebuildError`]; the partition stays closed, and the next rebuild starts anew.
    pub async fn rebuild(&self, seen: PartitionRow) -> Result<Option<Rebuilt>, RebuildError> {
        let partition = seen.partition;
        let Some(_turn) = self.ledger.lock_rebuild(partition).await? else { return Ok(None) };
        let above = self.check_ready(seen).await?;
        // Before the ledger is written: a failover from here on is another timeline.
        let timeline = self.timeline().await?;
        let Some(closed) = self.ledger.close_partition(seen, above).await? else {
            return Ok(None);
        };
        let Closed { epoch, last_open } = closed;
        self.stock.partitions().set_epoch(partition, None);
        crash_point::reach("rebuild_closed");
        self.mark_from_redis(partition, epoch).await?;
        match self.stock.seize(partition, epoch).await? {
            Seized::Ours => {}
            Seized::Late => return Ok(None),
            Seized::Foreign => return Err(RebuildError::Foreign),
        }
        crash_point::reach("rebuild_seized");
        let (underway, rebuilt) = (self.progress.of(partition), Rebuilt::default());
        let rooms = self;
        let mut rebuild =
            Rebuild { rooms, partition, epoch, last_open, timeline, underway, rebuilt };
        rebuild.run().await?;
        let rebuilt = std::mem::take(&mut rebuild.rebuilt);
        crash_point::reach("rebuild_opened");
        if !self.ledger.reopen_partition(partition, epoch).await? {
            return Ok(None);
        }
        tracing::warn!(
            %partition, %epoch, stored = rebuilt.stored, voided = rebuilt.voided,
            lost_requests = rebuilt.lost_requests, "rebuilt and open"
        );
        for lost in &rebuilt.lost {
            tracing::error!(
                %partition, reservation.id = %lost.id, product = lost.product,
                "the reservation was lost with commits of Postgres"
            );
        }
        // It sells again, here as in every other process: from the next look at the ledger.
        Ok(Some(rebuilt))
    }

    /// Redis's own count of accepts is a mark like a gateway's (R10), before it is wiped: what the ledger lost of
    /// that epoch is counted by it. Nothing is accepted any more when it is read.
    async fn mark_from_redis(
        &self,
        partition: Partition,
        below: Epoch,
    ) -> Result<(), RebuildError> {
        let Some(Held { epoch, owner, .. }) = self.stock.held(partition).await? else {
            return Ok(());
        };
        // Another rebuild is further, or it is not ours: seize.lua says so.
        if epoch >= below || owner != self.deployment.id {
            return Ok(());
        }
        match self.stock.close_in(partition, epoch).await {
            Ok(()) | Err(FenceError::Fenced(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(held) = self.stock.held(partition).await? else { return Ok(()) };
        let ours = held.owner == self.deployment.id;
        if ours && held.epoch == epoch && epoch < below && held.seq > 0 {
            let mark = Mark { partition, epoch, seq: Some(held.seq) };
            self.ledger.report_marks(REDIS, &[mark]).await?;
        }
        Ok(())
    }
}

/// A partition that is closed and seized under this rebuild's epoch.
struct Rebuild<'a> {
    rooms: &'a Recovery,
    partition: Partition,
    epoch: Epoch,
    /// What was accepted before it was settled or given up as lost, once and for all.
    last_open: Epoch,
    /// Of the ledger before this rebuild began.
    timeline: Option<String>,
    underway: Underway,
    rebuilt: Rebuilt,
}

impl Rebuild<'_> {
    /// Until it is open in Redis.
    async fn run(&mut self) -> Result<(), RebuildError> {
        loop {
            for (source, what) in
                [(Source::Orders, "orders drained"), (Source::Dead, "dead entries drained")]
            {
                let of = self.rooms.streams.length(self.partition, source).await?;
                self.underway.begin(what, Some(of));
                self.drain(source).await?;
            }
            crash_point::reach("rebuild_drained");
            self.fill().await?;
            crash_point::reach("rebuild_filled");
            self.conclude_claims().await?;
            crash_point::reach("rebuild_concluded");
            let timeline = self.timeline.as_deref();
            match self.rooms.stock.reopen(self.partition, self.epoch, timeline).await? {
                Reopened::Opened => return Ok(()),
                Reopened::NotEmpty => {}
            }
        }
    }

    /// R8: whatever survived is stored, or voided; then nothing is in flight.
    async fn drain(&mut self, source: Source) -> Result<(), RebuildError> {
        let partition = self.partition;
        loop {
            let entries = self.rooms.streams.surviving(partition, source, ("", BATCH)).await?;
            if entries.is_empty() {
                return Ok(());
            }
            let orders = orders(partition, &entries)?;
            let whole: Vec<&Order> = orders.iter().collect();
            let given_up = whole.iter().any(|order| order.id.epoch() < self.last_open);
            if orders.len() == entries.len() && !given_up && self.stored(&whole).await? {
                self.rebuilt.stored += entries.len();
            } else {
                for entry in &entries {
                    self.drain_one(entry).await?;
                }
            }
            let ids: Vec<&str> = entries.iter().map(|entry| entry.entry.id.as_str()).collect();
            self.rooms.streams.drained((partition, source), self.epoch, &ids).await?;
            self.underway.add(ids.len());
        }
    }

    async fn drain_one(&mut self, entry: &Surviving) -> Result<(), RebuildError> {
        let partition = self.partition;
        let order = orders(partition, std::slice::from_ref(entry))?.pop();
        let given_up = order.as_ref().is_some_and(|order| order.id.epoch() < self.last_open);
        if let Some(order) = &order
            && !given_up
            && self.stored(&[order]).await?
        {
            self.rebuilt.stored += 1;
            return Ok(());
        }
        let Ok(id) = entry.entry.reservation_id(partition, &entry.accepted_as) else {
            tracing::error!(%partition, entry = entry.entry.id, "an entry that is none of ours was dropped by a rebuild");
            return Ok(());
        };
        let without = if given_up { GIVEN_UP } else { REFUSED };
        let reason = entry.entry.field("reason").unwrap_or(without);
        let void = Void {
            id,
            reserved_at_ms: entry.entry.reserved_at_ms().unwrap_or(0),
            reason: reason.to_owned(),
            entry: entry.entry.to_bytes(),
        };
        let action = DeadAction { actor: "rebuild".to_owned(), reason: reason.to_owned() };
        self.rooms.ledger.void(partition, self.epoch, &void, &action).await?;
        self.rebuilt.voided += 1;
        Ok(())
    }

    /// Whether these are settled in the ledger now: stored, or (a voided one) never to be.
    async fn stored(&self, orders: &[&Order]) -> Result<bool, LedgerError> {
        match self.rooms.ledger.store(self.partition, self.epoch, orders).await {
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
    async fn fill(&self) -> Result<(), RebuildError> {
        let (stock, ledger) = (&self.rooms.stock, &self.rooms.ledger);
        let (partition, epoch, underway) = (self.partition, self.epoch, &self.underway);
        let remaining = ledger.remaining(partition).await?;
        let products: Vec<Filling> = remaining
            .iter()
            .map(|remaining| Filling {
                offer: Offer::from(&remaining.product),
                supply: remaining.product.supply,
                available: remaining.product.supply - remaining.sold,
            })
            .collect();
        underway.begin("products filled", u64::try_from(products.len()).ok());
        stock.fill_products(partition, epoch, &products).await?;
        underway.begin("buyers' counts restored", None);
        let mut bought = pin!(ledger.bought(partition).await?.try_chunks(ROWS));
        while let Some(rows) = bought.next().await {
            let rows = rows.map_err(|broken| broken.1)?;
            underway.add(rows.len());
            let held = rows.into_iter().map(|held| (held.user, held.product, held.units));
            stock.fill_bought(partition, epoch, held).await?;
        }
        underway.begin("request ids restored", None);
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
            underway.add(rows.len());
        }
        Ok(())
    }
}

impl Rebuild<'_> {
    /// Looks up every request id that was remembered and that the ledger did not confirm: one whose order is in
    /// neither store stays remembered as lost, so that a repeated request does not buy again unawares. (An order
    /// and its request id are written in one step, so Redis alone loses both; the ledger may lose the order alone.)
    async fn conclude_claims(&mut self) -> Result<(), RebuildError> {
        let (stock, partition) = (&self.rooms.stock, self.partition);
        self.underway.begin("unconfirmed request ids looked up", None);
        for bucket in stock.old_buckets().await? {
            let mut cursor = 0;
            loop {
                let (next, page) = stock.old_claims(partition, bucket, cursor).await?;
                let ids: Vec<_> = page.iter().filter_map(|claim| claim.id).collect();
                let uuids: Vec<_> = ids.iter().map(|id| id.to_uuid()).collect();
                let settled = self.rooms.ledger.settled(&uuids).await?;
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
                self.underway.add(claims.len());
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
            if self.rebuilt.lost.len() < MAX_NAMED {
                let (user, product) = claim.buyer();
                self.rebuilt.lost.push(LostOrder { id, user, product });
            }
        }
    }
}

/// The orders in entries; what no program of ours wrote has none.
pub(super) fn orders(
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
