//! Waits for the ledger. The consumers of this process report each batch that they have committed, and the calls that wait
//! for its orders are answered at once. Orders that another process stores are found by reads of the ledger; one read
//! answers all calls that wait. So no call has a commit of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use super::{
    AckError,
    waiters::{Queue, Waiters, queue},
};
use crate::{
    domain::{Partition, PartitionCount, ReservationId},
    ledger::{Ledger, LedgerError},
    redis::Partitions,
    tasks::Tasks,
};

/// The most reservations per read.
const BATCH_MAX: usize = 5000;
/// Between two reads.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Between two reads while reports of the consumers of this process answer calls, and no call waits for an order of a
/// partition that another process consumes.
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(20);
/// The most reports that wait. One that finds no place is dropped: the next read finds its orders.
const REPORTS_MAX: usize = 64;
/// Reads take at most 1/`TIME_SHARE` of the time.
const TIME_SHARE: u32 = 3;
/// After a read that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

type Answer = Result<(), AckError>;

/// Where the consumers of this process report what they have committed. By default they are dropped: no call of this process
/// waits.
#[derive(Clone, Default)]
pub struct CommitReports {
    sender: Option<mpsc::Sender<Vec<ReservationId>>>,
    consumed: ConsumedHere,
}

/// Whether this process has a consumer of a partition, which reports its commits.
#[derive(Clone, Default)]
struct ConsumedHere {
    by_partition: Arc<[AtomicBool]>,
}

impl ConsumedHere {
    fn none(partitions: PartitionCount) -> Self {
        Self { by_partition: partitions.all().map(|_| AtomicBool::new(false)).collect() }
    }

    fn contains(&self, id: &ReservationId) -> bool {
        let consumed = self.by_partition.get(usize::from(id.partition()));
        consumed.is_some_and(|consumed| consumed.load(Ordering::Relaxed))
    }
}

impl CommitReports {
    /// Reports orders that the ledger has confirmed: their batch is committed. Never waits.
    pub fn report(&self, confirmed: Vec<ReservationId>) {
        if let (Some(sender), false) = (&self.sender, confirmed.is_empty()) {
            drop(sender.try_send(confirmed));
        }
    }

    /// A consumer of this process begins or ends to read a partition.
    pub fn set_consumed(&self, partition: Partition, is_consumed: bool) {
        if let Some(consumed) = self.consumed.by_partition.get(partition.index()) {
            consumed.store(is_consumed, Ordering::Relaxed);
        }
    }
}

fn commit_reports(
    partitions: PartitionCount,
) -> (CommitReports, mpsc::Receiver<Vec<ReservationId>>) {
    let (sender, reports) = mpsc::channel(REPORTS_MAX);
    let consumed = ConsumedHere::none(partitions);
    (CommitReports { sender: Some(sender), consumed }, reports)
}

/// Starts the task that answers calls when their orders are committed, voided, or certain to be lost.
pub(super) fn start(
    partitions: Partitions,
    ledger: Ledger,
    tasks: &Tasks,
) -> (Queue<ReservationId, Answer>, CommitReports) {
    let (queue, waiters) = queue();
    let (sender, reports) = commit_reports(partitions.count());
    let consumed = sender.consumed.clone();
    tasks.spawn("ack ledger", run(partitions, ledger, waiters, (reports, consumed)));
    (queue, sender)
}

/// Answers calls by what consumers report, for at most this long; returns when no call waits any more. Returns whether a
/// report answered a call.
async fn answer_reported(
    waiters: &mut Waiters<ReservationId, Answer>,
    reports: &mut mpsc::Receiver<Vec<ReservationId>>,
    limit: Duration,
) -> bool {
    let mut answered = false;
    let end = tokio::time::sleep(limit);
    tokio::pin!(end);
    while !waiters.is_empty() {
        tokio::select! {
            biased;
            Some(confirmed) = reports.recv() => {
                waiters.add_joined();
                for id in confirmed {
                    answered |= waiters.answer(id, &Ok(()));
                }
            }
            () = &mut end => break,
        }
    }
    answered
}

