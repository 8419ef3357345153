//! Releases the dead entries of one partition automatically.

use std::{collections::HashSet, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{WorkerContext, pause::Pause};
use crate::{
    dead_letters::{DeadLetterError, DeadLetters, EntryOutcome},
    domain::Partition,
    ledger::ActionBy,
    stream::DeadEntry,
    tasks::tick,
    telemetry::Metrics,
};

/// How often the dead stream is read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How many dead entries one script reads.
const PAGE: usize = 100;

/// Releases the dead entries of one partition. Releasers may race: each unit is given back once.
pub struct Releaser {
    dead_letters: DeadLetters,
    metrics: Metrics,
    partition: Partition,
    /// The ids of entries that cannot be released, so that each is logged once.
    unreleasable: HashSet<String>,
}

impl Releaser {
    /// The releaser of this partition.
    pub fn new(context: WorkerContext, partition: Partition) -> Self {
        let WorkerContext { streams, stock, ledger, metrics, .. } = context;
        let dead_letters = DeadLetters::new(streams, stock, ledger);
        Self { dead_letters, metrics, partition, unreleasable: HashSet::new() }
    }

    /// Releases entries until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut healthy = true;
        while !stop.is_cancelled() {
            match self.release_all(&stop).await {
                Ok(_) => healthy = true,
                Err(pause) if healthy => {
                    healthy = false;
                    tracing::warn!(partition = %self.partition, error = &*pause.source as &dyn std::error::Error, "release of dead entries paused: {}", pause.reason);
                }
                Err(_) => {}
            }
            tick(POLL_INTERVAL, &stop).await;
        }
    }

    /// Releases the entries that are there; returns how many units were given back. An entry that fails does not
    /// stop the others; the first failure is returned.
    pub async fn run_once(&mut self) -> Result<usize, Pause> {
        self.release_all(&CancellationToken::new()).await
    }

    /// As `run_once`, until stopped: there may be thousands of entries.
    async fn release_all(&mut self, stop: &CancellationToken) -> Result<usize, Pause> {
        let (mut released, mut failed) = (0, None);
        let dead_letters = self.dead_letters.clone();
        let mut cursor = dead_letters.cursor_of(self.partition, PAGE);
        loop {
            let page = match cursor.next_page().await {
                Ok(Some(page)) => page,
                Ok(None) => break,
                // The rebuild of the partition decides their orders and removes them.
                Err(error) if error.is_fenced() => break,
                Err(error) => return Err(error.into()),
            };
            for dead in &page.entries {
                if stop.is_cancelled() {
                    return Ok(released);
                }
                match self.release(dead).await {
                    Ok(EntryOutcome::Released) => released += 1,
                    Ok(_) => {}
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        failed.map_or(Ok(released), |error| Err(error.into()))
    }

    async fn release(&mut self, dead: &DeadEntry) -> Result<EntryOutcome, DeadLetterError> {
        let by = ActionBy { actor: "yoink".to_owned(), reason: dead.reason().to_owned() };
        let released = self.dead_letters.release(dead, &by).await;
        match &released {
            Ok(EntryOutcome::Released) => {
                tracing::warn!(partition = %self.partition, reservation.id = dead.dead_key(), "a dead letter was voided and its unit given back");
            }
            Ok(EntryOutcome::Unrecognized) if self.is_first(dead) => {
                tracing::error!(partition = %self.partition, dead.id = dead.dead_id(), "this program did not write a dead entry: it stays in the dead stream");
            }
            Ok(EntryOutcome::NoStock) if self.is_first(dead) => {
                tracing::error!(partition = %self.partition, dead.id = dead.dead_id(), "the unit of a dead entry cannot be given back, because Redis has no stock of its product: run `yoink rebuild --partition {}`", self.partition);
            }
            Err(DeadLetterError::Ledger(error)) => {
                if let Some(sqlstate) = error.unlisted() {
                    self.metrics.record_unlisted(sqlstate);
                }
            }
            Ok(_) | Err(_) => {}
        }
        released
    }

    fn is_first(&mut self, dead: &DeadEntry) -> bool {
        self.unreleasable.insert(dead.dead_id().to_owned())
    }
}
