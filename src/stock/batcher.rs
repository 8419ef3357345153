//! Collects questions while the batch before them is under way.
//!
//! There is no timer. An idle batcher sends a question at once; a busy one sends all that arrived meanwhile together.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};

use super::StockError;
use crate::tasks::Tasks;

struct Queued<Q, A> {
    question: Q,
    answer: oneshot::Sender<A>,
}

/// The limits of a batcher.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The most questions per batch.
    pub(super) batch: usize,
    /// The most questions that wait; one more is refused.
    pub(super) queue: usize,
}

/// Why a question got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatcherClosed {
    /// The queue is full; the question was not sent.
    #[error("the queue is full")]
    Full,
    /// The batcher has ended; the question was not sent.
    #[error("the batcher has ended")]
    Ended,
    /// The batcher ended while the question may have been under way.
    #[error("the batcher ended without an answer")]
    Abandoned,
}

impl From<BatcherClosed> for StockError {
    fn from(closed: BatcherClosed) -> Self {
        match closed {
            BatcherClosed::Full => Self::Overloaded,
            BatcherClosed::Ended => Self::Stopping,
            BatcherClosed::Abandoned => Self::Abandoned,
        }
    }
}

/// The sender of questions; the task that answers them ends when the last sender is dropped.
pub(super) struct Batcher<Q, A> {
    queue: mpsc::Sender<Queued<Q, A>>,
}

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    /// Starts the task. `answer` gets a batch and returns as many answers in the same order.
    pub(super) fn start<F, Fut>(tasks: &Tasks, limits: Limits, answer: F) -> Self
    where
        F: Fn(Vec<Q>) -> Fut + Send + 'static,
        Fut: Future<Output = Vec<A>> + Send,
    {
        let (queue, mut queued) = mpsc::channel::<Queued<Q, A>>(limits.queue);
        tasks.spawn("batcher", async move {
            let mut waiting = Vec::with_capacity(limits.batch);
            while queued.recv_many(&mut waiting, limits.batch).await > 0 {
                // The question of a caller that was dropped is not sent.
                let (questions, answers): (Vec<_>, Vec<_>) = waiting
                    .drain(..)
                    .filter(|queued| !queued.answer.is_closed())
                    .map(|queued| (queued.question, queued.answer))
                    .unzip();
                if questions.is_empty() {
                    continue;
                }
                for (caller, answer) in answers.into_iter().zip(answer(questions).await) {
                    // A caller that was dropped meanwhile learns the outcome by its request id.
                    drop(caller.send(answer));
                }
            }
        });
        Self { queue }
    }

    /// Queues a question and waits for its answer.
    pub(super) async fn ask(&self, question: Q) -> Result<A, BatcherClosed> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Queued { question, answer }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => BatcherClosed::Full,
            mpsc::error::TrySendError::Closed(_) => BatcherClosed::Ended,
        })?;
        answered.await.map_err(|_| BatcherClosed::Abandoned)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn questions_that_arrive_during_a_batch_are_sent_together() {
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
        let asks = join_all((0..7).map(|n| batcher.ask(n)));
        let open = async {
            while sizes.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
            gate.add_permits(16);
        };
        let (answers, ()) = tokio::join!(asks, open);
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, [0, 2, 4, 6, 8, 10, 12]);
        assert!(sizes.lock().unwrap().iter().all(|size| *size <= 4));
    }

    #[tokio::test]
    async fn full_queue_refuses_at_once() {
        let tasks = Tasks::default();
        let batcher = Batcher::start(&tasks, Limits { batch: 1, queue: 1 }, |_: Vec<()>| {
            std::future::pending::<Vec<()>>()
        });
        let mut asks: Vec<_> = (0..3).map(|_| Box::pin(batcher.ask(()))).collect();
        let mut refused = 0;
        for ask in &mut asks {
            tokio::select! {
                biased;
                answer = ask => { assert_eq!(answer, Err(BatcherClosed::Full)); refused += 1; }
                () = tokio::task::yield_now() => {}
            }
        }
        assert!(refused >= 1, "a queue of one cannot hold three");
    }
}
