//! How full a partition's streams are, read for a scrape.

use redis::{AsyncCommands as _, RedisError, streams::StreamInfoGroupsReply};

use super::{
    Streams,
    entry::{Entry, RawEntry},
};
use crate::{domain::Partition, redis::GROUP};

/// A partition's streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Entries in `orders`.
    pub orders: u64,
    /// Of these, delivered and not settled.
    pub pending: u64,
    /// Entries not delivered yet; Redis cannot always tell.
    pub lag: Option<u64>,
    /// When the oldest entry was accepted, in milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Entries in `dead`.
    pub dead: u64,
}

impl Streams {
    /// How full a partition's streams are.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn depth(&self, partition: Partition) -> Result<Depth, RedisError> {
        let mut connection = self.partitions.connection();
        let keys = self.partitions.keys();
        let (orders, dead) = (keys.orders(partition), keys.dead(partition));
        let oldest: Vec<RawEntry> = connection.xrange_count(&orders, "-", "+", 1).await?;
        let oldest = oldest.into_iter().find_map(Entry::from_raw);
        // Without the stream there is no group, and that is no error of a scrape.
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
