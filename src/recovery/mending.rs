//! What the watch over fenced partitions remembers from look to look.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::{CONCURRENCY_MAX, RebuildError, Rebuilt, watched::Watched};
use crate::{domain::Partition, ledger::PartitionRow, redis::FenceReason};

/// After the first attempt at rebuilding a partition; doubled after each one that fails.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// Longest delay: each attempt may spend an epoch.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);
/// Longest delay while a store is not ready: such an attempt costs one command, spends no epoch, and the sale
/// must go on soon after the store is back.
const NOT_READY_DELAY_MAX: Duration = Duration::from_secs(4);
/// Between two lines on how far rebuilds are.
const PROGRESS: Duration = Duration::from_secs(5);

type Ended = (Partition, Result<Option<Rebuilt>, RebuildError>);

/// Attempts at one partition, since it was last open.
#[derive(Debug, Clone, Copy)]
struct Attempts {
    /// When the last one ended.
    ended: Instant,
    /// How long the next one waits from then on.
    delay: Duration,
}

/// The delay after an attempt that failed, given the one before it.
fn retry_delay(last: Option<Duration>, not_ready: bool) -> Duration {
    let most = if not_ready { NOT_READY_DELAY_MAX } else { RETRY_DELAY_MAX };
    last.map_or(RETRY_DELAY, |last| last * 2).min(most)
}

/// Rebuilds under way, and what was said of them.
pub(super) struct Mending {
    /// Broken off when this is dropped.
    pub(super) at_work: JoinSet<Ended>,
    pub(super) busy: HashSet<Partition>,
    attempts: HashMap<Partition, Attempts>,
    /// Why each is fenced, as the log has it.
    pub(super) told: HashMap<Partition, FenceReason>,
    /// What went wrong last, as the log and readiness have it.
    watched: Watched,
    told_progress: Option<Instant>,
}

impl Mending {
    pub(super) fn new(watched: Watched) -> Self {
        let (at_work, busy, attempts, told) = Default::default();
        Self { at_work, busy, attempts, told, watched, told_progress: None }
    }

    /// Whether another attempt may begin now.
    pub(super) fn is_due(&self, partition: Partition) -> bool {
        let last = self.attempts.get(&partition);
        let rested = last.is_none_or(|last| last.ended.elapsed() >= last.delay);
        rested && !self.busy.contains(&partition) && self.busy.len() < CONCURRENCY_MAX
    }

    /// An attempt ended; a failure is told once, and again when it is another one.
    pub(super) fn ended(&mut self, ended: Result<Ended, JoinError>) {
        let (partition, rebuilt) = match ended {
            Ok(ended) => ended,
            Err(error) => match error.try_into_panic() {
                // As if it had happened in the watch itself.
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_broken_off) => return,
            },
        };
        self.busy.remove(&partition);
        let last = self.attempts.get(&partition).map(|last| last.delay);
        let delay = match &rebuilt {
            Ok(_) => RETRY_DELAY,
            Err(error) => retry_delay(last, error.is_not_ready()),
        };
        self.attempts.insert(partition, Attempts { ended: Instant::now(), delay });
        let Err(error) = rebuilt else { return };
        if self.watched.see_failure(partition, error_chain(&error)) {
            tracing::error!(
                %partition, error = &error as &dyn std::error::Error, retry_in = ?delay,
                "the partition is not rebuilt"
            );
        }
    }

    /// What is no longer fenced begins anew.
    pub(super) fn forget_others(&mut self, fenced: &[(PartitionRow, FenceReason)]) {
        let fenced: HashSet<Partition> = fenced.iter().map(|(row, _)| row.partition).collect();
        self.attempts.retain(|partition, _| fenced.contains(partition));
        self.told.retain(|partition, _| {
            let keep = fenced.contains(partition);
            if !keep {
                self.watched.see_open(*partition);
            }
            keep
        });
    }

    /// Whether it is time for a word on how far rebuilds are.
    pub(super) fn tell_progress(&mut self) -> bool {
        if self.busy.is_empty() {
            self.told_progress = None;
            return false;
        }
        let since = self.told_progress.get_or_insert_with(Instant::now);
        let due = since.elapsed() >= PROGRESS;
        if due {
            *since = Instant::now();
        }
        due
    }
}

/// An error with its causes, in one line.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |chain, cause| format!("{chain}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_that_fail_come_ever_later_up_to_a_minute() {
        let delays = |not_ready| {
            let next = move |last: &Duration| Some(retry_delay(Some(*last), not_ready));
            let all = std::iter::successors(Some(retry_delay(None, not_ready)), next);
            all.take(8).map(|delay| delay.as_secs()).collect::<Vec<_>>()
        };
        assert_eq!(delays(false), [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(delays(true), [1, 2, 4, 4, 4, 4, 4, 4], "no epoch is spent on these");
        assert_eq!(retry_delay(Some(RETRY_DELAY_MAX), true), NOT_READY_DELAY_MAX);
    }
}
