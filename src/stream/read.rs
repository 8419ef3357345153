//! Reads of both streams: the entry of a reservation that is not settled yet, and the lengths for a scrape of the metrics.

use std::time::Duration;

use jiff::Timestamp;
use redis::{AsyncCommands as _, RedisError, streams::StreamInfoGroupsReply};

use super::{
    Streams,
    entry::{Entry, Fields, RawEntry, fields},
};
use crate::{
    domain::{Epoch, Partition, PartitionEpoch, ReservationId},
    redis::{GROUP, Key, RedisCallError, script},
    telemetry::PartitionReading,
};

/// What the streams of a partition hold of a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its entry, in `orders` or in `dead`.
    Entry(Entry),
    /// Nothing.
    Nothing {
        /// The epoch in which they were read.
        epoch: Epoch,
        /// The highest seq of this epoch that was settled; 0 for none.
        stored_seq: u64,
    },
}

// The fields of the entry, or the highest seq that was settled.
script!(FIND: Result<Fields, u64> = "find", include_str!("../../lua/find.lua"),
    [Meta, Orders, Dead, DeadIndex] {
    ["found", ref elements @ ..] => Ok(fields(elements)?),
    ["none", stored_seq] => Err(stored_seq.parse().ok()?),
});

/// How far the orders of a partition have been read and settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The id of the oldest entry of `orders`.
    pub oldest: String,
    /// The id of the last entry that the consumer group has read.
    pub last_read: String,
    /// Whether an entry waits that was not read.
    pub has_unread: bool,
}

/// An entry id as Redis compares them.
fn entry_order(id: &str) -> Option<(u64, u64)> {
    let (first, second) = id.split_once('-')?;
    Some((first.parse().ok()?, second.parse().ok()?))
}

impl Streams {
    /// Searches `orders` and `dead` for the entry of a reservation, at one moment. An order only ever moves from there
    /// to the ledger: a caller that reads the ledger afterwards misses no order that was accepted in the epoch that
    /// this returns. The script begins with the fence: a Redis with older data (a restored backup) holds entries that
    /// are settled.
    pub async fn find(
        &self,
        partition: Partition,
        id: ReservationId,
    ) -> Result<Found, RedisCallError> {
        let epoch = self.partitions.epoch(partition)?;
        let (entry_id, random) = (id.entry_id(), ReservationId::random_text(id.random()));
        let hexadecimal = format!("{:x}", id.random());
        let args = [entry_id.as_str(), &id.to_string(), &random, &hexadecimal];
        let at = PartitionEpoch { partition, epoch };
        Ok(match self.partitions.run_in_epoch(at, &FIND, &args).await? {
            Ok(fields) => Found::Entry(Entry { id: entry_id, fields }),
            Err(stored_seq) => Found::Nothing { epoch, stored_seq },
        })
    }

    /// The lengths of a partition's streams, and how long its oldest order has waited.
    pub async fn depth(&self, partition: Partition) -> Result<PartitionReading, RedisError> {
        let mut connection = self.partitions.connection(partition);
        let [orders, dead] =
            [Key::Orders, Key::Dead].map(|key| self.partitions.key(partition, key));
        let oldest: Vec<RawEntry> = connection.xrange_count(&orders, "-", "+", 1).await?;
        let oldest = oldest.into_iter().find_map(Entry::from_raw);
        let oldest_ms = oldest.and_then(|entry| entry.reserved_at_ms());
        let now_ms = Timestamp::now().as_millisecond();
        // By the clocks of this machine and of Redis, which may differ.
        let waited_ms = oldest_ms.map_or(0, |oldest_ms| now_ms.saturating_sub(oldest_ms));
        let waited = Duration::from_millis(u64::try_from(waited_ms).unwrap_or(0));
        // A stream that does not exist has no group; a scrape does not fail for that.
        let groups: Result<StreamInfoGroupsReply, _> = connection.xinfo_groups(&orders).await;
        let groups = groups.map(|reply| reply.groups).unwrap_or_default();
        let group = groups.into_iter().find(|group| group.name == GROUP);
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Ok(PartitionReading {
            orders: connection.xlen(&orders).await?,
            pending: group.as_ref().map_or(0, |group| count(group.pending)),
            lag: group.and_then(|group| group.lag).map(count),
            oldest_seconds: waited.as_secs_f64(),
            dead: connection.xlen(&dead).await?,
        })
    }

    /// How far a partition's orders have been read and settled; `None` if none waits.
    pub async fn progress(&self, partition: Partition) -> Result<Option<Progress>, RedisError> {
        let mut connection = self.partitions.connection(partition);
        let orders = self.partitions.key(partition, Key::Orders);
        let oldest: Vec<RawEntry> = connection.xrange_count(&orders, "-", "+", 1).await?;
        let Some(oldest) = oldest.into_iter().find_map(Entry::from_raw) else { return Ok(None) };
        let newest: Vec<RawEntry> = connection.xrevrange_count(&orders, "+", "-", 1).await?;
        let newest = newest.into_iter().find_map(Entry::from_raw).map(|entry| entry.id);
        let groups: StreamInfoGroupsReply = connection.xinfo_groups(&orders).await?;
        let group = groups.groups.into_iter().find(|group| group.name == GROUP);
        // Without the group nothing was read. A consumer creates it again.
        let last_read = group.map_or_else(String::new, |group| group.last_delivered_id);
        let has_unread = newest.is_some_and(|id| entry_order(&id) > entry_order(&last_read));
        Ok(Some(Progress { oldest: oldest.id, last_read, has_unread }))
    }
}