async fn run(
    partitions: Partitions,
    ledger: Ledger,
    mut waiters: Waiters<ReservationId, Answer>,
    (mut reports, consumed): (mpsc::Receiver<Vec<ReservationId>>, ConsumedHere),
) {
    let (mut healthy, mut pause) = (true, POLL_INTERVAL);
    // The calls that waited at the last read, in order.
    let mut waited = Vec::new();
    while waiters.update().await {
        let reported = answer_reported(&mut waiters, &mut reports, pause).await;
        if waiters.is_empty() {
            continue;
        }
        let started = Instant::now();
        let waiting = waiters.keys();
        // While reports answer calls, those that have just joined are left to the consumers.
        let is_due = |id: &&ReservationId| {
            !reported || !consumed.contains(id) || waited.binary_search(*id).is_ok()
        };
        let due: Vec<ReservationId> = waiting.iter().filter(is_due).copied().collect();
        let read = read(&partitions, &ledger, &due, &mut waiters).await;
        let all_reported = reported && waiting.iter().all(|id| consumed.contains(id));
        waited = waiting;
        if let (Err(error), true) = (&read, healthy) {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "reservations wait for the ledger, which cannot be read"
            );
        }
        healthy = read.is_ok();
        let interval = if all_reported { POLL_INTERVAL_MAX } else { POLL_INTERVAL };
        pause = if healthy {
            interval.max(started.elapsed() * (TIME_SHARE - 1))
        } else {
            RETRY_INTERVAL
        };
    }
}

/// Reads the state of these reservations, and answers the calls that wait for those that are decided.
async fn read(
    partitions: &Partitions,
    ledger: &Ledger,
    ids: &[ReservationId],
    waiters: &mut Waiters<ReservationId, Answer>,
) -> Result<(), LedgerError> {
    for batch in ids.chunks(BATCH_MAX) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Epoch;

    #[tokio::test]
    async fn reported_commit_answers_its_calls_without_a_read() {
        let (queue, mut waiters) = queue();
        let (sender, mut reports) = commit_reports(PartitionCount::try_from(2).unwrap());
        let id = |seq| ReservationId::new(0, Epoch(1), seq, 7).unwrap();
        let early = tokio::join!(queue.join(id(1)), queue.join(id(1)), async {
            assert!(waiters.update().await);
            // A call that joins after the waiters were read is answered as well.
            let late = tokio::join!(queue.join(id(2)), async {
                sender.report(vec![id(1), id(2), id(3)]);
                let limit = Duration::from_secs(3600);
                assert!(answer_reported(&mut waiters, &mut reports, limit).await);
            });
            assert!(late.0.unwrap().is_ok());
        });
        assert!(early.0.unwrap().is_ok() && early.1.unwrap().is_ok());
        assert!(waiters.is_empty());
    }

    #[tokio::test]
    async fn reports_beyond_the_limit_are_dropped() {
        let (sender, mut reports) = commit_reports(PartitionCount::try_from(2).unwrap());
        for seq in 0..1_000 {
            sender.report(vec![ReservationId::new(0, Epoch(1), seq, 7).unwrap()]);
        }
        let mut left = 0;
        while reports.try_recv().is_ok() {
            left += 1;
        }
        assert_eq!(left, REPORTS_MAX);
        CommitReports::default().report(Vec::new());
    }

    #[test]
    fn orders_of_partitions_that_another_process_consumes_are_known() {
        let partitions = PartitionCount::try_from(2).unwrap();
        let (reports, _) = commit_reports(partitions);
        let [first, second] =
            [0, 1].map(|partition| ReservationId::new(partition, Epoch(1), 1, 7).unwrap());
        let contains = || [first, second].map(|id| reports.consumed.contains(&id));
        let partition = partitions.get_partition(1).unwrap();
        assert_eq!(contains(), [false, false]);
        reports.set_consumed(partition, true);
        assert_eq!(contains(), [false, true]);
        reports.set_consumed(partition, false);
        assert_eq!(contains(), [false, false]);
        // A process that answers no calls keeps nothing.
        CommitReports::default().set_consumed(partition, true);
    }
}
