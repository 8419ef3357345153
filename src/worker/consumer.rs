//! Carries one partition's accepted orders to the ledger.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{
    WorkerContext,
    pause::{Pause, PauseReason},
    sleep,
    store::{Attempt, Failure, Unlisted, store},
    suspects::Suspects,
};
use crate::{
    crash_point,
    domain::{AfterFailure, Epoch, Partition, after_failure},
    fence::Connection,
    stock::{ReleaseFrom, Released},
    stream::{Delivery, Rejection},
    telemetry::{self, Metrics},
};

/// Most entries a batch.
const MAX_BATCH: usize = 500;
/// How long a read waits for something new: also how late a stop may be noticed.
const BLOCK: Duration = Duration::from_millis(500);
/// Between attempts while paused.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The epoch that an order was accepted in; none, if no program of ours wrote the entry.
fn epoch_of(delivery: &Delivery) -> Option<Epoch> {
    delivery.entry.id.split_once('-').and_then(|(epoch, _)| epoch.parse().ok()).map(Epoch)
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing was there to do.
    Idle,
    /// So many entries were dealt with.
    Worked(usize),
}

/// The consumer of one partition.
pub struct Consumer {
    context: WorkerContext,
    partition: Partition,
    reader: Connection,
    /// Read and not dealt with yet: kept through every pause.
    held: Vec<Delivery>,
    suspects: Suspects,
    next_scan: Instant,
    /// Whether a read failed: what Redis delivered in its answer is pending and not held.
    read_failed: bool,
    /// The last entry looked at for one in nobody's hands; empty at the start of the stream.
    looked_at: String,
    /// Whether the partition was seen to be open since the last trouble.
    open: bool,
    /// How long a read waits; a test that steps needs no wait.
    block: Duration,
}

impl Consumer {
    pub(super) fn new(context: WorkerContext, partition: Partition, reader: Connection) -> Self {
        Self {
            suspects: Suspects::new(context.settings.retry_delay),
            context,
            partition,
            reader,
            held: Vec::new(),
            next_scan: Instant::now(),
            read_failed: false,
            looked_at: String::new(),
            open: false,
            block: BLOCK,
        }
    }

