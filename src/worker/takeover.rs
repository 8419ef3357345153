//! Takes over entries that another consumer read and left behind, removes idle consumers, and ends the own one.
//!
//! Must never: count a delivery (R4), or move an entry to the dead stream.

use std::time::{Duration, Instant};

use redis::RedisError;

use super::{BATCH_MAX, WorkerContext, pause::Pause};
use crate::{domain::Partition, redis::RedisCallError, stream::PendingEntry};

/// The longest time between two takeovers.
const INTERVAL_MAX: Duration = Duration::from_secs(5);

/// When one consumer takes entries over, and how far it has searched.
pub(super) struct Takeover {
    next: Instant,
    /// Whether a read failed: what Redis delivered in the lost answer is pending with this consumer, which
    /// did not get it.
    read_failed: bool,
    /// The last delivered entry that was checked for being pending; empty at the start of the stream.
    checked: String,
}

impl Takeover {
    pub(super) fn new() -> Self {
        Self { next: Instant::now(), read_failed: false, checked: String::new() }
    }

    pub(super) fn is_due(&self) -> bool {
        self.next <= Instant::now()
    }

    /// Makes a takeover due at once, of this consumer's own entries.
    pub(super) fn read_failed(&mut self) {
        (self.read_failed, self.next) = (true, Instant::now());
    }

    /// Takes over entries that were idle for `takeover_idle`. The caller has no unsettled entries, so entries of its own
    /// that it lost by an error are taken over, too. `delayed`: how many of its own entries are delayed.
    pub(super) async fn run(
        &mut self,
        context: &WorkerContext,
        partition: Partition,
        delayed: usize,
    ) -> Result<Vec<PendingEntry>, Pause> {
        let (streams, consumer) = (&context.streams, &context.consumer);
        if self.read_failed {
            let taken =
                streams.claim(partition, consumer, Some(consumer), (0, BATCH_MAX + delayed)).await;
            let taken = or_restored_group(context, partition, taken).await?;
            self.read_failed = false;
            return Ok(taken);
        }
        let taken = streams.claim(partition, consumer, None, (idle_ms(context), BATCH_MAX)).await;
        let mut taken = or_restored_group(context, partition, taken).await?;
        if taken.len() < BATCH_MAX {
            taken.extend(self.adopt(context, partition, BATCH_MAX - taken.len()).await?);
            let interval = context.settings.takeover_idle / 4;
            self.next = Instant::now() + interval.min(INTERVAL_MAX);
        }
        remove_idle_consumers(context, partition).await?;
        Ok(taken)
    }

    /// Adopts delivered entries that are pending with no consumer; each call checks a page of the stream.
    async fn adopt(
        &mut self,
        context: &WorkerContext,
        partition: Partition,
        count: usize,
    ) -> Result<Vec<PendingEntry>, Pause> {
        let (streams, consumer) = (&context.streams, &context.consumer);
        let adopted = streams.adopt(partition, consumer, &mut self.checked, count).await?;
        if let Some(first) = adopted.first() {
            tracing::error!(
                %partition, entries = adopted.len(), first = first.entry.id,
                "entries were pending with no consumer, as after XGROUP DELCONSUMER: adopted"
            );
        }
        Ok(adopted)
    }
}

fn idle_ms(context: &WorkerContext) -> u64 {
    u64::try_from(context.settings.takeover_idle.as_millis()).unwrap_or(u64::MAX)
}

/// Removes the other consumers that have nothing pending and have long read nothing.
async fn remove_idle_consumers(context: &WorkerContext, partition: Partition) -> Result<(), Pause> {
    let idle_ms = usize::try_from(idle_ms(context).saturating_mul(10)).unwrap_or(usize::MAX);
    for consumer in context.streams.idle_consumers(partition, idle_ms).await? {
        if consumer != context.consumer {
            context.streams.remove_consumer(partition, &consumer).await?;
        }
    }
    Ok(())
}

/// A consumer ends. The next owner of the partition takes over at once what it could not store; without such entries, it is
/// removed from the group.
pub(super) async fn leave(context: &WorkerContext, partition: Partition, has_entries: bool) {
    let (streams, consumer) = (&context.streams, &context.consumer);
    let left = if has_entries {
        let made_idle = streams.make_idle(partition, consumer, idle_ms(context)).await;
        made_idle.map_err(RedisCallError::from)
    } else {
        streams.remove_consumer(partition, consumer).await
    };
    if let Err(error) = left {
        let error = &error as &dyn std::error::Error;
        tracing::debug!(%partition, error, "Redis has not recorded that the consumer ended: others take over what it left when that is idle");
    }
}

/// The result of a read; nothing, if the group had been deleted and was created again. It starts at 0:
/// every entry of the stream is delivered again, and the ledger recognizes the orders that it holds.
pub(super) async fn or_restored_group(
    context: &WorkerContext,
    partition: Partition,
    read: Result<Vec<PendingEntry>, RedisError>,
) -> Result<Vec<PendingEntry>, Pause> {
    if let Err(error) = &read
        && error.code() == Some("NOGROUP")
        && context.streams.restore_group(partition).await.is_ok()
    {
        tracing::error!(%partition, "the consumer group was deleted: created again, every entry is delivered again");
        return Ok(Vec::new());
    }
    Ok(read?)
}
