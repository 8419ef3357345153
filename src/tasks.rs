//! Background tasks: each has a name, and an owner that waits for it.
//!
//! Must never: let the process continue unnoticed after a task has panicked.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

/// The tasks of one owner; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    panicked: CancellationToken,
}

impl Tasks {
    /// More tasks, which are waited for by themselves. A panic in either group is reported by both.
    #[must_use]
    pub fn group(&self) -> Self {
        Self { tracker: TaskTracker::new(), panicked: self.panicked.clone() }
    }

    /// Starts a task. Its log lines carry its name, and a panic is logged.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let panicked = self.panicked.clone();
        let work = async move {
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                tracing::error!("the task {name} panicked");
                panicked.cancel();
            }
        };
        // At the level of errors, so that each line that is logged at all carries the name. The field is not called
        // `name`, because a JSON log has the name of the span under that key.
        self.tracker.spawn(work.instrument(tracing::error_span!("task", task = name)));
    }

    /// Returns as soon as a task has panicked.
    pub async fn panicked(&self) {
        self.panicked.cancelled().await;
    }

    /// Whether a task has panicked.
    pub fn has_panicked(&self) -> bool {
        self.panicked.is_cancelled()
    }

    /// Waits until every task has ended, at most this long; returns whether they have.
    pub async fn wait(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}

/// Waits for the next round of periodic work; returns false when it was stopped, before or meanwhile. The interval
/// counts from the end of the last round: `while tick(INTERVAL, &stop).await { … }`.
pub async fn tick(interval: Duration, stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panic_of_a_task_is_reported_and_the_others_continue() {
        let tasks = Tasks::default();
        let group = tasks.group();
        let (send, receive) = tokio::sync::oneshot::channel();
        group.spawn("waiting", async { assert_eq!(receive.await, Ok(7)) });
        assert!(!tasks.has_panicked());
        group.spawn("broken", async { panic!("on purpose") });
        tasks.panicked().await;
        assert!(group.has_panicked() && !group.wait(Duration::ZERO).await);
        send.send(7).unwrap();
        assert!(group.wait(Duration::from_secs(30)).await);
    }

    #[tokio::test]
    async fn periodic_work_is_repeated_until_it_is_stopped() {
        let (stop, mut times) = (CancellationToken::new(), 0);
        while tick(Duration::ZERO, &stop).await {
            times += 1;
            if times == 3 {
                stop.cancel();
            }
        }
        assert_eq!(times, 3);
    }
}
