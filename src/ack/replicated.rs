//! Waits for replicas of Redis: one mark behind everything that was accepted, one WAIT for all who wait.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{AckError, MAX_WAITING, Waiting, join};
use crate::{
    domain::{Epoch, Partition, ReservationId},
    redis::{FenceError, Partitions, Script},
    tasks::Tasks,
};

/// How long one WAIT waits: then it looks who is still there.
const WAIT_MS: u64 = 500;
/// After a WAIT that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Most who join a wait at a time.
const BATCH: usize = 4096;

/// Whether replicas have it; not so when its partition is of another life by now.
type Answer = bool;
type Waiters = BTreeMap<(Partition, Epoch), Vec<oneshot::Sender<Answer>>>;

/// The waiting end.
#[derive(Clone)]
pub(super) struct Replicated {
    partitions: Partitions,
    queue: mpsc::Sender<Waiting<Answer>>,
}

impl Replicated {
    /// `partitions` are behind a connection that may be blocked.
    pub(super) fn start(partitions: Partitions, replicas: u32, tasks: &Tasks) -> Self {
        let (queue, asked) = mpsc::channel(MAX_WAITING);
        tasks.spawn("ack replica", run(partitions.clone(), replicas, asked));
        Self { partitions, queue }
    }

    pub(super) async fn wait(&self, id: ReservationId) -> Result<Answer, AckError> {
        let partition = self.partitions.count().get_partition(id.partition());
        let believed = partition.and_then(|partition| self.partitions.epoch(partition).ok());
        if believed != Some(id.epoch()) {
            return Ok(false);
        }
        join(&self.queue, id).await
    }
}

async fn run(partitions: Partitions, replicas: u32, mut asked: mpsc::Receiver<Waiting<Answer>>) {
    let touch = Script::new("touch", include_str!("../../lua/touch.lua"));
    let (mut waiters, mut arrived) = (Waiters::new(), Vec::new());
    loop {
        if waiters.is_empty() && asked.recv_many(&mut arrived, BATCH).await == 0 {
            return;
        }
        while let Ok(waiting) = asked.try_recv() {
            arrived.push(waiting);
        }
        for Waiting { id, answer } in arrived.drain(..) {
            // Looked up before it was queued.
            if let Some(partition) = partitions.count().get_partition(id.partition()) {
                waiters.entry((partition, id.epoch())).or_default().push(answer);
            }
        }
        waiters.retain(|_, answers| {
            answers.retain(|answer| !answer.is_closed());
            !answers.is_empty()
        });
        // What may still be on its way is refused by the fence, and so is whatever is of another life.
        let calls: Vec<(Epoch, String)> = waiters
            .keys()
            .map(|(partition, epoch)| (*epoch, partitions.keys().meta(*partition)))
            .collect();
        match partitions.run_and_wait(&touch, &calls, (replicas, WAIT_MS)).await {
            Ok((touched, reached)) => {
                let of = waiters.keys().copied().zip(touched).collect();
                wake(&mut waiters, of, reached >= replicas);
            }
            // Who waits goes on waiting: nobody has said that the replicas have it.
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

fn wake(
    waiters: &mut Waiters,
    touched: HashMap<(Partition, Epoch), Result<(), FenceError>>,
    reached: bool,
) {
    for (of, touched) in touched {
        let has_it = match touched {
            Ok(()) if reached => true,
            Ok(()) | Err(FenceError::Unavailable { .. } | FenceError::Malformed(_)) => continue,
            Err(FenceError::Fenced(_)) => false,
        };
        for waiter in waiters.remove(&of).into_iter().flatten() {
            // Who went away meanwhile asks again.
            let _gone = waiter.send(has_it);
        }
    }
}
