//! Stores the accepted orders of one partition in the ledger.

use std::time::{Duration, Instant};

use futures_util::future;
use redis::RedisError;
use tokio_util::sync::CancellationToken;

use super::{
    BATCH_MAX, WorkerContext,
    delayed_orders::DelayedOrders,
    pause::{Pause, PauseReason},
    store::{BatchResult, RejectedOrder, Unlisted, store},
    takeover::{Takeover, leave, or_restored_group},
};
use crate::{
    crash_point,
    domain::{Epoch, Partition, next_delivery},
    redis::{Connection, RedisCallError},
    stock::{ReleaseFrom, ReleaseOutcome},
    stream::{MoveToDead, PendingEntry},
    tasks::tick,
    telemetry,
};

/// How long a read waits for a new entry, and how late a stop may be noticed.
const BLOCK: Duration = Duration::from_millis(500);
/// The delay between attempts while paused. The longest is also how much later than Postgres storing continues.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The epoch in which an order was accepted; `None` if this program did not write the entry.
fn epoch_of(pending: &PendingEntry) -> Option<Epoch> {
    pending.entry.id.split_once('-').and_then(|(epoch, _)| epoch.parse().ok()).map(Epoch)
}

/// Acknowledges and deletes the entries of stored orders.
async fn settle(
    context: &WorkerContext,
    partition: Partition,
    stored: &[PendingEntry],
) -> Result<(), Pause> {
    if stored.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = stored.iter().map(|pending| pending.entry.id.as_str()).collect();
    Ok(context.streams.settle(partition, &ids).await?)
}

/// The consumer of one partition.
pub struct Consumer {
    context: WorkerContext,
    partition: Partition,
    reader: Connection,
    /// Entries that are read and not settled; they are kept through every pause.
    unsettled: Vec<PendingEntry>,
    /// Entries that were read while the batch before them was stored.
    read_ahead: Vec<PendingEntry>,
    /// Entries whose orders are in the ledger; they are settled while the next batch is stored.
    stored: Vec<PendingEntry>,
    /// Whether the last read found a full batch, so that more entries wait.
    backlog: bool,
    delayed: DelayedOrders,
    takeover: Takeover,
    /// Whether a probe found the partition open, and no step has failed since.
    open: bool,
    block: Duration,
}

impl Consumer {
    /// The consumer of this partition; `reader` is a connection for its blocking reads alone.
    pub fn new(context: WorkerContext, partition: Partition, reader: Connection) -> Self {
        Self {
            delayed: DelayedOrders::new(context.settings.retry_delay),
            context,
            partition,
            reader,
            unsettled: Vec::new(),
            read_ahead: Vec::new(),
            stored: Vec::new(),
            backlog: false,
            takeover: Takeover::new(),
            open: false,
            block: BLOCK,
        }
    }

    /// Reads without waiting, for tests that call [`Consumer::run_once`].
    pub fn without_waiting(mut self) -> Self {
        self.block = Duration::ZERO;
        self
    }

    /// Runs until stopped; finishes the batch that it has begun.
    pub async fn run(mut self, stop: CancellationToken) {
        self.context.commit_reports.set_consumed(self.partition, true);
        let mut delay = PAUSE_MIN;
        while !stop.is_cancelled() {
            match self.run_once().await {
                Ok(_) => {
                    delay = PAUSE_MIN;
                    if self.context.pauses.set(self.partition, None).is_some() {
                        tracing::info!(partition = %self.partition, "consumption resumed");
                    }
                }
                Err(pause) => {
                    self.report(&pause);
                    tick(delay, &stop).await;
                    delay = (delay * 2).min(PAUSE_MAX);
                }
            }
        }
        // What was read ahead is stored; nothing more is read.
        self.backlog = false;
        while !self.read_ahead.is_empty() && self.run_once().await.is_ok() {}
        let kept = [&self.unsettled, &self.read_ahead, &self.stored];
        let has_entries = !self.delayed.is_empty() || kept.iter().any(|kept| !kept.is_empty());
        leave(&self.context, self.partition, has_entries).await;
        // Another worker may own the partition from now on: this one reports nothing of it.
        self.context.commit_reports.set_consumed(self.partition, false);
        self.context.pauses.set(self.partition, None);
        self.context.pauses.set_unlisted(self.partition, None);
    }

