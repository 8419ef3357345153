//! Waits for the ledger: one read tells of all who wait, whichever process stores their orders. So as many
//! are answered as the pipeline stores, and no call has a commit of its own.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use uuid::Uuid;

use super::{AckError, MAX_WAITING, Waiting, join};
use crate::{
    domain::ReservationId,
    ledger::{Ledger, LedgerError},
    redis::Partitions,
    tasks::Tasks,
};

/// Most reservations a read.
const BATCH: usize = 5000;
/// Between two reads.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Reads take at most one part in so many of the time.
const SHARE: u32 = 3;
/// After a read that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

type Answer = Result<(), AckError>;
type Waiters = BTreeMap<ReservationId, Vec<oneshot::Sender<Answer>>>;

/// The waiting end.
#[derive(Clone)]
pub(super) struct Stored {
    queue: mpsc::Sender<Waiting<Answer>>,
}

impl Stored {
    pub(super) fn start(partitions: Partitions, ledger: Ledger, tasks: &Tasks) -> Self {
        let (queue, asked) = mpsc::channel(MAX_WAITING);
        tasks.spawn("ack ledger", run(partitions, ledger, asked));
        Self { queue }
    }

    /// Until the order is committed, voided, or certain to be lost.
    pub(super) async fn wait(&self, id: ReservationId) -> Answer {
        join(&self.queue, id).await?
    }
}

async fn run(partitions: Partitions, ledger: Ledger, mut asked: mpsc::Receiver<Waiting<Answer>>) {
    let (mut waiters, mut arrived, mut well) = (Waiters::new(), Vec::new(), true);
    loop {
        if waiters.is_empty() && asked.recv_many(&mut arrived, BATCH).await == 0 {
            return;
        }
        while let Ok(waiting) = asked.try_recv() {
            arrived.push(waiting);
        }
        for Waiting { id, answer } in arrived.drain(..) {
            waiters.entry(id).or_default().push(answer);
        }
        // Who went away, went away.
        waiters.retain(|_, answers| {
            answers.retain(|answer| !answer.is_closed());
            !answers.is_empty()
        });
        let started = Instant::now();
        let read = read(&partitions, &ledger, &mut waiters).await;
        if let (Err(error), true) = (&read, well) {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "reservations wait for the ledger, which cannot be read"
            );
        }
        well = read.is_ok();
        let pause =
            if well { POLL_INTERVAL.max(started.elapsed() * (SHARE - 1)) } else { RETRY_INTERVAL };
        if !waiters.is_empty() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Asks for all who wait, and answers those who need not wait any longer.
async fn read(
    partitions: &Partitions,
    ledger: &Ledger,
    waiters: &mut Waiters,
) -> Result<(), LedgerError> {
    let ids: Vec<ReservationId> = waiters.keys().copied().collect();
    for batch in ids.chunks(BATCH) {
        // Believed before the ledger is read: an epoch opens after whatever is left of those before it was
        // stored or voided (R8), so what is not there then is nowhere.
        let ended = |id: &&ReservationId| {
            let partition = partitions.count().get_partition(id.partition());
            partition
                .is_none_or(|partition| partitions.epoch(partition).is_ok_and(|e| e > id.epoch()))
        };
        let ended: Vec<ReservationId> = batch.iter().filter(ended).copied().collect();
        let uuids: Vec<Uuid> = batch.iter().map(ReservationId::to_uuid).collect();
        for (uuid, voided) in ledger.settled(&uuids).await? {
            if let Ok(id) = ReservationId::from_uuid(uuid) {
                answer(waiters, id, voided.map_or(Ok(()), |_| Err(AckError::Voided)));
            }
        }
        for id in ended {
            answer(waiters, id, Err(AckError::Lost));
        }
    }
    Ok(())
}

fn answer(waiters: &mut Waiters, id: ReservationId, with: Answer) {
    for waiter in waiters.remove(&id).into_iter().flatten() {
        // Who went away meanwhile asks again.
        drop(waiter.send(with.clone()));
    }
}
