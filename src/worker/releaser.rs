//! Voids and releases dead entries by itself.

use std::{collections::HashSet, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    WorkerContext,
    pause::{Pause, PauseReason},
    sleep,
};
use crate::{
    dead_letters::{DeadLetterError, Settled},
    domain::Partition,
    ledger::DeadAction,
    redis::FenceError,
    stock::StockError,
};

/// How often a partition's dead stream is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Most entries a step.
const MAX_BATCH: usize = 100;

/// Replays the dead entries of one partition. Several may race: each unit goes back once.
pub struct Releaser {
    context: WorkerContext,
    partition: Partition,
    /// Entries that are none of ours, by their ids in `dead`: each is told of once.
    unrecognized: HashSet<String>,
}

impl Releaser {
    /// Of this partition.
    pub fn new(context: WorkerContext, partition: Partition) -> Self {
        Self { context, partition, unrecognized: HashSet::new() }
    }

    /// Replays until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut healthy = true;
        while !stop.is_cancelled() {
            match self.run_once().await {
                Ok(_) => healthy = true,
                Err(pause) if healthy => {
                    healthy = false;
                    tracing::warn!(partition = %self.partition, error = &*pause.source as &dyn std::error::Error, "dead entries wait: {}", pause.reason);
                }
                Err(_) => {}
            }
            sleep(POLL_INTERVAL, &stop).await;
        }
    }

    /// Replays what is there, each entry for itself; returns how many units went back.
    ///
    /// # Errors
    ///
    /// A pause: nothing was lost, the step is to be repeated.
    pub async fn run_once(&mut self) -> Result<usize, Pause> {
        let (mut after, mut released, mut failed) = (None, 0, None);
        loop {
            let range = (after.as_deref(), None);
            let dead = match self.context.streams.dead(self.partition, range, MAX_BATCH).await {
                // Its rebuild settles them.
                Err(FenceError::Fenced(_)) => break,
                read => read?.entries,
            };
            let Some(last) = dead.last() else { break };
            after = Some(last.dead_id().to_owned());
            for entry in &dead {
                let action =
                    DeadAction { actor: "yoink".into(), reason: entry.reason().to_owned() };
                match self.context.dead_letters.replay(entry, &action).await {
                    Ok(Settled::Released) => {
                        released += 1;
                        tracing::warn!(partition = %self.partition, reservation.id = entry.named(), "a dead order was voided and its unit released");
                    }
                    Ok(Settled::Unrecognized) => {
                        if !self.unrecognized.insert(entry.dead_id().to_owned()) {
                            continue;
                        }
                        tracing::error!(partition = %self.partition, dead.id = entry.dead_id(), "a dead entry is none of ours; it stays");
                    }
                    Ok(Settled::Stored | Settled::Before | Settled::Refused) => {}
                    Err(error) => {
                        if let DeadLetterError::Ledger(error) = &error
                            && let Some(sqlstate) = error.unlisted()
                        {
                            self.context.metrics.unlisted(sqlstate);
                        }
                        failed = failed.or(Some(error));
                    }
                }
            }
        }
        failed.map_or(Ok(released), |error| Err(error.into()))
    }
}

impl From<DeadLetterError> for Pause {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Ledger(error) => error.into(),
            DeadLetterError::Fence(error) | DeadLetterError::Stock(StockError::Fence(error)) => {
                error.into()
            }
            DeadLetterError::Stock(error) => {
                Self { reason: PauseReason::RedisUnavailable, source: error.into() }
            }
        }
    }
}