    /// Publishes a pause, and logs it if its reason is new.
    fn report(&self, pause: &Pause) {
        if self.context.pauses.set(self.partition, Some(pause.reason)) == Some(pause.reason) {
            return;
        }
        let (partition, error) = (self.partition, &*pause.source as &dyn std::error::Error);
        let unsettled = self.unsettled.len() + self.read_ahead.len() + self.stored.len();
        if let PauseReason::LedgerTransient | PauseReason::RedisUnavailable | PauseReason::Fenced =
            pause.reason
        {
            tracing::warn!(%partition, unsettled, error, "consumption paused: {}", pause.reason);
        } else {
            tracing::error!(%partition, unsettled, error, "consumption paused: {}", pause.reason);
        }
    }

    /// Processes one batch; returns its size, 0 if there was nothing to do.
    /// After an error, a pause, nothing was lost, and the call is to be repeated.
    pub async fn run_once(&mut self) -> Result<usize, Pause> {
        let processed = self.process_batch().await;
        self.open &= processed.is_ok();
        processed
    }

    async fn process_batch(&mut self) -> Result<usize, Pause> {
        self.fill().await?;
        if self.unsettled.is_empty() {
            return Ok(0);
        }
        crash_point::reach("after_read");
        let epoch = self.context.stock.partitions().epoch(self.partition)?;
        self.drop_earlier_epochs(epoch);
        if let Some(later) = self.unsettled.iter().find(|pending| epoch_of(pending) > Some(epoch)) {
            let source = format!("entry {} is of an epoch after {epoch}", later.entry.id);
            return Err(Pause { reason: PauseReason::Fenced, source: source.into() });
        }
        let size = self.unsettled.len().min(BATCH_MAX);
        let batch: Vec<PendingEntry> = self.unsettled.drain(..size).collect();
        let settling = std::mem::take(&mut self.stored);
        // While Postgres stores this batch, Redis settles the one before and delivers the next one.
        let read_ahead = self.open
            && self.backlog
            && self.read_ahead.is_empty()
            && !self.delayed.is_full()
            && !self.takeover.is_due();
        let (context, partition) = (&self.context, self.partition);
        let read = async {
            let count = (BATCH_MAX, 0);
            let read =
                context.streams.read_new(&mut self.reader, partition, &context.consumer, count);
            if read_ahead { Some(read.await) } else { None }
        };
        let stored = async {
            let mut result =
                store(&context.ledger, &context.metrics, partition, epoch, batch).await;
            // Calls that wait for these orders do not wait for Redis as well.
            context.commit_reports.report(std::mem::take(&mut result.confirmed));
            result
        };
        let (result, settled, read) =
            future::join3(stored, settle(context, partition, &settling), read).await;
        if settled.is_err() {
            self.unsettled.extend(settling);
        }
        if let Some(read) = read {
            // The next read reports a failure that lasts.
            self.read_ahead = self.end_read(read).await.unwrap_or_default();
        }
        let finished = self.finish(result).await;
        settled?;
        finished?;
        Ok(size)
    }

    /// Fills `unsettled`, if it is empty: with delayed orders that are due, else with what was read ahead, else with entries
    /// to take over, else with new ones.
    async fn fill(&mut self) -> Result<(), Pause> {
        if self.unsettled.is_empty() {
            self.unsettled = self.delayed.take_due(BATCH_MAX);
        }
        if self.unsettled.is_empty() {
            self.unsettled = std::mem::take(&mut self.read_ahead);
        }
        if !self.unsettled.is_empty() {
            return Ok(());
        }
        // Reads are not fenced. At the start and after every failure, a probe must find the partition open
        // before entries are taken from other consumers.
        if !self.open {
            self.context.lifecycle.probe(self.partition).await?;
            self.open = true;
        }
        // While too many orders are delayed, nothing more is taken.
        if !self.delayed.is_full() && self.takeover.is_due() {
            let delayed = self.delayed.entries();
            let taken = self.takeover.run(&self.context, self.partition, delayed.len()).await?;
            let new = taken.into_iter().filter(|taken| !delayed.contains(taken.entry.id.as_str()));
            self.unsettled = new.take(BATCH_MAX).collect();
        }
        if self.unsettled.is_empty() {
            self.read_new().await?;
        }
        Ok(())
    }

