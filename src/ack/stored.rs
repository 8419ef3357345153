//! Waits for the ledger: one read answers all calls that wait, whichever process stores their orders. So calls are
//! answered as fast as orders are stored, and no call has a commit of its own.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    AckError,
    waiters::{Queue, Waiters, queue},
};
use crate::{
    domain::ReservationId,
    ledger::{Ledger, LedgerError},
    redis::Partitions,
    tasks::Tasks,
};

/// The most reservations per read.
const BATCH_MAX: usize = 5000;
/// Between two reads.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Reads take at most 1/`TIME_SHARE` of the time.
const TIME_SHARE: u32 = 3;
/// After a read that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

type Answer = Result<(), AckError>;

/// Starts the task that answers calls when their orders are committed, voided, or certain to be lost.
pub(super) fn start(
    partitions: Partitions,
    ledger: Ledger,
    tasks: &Tasks,
) -> Queue<ReservationId, Answer> {
    let (queue, waiters) = queue();
    tasks.spawn("ack ledger", run(partitions, ledger, waiters));
    queue
}

async fn run(partitions: Partitions, ledger: Ledger, mut waiters: Waiters<ReservationId, Answer>) {
    let mut healthy = true;
    while waiters.update().await {
        let started = Instant::now();
        let read = read(&partitions, &ledger, &mut waiters).await;
        if let (Err(error), true) = (&read, healthy) {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "reservations wait for the ledger, which cannot be read"
            );
        }
        healthy = read.is_ok();
        let pause = if healthy {
            POLL_INTERVAL.max(started.elapsed() * (TIME_SHARE - 1))
        } else {
            RETRY_INTERVAL
        };
        if !waiters.is_empty() {
            tokio::time::sleep(pause).await;
        }
    }
}

/// Reads the state of all reservations for which calls wait, and answers those that are decided.
async fn read(
    partitions: &Partitions,
    ledger: &Ledger,
    waiters: &mut Waiters<ReservationId, Answer>,
) -> Result<(), LedgerError> {
    for batch in waiters.keys().chunks(BATCH_MAX) {
        // The epochs are read before the ledger: an epoch opens after what is left of earlier ones was stored or
        // voided (R8), so an order that the ledger does not hold then is lost.
        let has_ended = |id: &&ReservationId| {
            let partition = partitions.count().get_partition(id.partition());
            partition
                .is_none_or(|partition| partitions.epoch(partition).is_ok_and(|e| e > id.epoch()))
        };
        let ended: Vec<ReservationId> = batch.iter().filter(has_ended).copied().collect();
        let uuids: Vec<Uuid> = batch.iter().map(ReservationId::to_uuid).collect();
        for (uuid, voided) in ledger.decided(&uuids).await? {
            if let Ok(id) = ReservationId::from_uuid(uuid) {
                waiters.answer(id, &voided.map_or(Ok(()), |_| Err(AckError::Voided)));
            }
        }
        for id in ended {
            waiters.answer(id, &Err(AckError::Lost(id)));
        }
    }
    Ok(())
}
