//! The rebuilds that this process has in progress, and when it tries again after one that failed.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tracing::Instrument as _;

use super::{RebuildError, Rebuilt, Recovery, status::Status};
use crate::{domain::Partition, ledger::PartitionRow, redis::FenceReason};

/// The most rebuilds at the same time: each holds a connection to Postgres.
pub(super) const CONCURRENCY_MAX: usize = 4;
/// The delay after the first attempt at a rebuild; doubled after each attempt that fails.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The longest delay. Each attempt may use an epoch.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);
/// The longest delay while a store is not ready. Such an attempt costs one command and uses no epoch, and the sale
/// must continue soon after the store is back.
const NOT_READY_DELAY_MAX: Duration = Duration::from_secs(4);
/// Between two log lines about the progress of rebuilds.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// The last attempt at a partition that is still fenced.
#[derive(Debug, Clone, Copy)]
struct LastAttempt {
    ended: Instant,
    /// How long the next one waits from then on.
    delay: Duration,
}

/// The delay after an attempt that failed, given the one before it.
fn retry_delay(last: Option<Duration>, not_ready: bool) -> Duration {
    let max = if not_ready { NOT_READY_DELAY_MAX } else { RETRY_DELAY_MAX };
    last.map_or(RETRY_DELAY, |last| last * 2).min(max)
}

/// Rebuilds in progress, and the last attempt at each partition that is fenced.
pub(super) struct Attempts {
    /// Cancelled when this is dropped.
    running: JoinSet<(Partition, Result<Option<Rebuilt>, RebuildError>)>,
    busy: HashSet<Partition>,
    last: HashMap<Partition, LastAttempt>,
    /// Why each partition is fenced, as it was logged.
    logged: HashMap<Partition, FenceReason>,
    progress_logged: Option<Instant>,
    status: Status,
}

impl Attempts {
    pub(super) fn new(status: Status) -> Self {
        let (running, busy, last, logged) = Default::default();
        Self { running, busy, last, logged, progress_logged: None, status }
    }

    /// Starts a rebuild, unless one is in progress, the last one was a moment ago, or too many are in progress.
    pub(super) fn start(&mut self, recovery: &Recovery, row: PartitionRow) {
        let partition = row.partition;
        let last = self.last.get(&partition);
        let waits = last.is_some_and(|last| last.ended.elapsed() < last.delay);
        if waits || self.busy.len() >= CONCURRENCY_MAX || !self.busy.insert(partition) {
            return;
        }
        let recovery = recovery.clone();
        let rebuild = async move { (partition, recovery.rebuild_and_report(row).await) };
        self.running.spawn(rebuild.in_current_span());
    }

    /// Records the attempts that have ended. A failure is logged once, and again when it differs.
    pub(super) fn collect(&mut self) {
        while let Some(ended) = self.running.try_join_next() {
            let (partition, rebuilt) = match ended {
                Ok(ended) => ended,
                Err(error) => match error.try_into_panic() {
                    // The task that owns the attempts reports it as its own.
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_cancelled) => continue,
                },
            };
            self.busy.remove(&partition);
            let last = self.last.get(&partition).map(|last| last.delay);
            let delay = match &rebuilt {
                Ok(_) => RETRY_DELAY,
                Err(RebuildError::NotReady { .. } | RebuildError::LeftBehind { .. }) => {
                    retry_delay(last, true)
                }
                Err(_) => retry_delay(last, false),
            };
            self.last.insert(partition, LastAttempt { ended: Instant::now(), delay });
            let Err(error) = rebuilt else { continue };
            let summary = error.summary();
            let error = anyhow::Error::from(error);
            if self.status.set_failure(partition, &format!("{error:#}")) {
                tracing::error!(
                    %partition, error = error.as_ref() as &dyn std::error::Error, retry_in = ?delay,
                    "{summary}; the next attempt begins in {delay:?} or later"
                );
            }
        }
    }

    /// Removes the attempts at partitions that are not fenced any more.
    pub(super) fn keep_fenced(&mut self, fenced: &[(PartitionRow, FenceReason)]) {
        let fenced: HashSet<Partition> = fenced.iter().map(|(row, _)| row.partition).collect();
        self.last.retain(|partition, _| fenced.contains(partition));
        self.logged.retain(|partition, _| {
            let keep = fenced.contains(partition);
            if !keep {
                self.status.set_open(*partition);
            }
            keep
        });
    }

    /// Whether this reason is to be logged: it is new, or has changed.
    pub(super) fn is_new_reason(&mut self, partition: Partition, reason: FenceReason) -> bool {
        self.logged.insert(partition, reason) != Some(reason)
    }

    /// Whether it is time to log how far the rebuilds are.
    pub(super) fn progress_is_due(&mut self) -> bool {
        if self.busy.is_empty() {
            self.progress_logged = None;
            return false;
        }
        let last = self.progress_logged.get_or_insert_with(Instant::now);
        let due = last.elapsed() >= PROGRESS_INTERVAL;
        if due {
            *last = Instant::now();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_with_each_failure_up_to_its_maximum() {
        let delays = |not_ready| {
            let next = move |last: &Duration| Some(retry_delay(Some(*last), not_ready));
            let all = std::iter::successors(Some(retry_delay(None, not_ready)), next);
            all.take(8).map(|delay| delay.as_secs()).collect::<Vec<_>>()
        };
        assert_eq!(delays(false), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(delays(true), [1, 2, 4, 4, 4, 4, 4, 4], "these use no epoch");
        assert_eq!(retry_delay(Some(RETRY_DELAY_MAX), true), NOT_READY_DELAY_MAX);
    }
}
