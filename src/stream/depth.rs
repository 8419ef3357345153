//! The lengths of a partition's streams, read for a scrape of the metrics.

use redis::{AsyncCommands as _, RedisError, streams::StreamInfoGroupsReply};

use super::{
    Streams,
    entry::{Entry, RawEntry},
};
use crate::{
    domain::Partition,
    redis::{GROUP, Key},
};

/// A partition's streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Entries in `orders`.
    pub orders: u64,
    /// Of these, delivered and not settled.
    pub pending: u64,
    /// Entries not delivered yet, where Redis reports them.
    pub lag: Option<u64>,
    /// When the oldest entry was accepted, in milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Entries in `dead`.
    pub dead: u64,
}

impl Streams {
    /// The lengths of a partition's streams.
    pub async fn depth(&self, partition: Partition) -> Result<Depth, RedisError> {
        let mut connection = self.partitions.connection();
        let [orders, dead] =
            [Key::Orders, Key::Dead].map(|key| self.partitions.key(partition, key));
        let oldest: Vec<RawEntry> = connection.xrange_count(&orders, "-", "+", 1).await?;
        let oldest = oldest.into_iter().find_map(Entry::from_raw);
        // A stream that does not exist has no group; a scrape does not fail for that.
        let groups: Result<StreamInfoGroupsReply, _> = connection.xinfo_groups(&orders).await;
        let groups = groups.map(|reply| reply.groups).unwrap_or_default();
        let group = groups.into_iter().find(|group| group.name == GROUP);
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Ok(Depth {
            orders: connection.xlen(&orders).await?,
            pending: group.as_ref().map_or(0, |group| count(group.pending)),
            lag: group.and_then(|group| group.lag).map(count),
            oldest_ms: oldest.and_then(|entry| entry.reserved_at_ms()),
            dead: connection.xlen(&dead).await?,
        })
    }
}
