//! Voids and releases dead entries by itself.

use std::{collections::HashSet, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    Workshop,
    pause::{Pause, PauseReason},
    sleep,
};
use crate::{
    desk::{DeskError, Settled},
    domain::Partition,
    fence::FenceError,
    ledger::DeadAction,
    stock::StockError,
};

/// How often a partition's dead stream is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// Most entries a step.
const MAX_BATCH: usize = 100;

/// Replays the dead entries of one partition. Several may race: each unit goes back once.
pub struct Replayer {
    shop: Workshop,
    partition: Partition,
    /// Entries that are none of ours, by their ids in `dead`: each is told of once.
    strangers: HashSet<String>,
}

impl Replayer {
    /// Of this partition.
    pub fn new(shop: Workshop, partition: Partition) -> Self {
        Self { shop, partition, strangers: HashSet::new() }
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
            sleep(LOOK, &stop).await;
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
            let dead = match self.shop.streams.dead(self.partition, range, MAX_BATCH).await {
                // Its rebuild settles them.
                Err(FenceError::Fenced(_)) => break,
                read => read?.entries,
            };
            let Some(last) = dead.last() else { break };
            after = Some(last.dead_id().to_owned());
            for entry in &dead {
                let action =
                    DeadAction { actor: "yoink".into(), reason: entry.reason().to_owned() };
                match self.shop.desk.replay(entry, &action).await {
                    Ok(Settled::Released) => {
                        released += 1;
                        tracing::warn!(partition = %self.partition, reservation.id = entry.named(), "a dead order was voided and its unit released");
                    }
                    Ok(Settled::Stranger) => {
                        if !self.strangers.insert(entry.dead_id().to_owned()) {
                            continue;
                        }
                        tracing::error!(partition = %self.partition, dead.id = entry.dead_id(), "a dead entry is none of ours; it stays");
                    }
                    Ok(Settled::Stored | Settled::Before | Settled::Refused) => {}
                    Err(error) => {
                        if let DeskError::Ledger(error) = &error
                            && let Some(sqlstate) = error.unlisted()
                        {
                            self.shop.stock.partitions().metrics().unlisted(sqlstate);
                        }
                        failed = failed.or(Some(error));
                    }
                }
            }
        }
        failed.map_or(Ok(released), |error| Err(error.into()))
    }
}

impl From<DeskError> for Pause {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Ledger(error) => error.into(),
            DeskError::Fence(error) | DeskError::Stock(StockError::Fence(error)) => error.into(),
            DeskError::Stock(error) => {
                Self { reason: PauseReason::RedisUnavailable, source: error.into() }
            }
        }
    }
}
