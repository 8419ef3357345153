//! Waits for replicas of Redis: a script gives the connection a position in the replication stream that is after
//! everything that was accepted, and one WAIT for that position answers all calls that wait.

use std::{sync::Arc, time::Duration};

use super::{
    AckError,
    waiters::{Queue, Waiters, queue},
};
use crate::{
    domain::{PartitionEpoch, ReservationId},
    redis::{Partitions, RedisCallError, script},
    tasks::Tasks,
};

/// How long one WAIT waits, before calls that joined or ended meanwhile are taken into account.
const WAIT_MS: u64 = 500;
/// After a WAIT that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

script!(PROBE: () = "replication_probe", include_str!("../../lua/replication_probe.lua"), [Meta] {
    ["ok"] => (),
});

/// Whether replicas have it; false when its partition is in a later epoch now.
type Answer = bool;

/// Where calls wait: a queue for each connection, because a WAIT blocks its connection.
#[derive(Clone)]
pub(super) struct Replicated {
    partitions: Partitions,
    queues: Arc<[Queue<PartitionEpoch, Answer>]>,
}

impl Replicated {
    /// `partitions` are behind connections that may be blocked.
    pub(super) fn start(partitions: Partitions, replicas: u32, tasks: &Tasks) -> Self {
        let start = |_connection| {
            let (queue, waiters) = queue();
            tasks.spawn("ack replica", run(partitions.clone(), replicas, waiters));
            queue
        };
        let queues = (0..partitions.connection_count()).map(start).collect();
        Self { partitions, queues }
    }

    pub(super) async fn wait(&self, id: ReservationId) -> Result<Answer, AckError> {
        let epoch = id.epoch();
        match self.partitions.count().get_partition(id.partition()) {
            Some(partition) if self.partitions.epoch(partition).is_ok_and(|open| open == epoch) => {
                let queue = &self.queues[self.partitions.connection_index(partition)];
                queue.join(PartitionEpoch { partition, epoch }).await
            }
            _ => Ok(false),
        }
    }
}

async fn run(partitions: Partitions, replicas: u32, mut waiters: Waiters<PartitionEpoch, Answer>) {
    while waiters.update().await {
        let calls = waiters.keys();
        // The fence refuses the script where the partition is in a later epoch.
        let waited = partitions.run_and_wait(&PROBE, &calls, replicas, WAIT_MS).await;
        let Ok((written, reached)) = waited else {
            // No answer shows that the replicas have it: the calls wait on.
            tokio::time::sleep(RETRY_INTERVAL).await;
            continue;
        };
        for (at, written) in calls.into_iter().zip(written) {
            let replicated = match written {
                Ok(()) if reached >= replicas => true,
                // The calls wait on.
                Ok(()) | Err(RedisCallError::Unavailable { .. } | RedisCallError::Malformed(_)) => {
                    continue;
                }
                Err(RedisCallError::Fenced(_)) => false,
            };
            waiters.answer(at, &replicated);
        }
    }
}