    /// A rebuild has stored, voided or counted as lost every order that was accepted before it (R8): no
    /// order of an earlier epoch may be stored under this one.
    fn drop_earlier_epochs(&mut self, epoch: Epoch) {
        let current = |pending: &PendingEntry| epoch_of(pending).is_none_or(|found| found >= epoch);
        self.unsettled.retain(current);
        self.delayed.retain(current);
    }

    async fn read_new(&mut self) -> Result<(), Pause> {
        let until_due =
            self.delayed.next_due().map(|due| due.saturating_duration_since(Instant::now()));
        let block = until_due.map_or(self.block, |until| until.min(self.block));
        if self.delayed.is_full() {
            tokio::time::sleep(block).await;
            return Ok(());
        }
        let block_ms = usize::try_from(block.as_millis()).unwrap_or(0);
        let (streams, consumer) = (&self.context.streams, &self.context.consumer);
        let read = streams
            .read_new(&mut self.reader, self.partition, consumer, (BATCH_MAX, block_ms))
            .await;
        self.unsettled = self.end_read(read).await?;
        Ok(())
    }

    async fn end_read(
        &mut self,
        read: Result<Vec<PendingEntry>, RedisError>,
    ) -> Result<Vec<PendingEntry>, Pause> {
        if read.is_err() {
            self.takeover.read_failed();
        }
        self.backlog = read.as_ref().is_ok_and(|read| read.len() == BATCH_MAX);
        or_restored_group(&self.context, self.partition, read).await
    }

    /// Settles, releases, delays or moves each entry of a batch. An entry for which Redis fails stays
    /// unsettled and is stored again: every part may be repeated.
    async fn finish(&mut self, result: BatchResult) -> Result<(), Pause> {
        crash_point::reach("after_commit");
        let all_stored = result.is_all_stored();
        for mismatch in &result.mismatched {
            tracing::error!(reservation.id = %mismatch.id, column = mismatch.column, "the ledger holds another order under this id, and the entry stays in orders: run `yoink audit`, and compare the row and the entry (docs/operations.md, YoinkAuditViolated)");
        }
        if self.open && all_stored && !self.read_ahead.is_empty() {
            // Settled while the next batch is stored.
            self.stored = result.stored;
            self.keep_unlisted(Vec::new(), None);
            crash_point::reach("settle_deferred");
            return Ok(());
        }
        self.unsettled.extend(result.unfinished);
        let mut pause = result.pause;
        if let Err(error) = settle(&self.context, self.partition, &result.stored).await {
            pause = pause.or(Some(error));
            self.unsettled.extend(result.stored);
        }
        for pending in result.voided {
            if let Err(error) = self.release(&pending).await {
                pause = pause.or(Some(error));
                self.unsettled.push(pending);
            }
        }
        for rejected in result.rejected {
            pause = pause.or(self.handle_rejected(rejected).await.err());
        }
        let Some(pause) = self.keep_unlisted(result.unlisted, pause) else { return Ok(()) };
        if pause.reason == PauseReason::Inconsistent {
            self.close_partition().await;
        }
        Err(pause)
    }