    /// Works until stopped; finishes the batch it has begun.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause_ms = PAUSE_MIN;
        while !stop.is_cancelled() {
            match self.run_once().await {
                Ok(_) => {
                    pause_ms = PAUSE_MIN;
                    if self.context.pauses.set(self.partition, None).is_some() {
                        tracing::info!(partition = %self.partition, "consumption goes on");
                    }
                }
                Err(pause) => {
                    self.announce(&pause);
                    sleep(pause_ms, &stop).await;
                    pause_ms = (pause_ms * 2).min(PAUSE_MAX);
                }
            }
        }
        // What is still pending keeps the consumer: somebody takes it over by and by.
        if let Err(error) =
            self.context.streams.retire(self.partition, &self.context.consumer).await
        {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the consumer was not retired"
            );
        }
    }

    fn announce(&self, pause: &Pause) {
        if self.context.pauses.set(self.partition, Some(pause.reason)) == Some(pause.reason) {
            return;
        }
        let (partition, error) = (self.partition, &*pause.source as &dyn std::error::Error);
        let held = self.held.len();
        match pause.reason {
            PauseReason::LedgerUnavailable
            | PauseReason::RedisUnavailable
            | PauseReason::Fenced => {
                tracing::warn!(%partition, held, error, "consumption pauses: {}", pause.reason);
            }
            PauseReason::LedgerMisconfigured
            | PauseReason::LedgerUnlisted(_)
            | PauseReason::Malformed
            | PauseReason::Inconsistent
            | PauseReason::NewerFormat => {
                tracing::error!(%partition, held, error, "consumption stops: {}", pause.reason);
            }
        }
    }

    /// One step: what is held, else what is due again, else what somebody left behind, else what is new.
    ///
    /// # Errors
    ///
    /// A pause: nothing was lost, the step is to be repeated.
    pub async fn run_once(&mut self) -> Result<Step, Pause> {
        let step = self.step().await;
        self.open &= step.is_ok();
        step
    }

    async fn step(&mut self) -> Result<Step, Pause> {
        if self.held.is_empty() {
            self.held = self.suspects.take_due(MAX_BATCH);
        }
        // A read is not fenced and takes entries away from whoever may have them: after every trouble,
        // and at the start, the partition must first be seen to be open to us.
        if self.held.is_empty() && !self.open {
            self.context.stock.probe(self.partition).await?;
            self.open = true;
        }
        // With as many kept as may be, nothing more is taken, new or left behind.
        let takes = !self.suspects.are_too_many();
        if self.held.is_empty() && takes && self.next_scan <= Instant::now() {
            self.scan().await?;
        }
        if self.held.is_empty() {
            self.read_new().await?;
        }
        if self.held.is_empty() {
            return Ok(Step::Idle);
        }
        crash_point::reach("after_read");
        let epoch = self.context.stock.partitions().epoch(self.partition)?;
        self.drop_earlier_epochs(epoch);
        if let Some(later) = self.held.iter().find(|delivery| epoch_of(delivery) > Some(epoch)) {
            let entry = later.entry.id.clone();
            return Err(Pause { reason: PauseReason::Fenced, source: entry.into() });
        }
        let batch = std::mem::take(&mut self.held);
        let size = batch.len();
        let attempt =
            store((&self.context.ledger, self.metrics()), self.partition, epoch, batch).await;
        self.conclude(attempt).await?;
        Ok(Step::Worked(size))
    }

    /// Reads without waiting: for tests that step.
    pub fn without_waiting(mut self) -> Self {
        self.block = Duration::ZERO;
        self
    }

    fn metrics(&self) -> &Metrics {
        self.context.stock.partitions().metrics()
    }

    fn scan_interval(&self) -> Duration {
        (self.context.settings.takeover_idle / 4).min(Duration::from_secs(5))
    }

    /// The reaper: takes over what nobody touched for `takeover_idle`, and never buries. Nothing is held
    /// now, so that entries of our own that an error let slip come back the same way.
    async fn scan(&mut self) -> Result<(), Pause> {
        let context = &self.context;
        let idle_ms = u64::try_from(context.settings.takeover_idle.as_millis()).unwrap_or(u64::MAX);
        let taken = if self.read_failed {
            let count = MAX_BATCH + self.suspects.entries().len();
            context.streams.take_back(self.partition, &context.consumer, count).await
        } else {
            context.streams.take_over(self.partition, &context.consumer, (idle_ms, MAX_BATCH)).await
        };
        let mut taken = self.restoring_group(taken).await?;
        if std::mem::take(&mut self.read_failed) {
            self.held = self.without_suspects(taken);
            return Ok(());
        }
        if taken.len() < MAX_BATCH {
            taken.extend(self.adopt(MAX_BATCH - taken.len()).await?);
            self.next_scan = Instant::now() + self.scan_interval();
        }
        self.held = self.without_suspects(taken);
        let long = usize::try_from(idle_ms.saturating_mul(10)).unwrap_or(usize::MAX);
        for consumer in self.context.streams.idle_consumers(self.partition, long).await? {
            if consumer != self.context.consumer {
                self.context.streams.retire(self.partition, &consumer).await?;
            }
        }
        Ok(())
    }

    fn without_suspects(&self, taken: Vec<Delivery>) -> Vec<Delivery> {
        let suspects = self.suspects.entries();
        let held = taken.into_iter().filter(|taken| !suspects.contains(taken.entry.id.as_str()));
        held.take(MAX_BATCH).collect()
    }

    /// Takes over what was delivered and is in nobody's hands, a page of the stream each time.
    async fn adopt(&mut self, most: usize) -> Result<Vec<Delivery>, Pause> {
        let (streams, consumer) = (&self.context.streams, &self.context.consumer);
        let adopted = streams.adopt(self.partition, consumer, &mut self.looked_at, most).await?;
        if let Some(first) = adopted.first() {
            tracing::error!(
                partition = %self.partition, entries = adopted.len(), first = first.entry.id,
                "entries were in nobody's hands, as if their consumer had been deleted: taken over"
            );
        }
        Ok(adopted)
    }

    /// A rebuild has stored, voided or reported lost whatever was accepted before it (R8): nothing of an
    /// earlier epoch may be stored under this one.
    fn drop_earlier_epochs(&mut self, epoch: Epoch) {
        let stands = |delivery: &Delivery| epoch_of(delivery).is_none_or(|found| found >= epoch);
        self.held.retain(stands);
        self.suspects.retain(stands);
    }

    async fn read_new(&mut self) -> Result<(), Pause> {
        let until_due =
            self.suspects.next_due().map(|due| due.saturating_duration_since(Instant::now()));
        let block = until_due.map_or(self.block, |until| until.min(self.block));
        if self.suspects.are_too_many() {
            tokio::time::sleep(block).await;
            return Ok(());
        }
        let block_ms = usize::try_from(block.as_millis()).unwrap_or(0);
        let (streams, consumer) = (&self.context.streams, &self.context.consumer);
        let read = streams
            .read_new(&mut self.reader, self.partition, consumer, (MAX_BATCH, block_ms))
            .await;
        if read.is_err() {
            (self.read_failed, self.next_scan) = (true, Instant::now());
        }
        self.held = self.restoring_group(read).await?;
        Ok(())
    }

    /// A group that somebody deleted is created anew at 0: whatever is in the stream is delivered again,
    /// and what the ledger holds already is recognised there.
    async fn restoring_group(
        &self,
        result: Result<Vec<Delivery>, redis::RedisError>,
    ) -> Result<Vec<Delivery>, Pause> {
        if let Err(error) = &result
            && error.code() == Some("NOGROUP")
            && self.context.streams.restore_group(self.partition).await.is_ok()
        {
            tracing::error!(partition = %self.partition, "the consumer group was gone and was created anew");
            return Ok(Vec::new());
        }
        Ok(result?)
    }

    /// Puts every entry of an attempt where it belongs. Whatever a failing Redis keeps from being done is
    /// held, and done again from the start: each part may be repeated.
    async fn conclude(&mut self, attempt: Attempt) -> Result<(), Pause> {
        crash_point::reach("after_commit");
        for mismatch in &attempt.mismatched {
            tracing::error!(reservation.id = %mismatch.id, column = mismatch.column, "the ledger holds something else under this id; the entry stays in orders");
        }
        self.held = attempt.left;
        let mut pause = attempt.pause;
        let ids: Vec<&str> =
            attempt.stored.iter().map(|delivery| delivery.entry.id.as_str()).collect();
        if !ids.is_empty()
            && let Err(error) = self.context.streams.settle(self.partition, &ids).await
        {
            pause = pause.or(Some(error.into()));
            self.held.extend(attempt.stored);
        }
        for delivery in attempt.voided {
            if let Err(error) = self.release(&delivery).await {
                pause = pause.or(Some(error));
                self.held.push(delivery);
            }
        }
        for failure in attempt.failed {
            pause = pause.or(self.count(failure).await.err());
        }
        let Some(pause) = self.keep(attempt.unlisted, pause) else { return Ok(()) };
        if pause.reason == PauseReason::Inconsistent {
            self.close().await;
        }
        Err(pause)
    }

    /// R6: the entry of a voided reservation is still in `orders`.
    async fn release(&self, delivery: &Delivery) -> Result<(), Pause> {
        let (context, id) = (&self.context, &delivery.entry.id);
        match context.stock.release(self.partition, ReleaseFrom::Orders, id).await? {
            Released::Now | Released::Before => {
                tracing::debug!(partition = %self.partition, entry = id, "voided order released");
            }
            Released::Never => {
                tracing::error!(partition = %self.partition, entry = id, "a voided entry names no product of ours");
            }
        }
        Ok(())
    }

    /// Counts an order's own failure; past the maximum it is buried.
    async fn count(&mut self, failure: Failure) -> Result<(), Pause> {
        let Failure { mut delivery, order, reason, sqlstate } = failure;
        let settings = self.context.settings;
        match after_failure(delivery.deliveries, settings.max_deliveries) {
            AfterFailure::Retry { deliveries } => {
                delivery.deliveries = deliveries;
                let id = delivery.entry.id.clone();
                self.suspects.add(delivery);
                let (streams, consumer) = (&self.context.streams, &self.context.consumer);
                Ok(streams.set_deliveries(self.partition, consumer, (&id, deliveries)).await?)
            }
            AfterFailure::MoveToDead => {
                let reservation_id = order.as_ref().map(|order| order.id);
                let traceparent = order.and_then(|order| order.traceparent);
                let trace_id = traceparent.as_deref().and_then(telemetry::trace_id);
                let entry_id = delivery.entry.id.clone();
                let rejection = Rejection { entry_id, reservation_id, reason, sqlstate };
                match self.context.streams.move_to_dead(self.partition, &rejection).await {
                    Ok(_) => {
                        tracing::error!(
                            partition = %self.partition,
                            reservation.id = rejection.reservation_id.map(tracing::field::display),
                            trace_id,
                            reason = rejection.reason, "an order cannot be stored and was buried"
                        );
                        self.metrics().dead_lettered();
                        crash_point::reach("after_move_to_dead");
                        Ok(())
                    }
                    // Not held: its neighbours must not wait for it, nor the memory that they free.
                    Err(error) => {
                        self.suspects.add(delivery);
                        Err(error.into())
                    }
                }
            }
        }
    }

    /// Keeps what Postgres refused with a SQLSTATE that is in no list. Returns the reason to pause that is
    /// left: none, if everything that could not be stored is known to be refused and waits by itself.
    fn keep(&mut self, unlisted: Vec<Unlisted>, pause: Option<Pause>) -> Option<Pause> {
        let refused = matches!(&pause, Some(pause) if pause.is_unlisted());
        if refused {
            self.held = self.suspects.keep_again(std::mem::take(&mut self.held));
        }
        for Unlisted { delivery, sqlstate, reason } in unlisted {
            let entry = delivery.entry.id.clone();
            if self.suspects.keep(delivery, sqlstate) {
                tracing::error!(
                    partition = %self.partition, entry, %sqlstate, reason,
                    "Postgres refused an order with a SQLSTATE that is in no list; it is kept and tried again"
                );
            }
        }
        self.context.pauses.keep(self.partition, self.suspects.kept(&self.held));
        pause.filter(|_| !(refused && self.held.is_empty()))
    }

    /// Nothing more is sold from a partition whose stores disagree.
    async fn close(&self) {
        if let Err(error) = self.context.stock.close(self.partition).await {
            tracing::warn!(partition = %self.partition, error = &error as &dyn std::error::Error, "the partition was not closed by this process");
        }
    }
}
