//! Calls that wait in a queue for the same kind of answer, grouped by what each waits for.

use std::collections::BTreeMap;

use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::AckError;

/// The most calls that wait for the same kind of answer: far more than may be in progress at once.
const WAITING_MAX: usize = 65_536;
/// The most calls that join at a time.
const BATCH_MAX: usize = 4096;

type Waiting<K, A> = (K, oneshot::Sender<A>);

/// Where calls join; clones share the queue.
#[derive(Clone)]
pub(super) struct Queue<K, A> {
    sender: mpsc::Sender<Waiting<K, A>>,
}

impl<K, A> Queue<K, A> {
    pub(super) async fn join(&self, key: K) -> Result<A, AckError> {
        let (answer, answered) = oneshot::channel();
        self.sender.try_send((key, answer)).map_err(|refused| match refused {
            TrySendError::Full(_) => AckError::Overloaded,
            TrySendError::Closed(_) => AckError::ShuttingDown,
        })?;
        answered.await.map_err(|_| AckError::ShuttingDown)
    }
}

/// The calls that wait.
pub(super) struct Waiters<K, A> {
    queue: mpsc::Receiver<Waiting<K, A>>,
    by_key: BTreeMap<K, Vec<oneshot::Sender<A>>>,
}

pub(super) fn queue<K: Ord, A>() -> (Queue<K, A>, Waiters<K, A>) {
    let (sender, queue) = mpsc::channel(WAITING_MAX);
    (Queue { sender }, Waiters { queue, by_key: BTreeMap::new() })
}

impl<K: Ord + Copy, A: Clone> Waiters<K, A> {
    /// Adds the calls that joined meanwhile and drops those that no longer wait; if no call waits, it waits for one. Returns
    /// whether any is left; false when the last handle on the queue was dropped.
    pub(super) async fn update(&mut self) -> bool {
        let mut joined = Vec::new();
        loop {
            if self.by_key.is_empty() && self.queue.recv_many(&mut joined, BATCH_MAX).await == 0 {
                return false;
            }
            for (key, answer) in joined.drain(..) {
                self.by_key.entry(key).or_default().push(answer);
            }
            self.add_joined();
            self.by_key.retain(|_, answers| {
                answers.retain(|answer| !answer.is_closed());
                !answers.is_empty()
            });
            if !self.by_key.is_empty() {
                return true;
            }
        }
    }

    /// Adds the calls that joined meanwhile.
    pub(super) fn add_joined(&mut self) {
        while let Ok((key, answer)) = self.queue.try_recv() {
            self.by_key.entry(key).or_default().push(answer);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub(super) fn keys(&self) -> Vec<K> {
        self.by_key.keys().copied().collect()
    }

    /// Answers the calls that wait for this; returns whether there were any.
    pub(super) fn answer(&mut self, key: K, answer: &A) -> bool {
        let Some(waiting) = self.by_key.remove(&key) else { return false };
        for waiting in waiting {
            // A caller that was dropped meanwhile repeats its request with the same request id.
            drop(waiting.send(answer.clone()));
        }
        true
    }
}
