//! Collects requests while the batch before them is under way.
//!
//! There is no timer. An idle batcher sends a request at once; a busy one sends all that arrived meanwhile together.

use std::future::Future;

use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use super::StockError;
use crate::tasks::Tasks;

/// The limits of a batcher.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The most requests per batch.
    pub(super) batch: usize,
    /// The most requests that wait; one more is refused.
    pub(super) queue: usize,
}

/// The sender of requests; the task that answers them ends when the last sender is dropped.
pub(super) struct Batcher<Q, A> {
    queue: mpsc::Sender<(Q, oneshot::Sender<A>)>,
}

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    /// Starts the task. `answer` gets a batch and returns as many replies in the same order.
    pub(super) fn start<F, Fut>(tasks: &Tasks, limits: Limits, answer: F) -> Self
    where
        F: Fn(Vec<Q>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<A>> + Send,
    {
        let (queue, mut queued) = mpsc::channel::<(Q, oneshot::Sender<A>)>(limits.queue);
        tasks.spawn("batcher", async move {
            let mut waiting = Vec::with_capacity(limits.batch);
            while queued.recv_many(&mut waiting, limits.batch).await > 0 {
                // The request of a caller that was dropped is not sent.
                let (requests, callers): (Vec<_>, Vec<_>) =
                    waiting.drain(..).filter(|(_, caller)| !caller.is_closed()).unzip();
                if requests.is_empty() {
                    continue;
                }
                for (caller, reply) in callers.into_iter().zip(answer(requests).await) {
                    // A caller that was dropped meanwhile learns the outcome by its request id.
                    drop(caller.send(reply));
                }
            }
        });
        Self { queue }
    }

    /// Queues a request and waits for its reply.
    pub(super) async fn call(&self, request: Q) -> Result<A, StockError> {
        let (caller, reply) = oneshot::channel();
        self.queue.try_send((request, caller)).map_err(|refused| match refused {
            TrySendError::Full(_) => StockError::Overloaded,
            TrySendError::Closed(_) => StockError::ShuttingDown,
        })?;
        reply.await.map_err(|_| StockError::Abandoned)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn requests_that_arrive_during_a_batch_are_sent_together() {
        let tasks = Tasks::default();
        let (gate, sizes) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (gate_in, sizes_in) = (gate.clone(), sizes.clone());
        let batcher =
            Batcher::start(&tasks, Limits { batch: 4, queue: 16 }, move |batch: Vec<u32>| {
                sizes_in.lock().unwrap().push(batch.len());
                let gate = gate_in.clone();
                async move {
                    gate.acquire().await.unwrap().forget();
                    batch.iter().map(|n| n * 2).collect()
                }
            });
        let calls = join_all((0..7).map(|n| batcher.call(n)));
        let open = async {
            while sizes.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            gate.add_permits(16);
        };
        let (replies, ()) = tokio::join!(calls, open);
        let replies: Vec<_> = replies.into_iter().map(Result::unwrap).collect();
        assert_eq!(replies, [0, 2, 4, 6, 8, 10, 12]);
        assert!(sizes.lock().unwrap().iter().all(|size| *size <= 4));
    }

    #[tokio::test]
    async fn full_queue_refuses_at_once() {
        let tasks = Tasks::default();
        let batcher = Batcher::start(&tasks, Limits { batch: 1, queue: 1 }, |_: Vec<()>| {
            std::future::pending::<Vec<()>>()
        });
        let mut calls: Vec<_> = (0..3).map(|_| Box::pin(batcher.call(()))).collect();
        let mut refused = 0;
        for call in &mut calls {
            tokio::select! {
                biased;
                reply = call => {
                    assert!(matches!(reply, Err(StockError::Overloaded)), "{reply:?}");
                    refused += 1;
                }
                () = tokio::task::yield_now() => {}
            }
        }
        assert!(refused >= 1, "a queue of one cannot hold three");
    }
}
