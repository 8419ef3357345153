//! The steps of a rebuild on a partition that is closed: drain, fill, look the other request ids up, open in Redis.

use std::{collections::HashSet, pin::pin};

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use super::{RebuildError, Rebuilt, Recovery, status::Progress};
use crate::{
    crash_point,
    domain::{Epoch, LostOrder, Order, Partition, PartitionEpoch},
    ledger::{ActionBy, LedgerError, VoidRequest},
    lifecycle::{Reopened, UnconfirmedRequest},
    stream::{EntryError, Source, UndrainedEntry},
};

/// Entries per step.
const BATCH: usize = 500;
/// Rows of the ledger per step.
const ROWS: usize = 5000;
/// The most lost orders that a rebuild names.
const NAMED_MAX: usize = 50;
/// Why an order is voided that was not moved to the dead stream.
const REFUSED: &str = "rejected by the ledger while its partition was rebuilt";
/// Such an order is not stored: its buyer may have bought again since.
const COUNTED_AS_LOST: &str = "accepted in an epoch that had ended and counted as lost; \
     found again in restored data of Redis";

/// A rebuild of a partition that is closed in both stores, in the epoch of this rebuild.
pub(super) struct Rebuild<'a> {
    pub(super) recovery: &'a Recovery,
    pub(super) at: PartitionEpoch,
    /// Orders of earlier epochs than this one were decided or counted as lost before.
    pub(super) last_open: Epoch,
    /// The timeline of the ledger before this rebuild began.
    pub(super) timeline: Option<String>,
    pub(super) progress: Progress,
    pub(super) rebuilt: Rebuilt,
}