    /// Gives back the unit of a voided order whose entry is still in `orders` (R6).
    async fn release(&self, pending: &PendingEntry) -> Result<(), Pause> {
        let (context, id) = (&self.context, &pending.entry.id);
        match context.stock.release(self.partition, ReleaseFrom::Orders, id).await? {
            ReleaseOutcome::Released | ReleaseOutcome::AlreadyReleased => {
                tracing::debug!(partition = %self.partition, entry = id, "voided order released");
            }
            ReleaseOutcome::Unrecognized => {
                tracing::error!(partition = %self.partition, entry = id, "this program did not write the entry of a voided order: its unit cannot be given back");
            }
            ReleaseOutcome::NoStock => {
                tracing::error!(partition = %self.partition, entry = id, "the unit of a voided order cannot be given back, because Redis has no stock of its product: run `yoink rebuild --partition {}`", self.partition);
            }
        }
        Ok(())
    }

    /// Counts an order's own failure in its deliveries; after the last one, moves it to the dead stream.
    async fn handle_rejected(&mut self, rejected: RejectedOrder) -> Result<(), Pause> {
        let settings = self.context.settings;
        let next = next_delivery(rejected.pending.deliveries, settings.deliveries_max);
        let Some(deliveries) = next else { return self.move_to_dead(rejected).await };
        let pending = PendingEntry { deliveries, ..rejected.pending };
        let id = pending.entry.id.clone();
        self.delayed.add_rejected(pending);
        let (streams, consumer) = (&self.context.streams, &self.context.consumer);
        Ok(streams.set_deliveries(self.partition, consumer, &id, deliveries).await?)
    }

    async fn move_to_dead(&mut self, rejected: RejectedOrder) -> Result<(), Pause> {
        let RejectedOrder { pending, order, reason, sqlstate } = rejected;
        let reservation_id = order.as_ref().map(|order| order.id);
        let traceparent = order.and_then(|order| order.traceparent);
        let entry_id = pending.entry.id.clone();
        let request = MoveToDead { entry_id, reservation_id, reason, sqlstate };
        if let Err(error) = self.context.streams.move_to_dead(self.partition, &request).await {
            // Delayed, so that the others of the batch are settled, which frees the memory that this move may need.
            self.delayed.add_rejected(pending);
            return Err(error.into());
        }
        tracing::error!(
            partition = %self.partition,
            reservation.id = reservation_id.map(tracing::field::display),
            trace_id = traceparent.as_deref().and_then(telemetry::trace_id),
            reason = request.reason,
            "an order cannot be stored: moved to the dead stream"
        );
        self.context.metrics.record_dead_letter();
        crash_point::reach("after_move_to_dead");
        Ok(())
    }

    /// Delays the orders that Postgres refused with an unlisted SQLSTATE. Returns the pause that remains: `None` if
    /// every order that was not stored is such an order, and is delayed.
    fn keep_unlisted(&mut self, unlisted: Vec<Unlisted>, pause: Option<Pause>) -> Option<Pause> {
        let refused = pause.as_ref().map(|pause| pause.reason);
        let refused = matches!(refused, Some(PauseReason::LedgerUnlisted(Some(_))));
        if refused {
            self.unsettled = self.delayed.add_unlisted_again(std::mem::take(&mut self.unsettled));
        }
        for Unlisted { pending, sqlstate, reason } in unlisted {
            let entry = pending.entry.id.clone();
            if self.delayed.add_unlisted(pending, sqlstate) {
                tracing::error!(
                    partition = %self.partition, entry, %sqlstate, reason,
                    "Postgres refused an order with a SQLSTATE that this program does not classify (src/ledger/error.rs); it is kept and tried again"
                );
            }
        }
        self.context.pauses.set_unlisted(self.partition, self.delayed.unlisted(&self.unsettled));
        pause.filter(|_| !(refused && self.unsettled.is_empty()))
    }

    /// Stops the sale of a partition whose stores disagree.
    async fn close_partition(&self) {
        match self.context.lifecycle.close(self.partition).await {
            // Fenced: it is closed already.
            Ok(()) | Err(RedisCallError::Fenced(_)) => {}
            Err(error) => {
                tracing::warn!(partition = %self.partition, error = &error as &dyn std::error::Error, "Redis and the ledger disagree, and Redis did not confirm that the partition is closed: it may still sell; trying again");
            }
        }
    }
}