impl Rebuild<'_> {
    /// Runs the steps until the partition is open in Redis.
    pub(super) async fn run(mut self) -> Result<Rebuilt, RebuildError> {
        let PartitionEpoch { partition, epoch } = self.at;
        loop {
            for (source, what) in
                [(Source::Orders, "orders drained"), (Source::Dead, "dead entries drained")]
            {
                let of = self.recovery.streams.length(partition, source).await?;
                self.progress.begin(what, Some(of));
                self.drain(source).await?;
            }
            let Rebuilt { stored, voided, .. } = self.rebuilt;
            tracing::debug!(%partition, %epoch, stored, voided, "both streams are drained");
            crash_point::reach("rebuild_drained");
            self.fill().await?;
            tracing::debug!(%partition, %epoch, "Redis is filled from the ledger");
            crash_point::reach("rebuild_filled");
            self.resolve_unconfirmed().await?;
            let lost = self.rebuilt.lost_requests;
            tracing::debug!(%partition, %epoch, lost, "the other request ids are looked up");
            crash_point::reach("rebuild_requests_resolved");
            let timeline = self.timeline.as_deref();
            match self.recovery.lifecycle.reopen(self.at, timeline).await? {
                Reopened::Opened => {
                    tracing::debug!(%partition, %epoch, "the partition is open in Redis");
                    return Ok(self.rebuilt);
                }
                Reopened::NotEmpty => {}
            }
        }
    }

    /// R8: every entry of the stream is stored or voided; then nothing is in flight.
    async fn drain(&mut self, source: Source) -> Result<(), RebuildError> {
        let partition = self.at.partition;
        loop {
            let entries = self.recovery.streams.undrained(partition, source, "", BATCH).await?;
            if entries.is_empty() {
                return Ok(());
            }
            let orders = orders_in(partition, &entries)?;
            let all: Vec<&Order> = orders.iter().collect();
            let was_counted_as_lost = all.iter().any(|order| order.id.epoch() < self.last_open);
            if all.len() == entries.len() && !was_counted_as_lost && self.store(&all).await? {
                self.rebuilt.stored += entries.len();
            } else {
                for entry in &entries {
                    self.drain_one(entry).await?;
                }
            }
            let ids: Vec<&str> = entries.iter().map(|entry| entry.entry.id.as_str()).collect();
            self.recovery.streams.drain(self.at, source, &ids).await?;
            self.progress.add(ids.len());
        }
    }

    async fn drain_one(&mut self, entry: &UndrainedEntry) -> Result<(), RebuildError> {
        let partition = self.at.partition;
        let order = orders_in(partition, std::slice::from_ref(entry))?.pop();
        let was_counted_as_lost =
            order.as_ref().is_some_and(|order| order.id.epoch() < self.last_open);
        if let Some(order) = &order
            && !was_counted_as_lost
            && self.store(&[order]).await?
        {
            self.rebuilt.stored += 1;
            return Ok(());
        }
        let Ok(id) = entry.entry.reservation_id(partition, &entry.orders_id) else {
            tracing::error!(
                %partition, entry = entry.entry.id,
                "this program did not write an entry: the rebuild dropped it"
            );
            return Ok(());
        };
        let default = if was_counted_as_lost { COUNTED_AS_LOST } else { REFUSED };
        let reason = entry.entry.field("reason").unwrap_or(default);
        let void = VoidRequest {
            id,
            reserved_at_ms: entry.entry.reserved_at_ms().unwrap_or(0),
            reason: reason.to_owned(),
            entry: entry.entry.to_bytes(),
        };
        let by = ActionBy { actor: "rebuild".to_owned(), reason: reason.to_owned() };
        self.recovery.ledger.void(partition, self.at.epoch, &void, &by).await?;
        self.rebuilt.voided += 1;
        Ok(())
    }

    /// Stores these orders; returns whether all are decided in the ledger now: stored, or voided before.
    async fn store(&self, orders: &[&Order]) -> Result<bool, LedgerError> {
        match self.recovery.ledger.store(self.at.partition, self.at.epoch, orders).await {
            Ok(stored) => {
                for mismatch in stored.mismatched {
                    tracing::error!(
                        reservation.id = %mismatch.id, column = mismatch.column,
                        "the ledger holds another order under this id: run `yoink audit`, and compare the row and \
                         the entry (docs/operations.md, YoinkAuditViolated)"
                    );
                }
                Ok(true)
            }
            // The supply is exceeded, or this order itself is rejected: it cannot be stored although Redis accepted it.
            Err(LedgerError::Rejected { .. } | LedgerError::Inconsistent { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// R9: stock = supply − sold; request ids and limits from confirmed rows only.
    async fn fill(&self) -> Result<(), RebuildError> {
        let Self { recovery: Recovery { lifecycle, ledger, .. }, at, progress, .. } = self;
        let products = ledger.products_with_sold(at.partition).await?;
        progress.begin("products filled", u64::try_from(products.len()).ok());
        lifecycle.fill_products(*at, &products).await?;
        progress.begin("buyers' counts restored", None);
        let limited = products.iter().map(|product| &product.product);
        let limited = limited.filter(|product| product.sale.per_user_limit.is_some());
        let limited: Vec<_> = limited.map(|product| &product.id).collect();
        let bought = ledger.bought(at.partition, &limited).await?;
        let mut chunks = pin!(bought.try_chunks(ROWS));
        let mut next = chunks.next().await;
        while let Some(rows) = next {
            let rows = rows.map_err(|broken| broken.1)?;
            // The next rows are read meanwhile.
            let (filled, following) =
                tokio::join!(lifecycle.fill_bought(*at, &rows), chunks.next());
            filled?;
            progress.add(rows.len());
            next = following;
        }
        progress.begin("request ids restored", None);
        let since = lifecycle.remembered_since_ms(Timestamp::now().as_millisecond());
        let records = ledger.idempotency_records(at.partition, since).await?;
        let mut chunks = pin!(records.try_chunks(ROWS));
        let mut next = chunks.next().await;
        while let Some(rows) = next {
            let rows = rows.map_err(|broken| broken.1)?;
            let (filled, following) =
                tokio::join!(lifecycle.fill_idempotency(*at, &rows), chunks.next());
            filled?;
            progress.add(rows.len());
            next = following;
        }
        Ok(())
    }

    /// Looks up every request id that was remembered and that the ledger did not confirm. One whose order is in
    /// neither store stays remembered as lost, so that a repeated request does not buy a second time unnoticed. (An
    /// order and its request id are written in one step, so Redis loses both or none; the ledger may lose the order
    /// alone.)
    async fn resolve_unconfirmed(&mut self) -> Result<(), RebuildError> {
        let Recovery { lifecycle, ledger, .. } = self.recovery;
        self.progress.begin("unconfirmed request ids looked up", None);
        for bucket in lifecycle.old_buckets(self.at.partition).await? {
            let mut cursor = 0;
            loop {
                let (next, page) = lifecycle.unconfirmed(self.at.partition, bucket, cursor).await?;
                let ids = page.iter().filter_map(|request| request.id);
                let uuids: Vec<_> = ids.map(|id| id.to_uuid()).collect();
                let decided = ledger.decided(&uuids).await?;
                let decided: HashSet<_> = decided.into_iter().map(|(id, _)| id).collect();
                let page = page.into_iter().map(|request| {
                    let lost = request.id.is_some_and(|id| !decided.contains(&id.to_uuid()));
                    (request, lost)
                });
                let requests: Vec<(UnconfirmedRequest, bool)> = page.collect();
                lifecycle.resolve(self.at, bucket, &requests).await?;
                self.progress.add(requests.len());
                self.add_lost(&requests);
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    fn add_lost(&mut self, requests: &[(UnconfirmedRequest, bool)]) {
        let lost = requests.iter().filter(|(_, is_lost)| *is_lost);
        for (request, id) in lost.filter_map(|(request, _)| Some((request, request.id?))) {
            self.rebuilt.lost_requests += 1;
            if self.rebuilt.lost.len() < NAMED_MAX {
                let (user, product) = request.user_and_product();
                self.rebuilt.lost.push(LostOrder { id, user, product });
            }
        }
    }
}

/// The orders in entries; an entry that this program did not write has none.
pub(super) fn orders_in(
    partition: Partition,
    entries: &[UndrainedEntry],
) -> Result<Vec<Order>, RebuildError> {
    let mut orders = Vec::with_capacity(entries.len());
    for undrained in entries {
        match undrained.entry.order(partition, &undrained.orders_id) {
            Ok(order) => orders.push(order),
            Err(error @ EntryError::NewerFormat(_)) => return Err(error.into()),
            Err(EntryError::Malformed(_)) => {}
        }
    }
    Ok(orders)
}
