//! The entries that a rebuild stores or voids, and removes from the streams of a closed partition (R8).

use redis::AsyncCommands as _;

use super::{
    Streams,
    entry::{Entry, RawEntry},
};
use crate::{
    domain::{Partition, PartitionEpoch},
    redis::{Key, RedisCallError, script},
};

/// One of a partition's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Accepted orders.
    Orders,
    /// Orders that could not be stored.
    Dead,
}

/// An entry that is not drained yet, and the id that it has or had in `orders`.
#[derive(Debug, Clone)]
pub struct UndrainedEntry {
    /// The entry, under its id in its stream.
    pub entry: Entry,
    /// Its id in `orders`: `<epoch>-<seq>`.
    pub orders_id: String,
}

script!(DRAIN: () = "drain", include_str!("../../lua/drain.lua"), [Meta] {
    ["ok", _] => (),
});

impl Source {
    fn key(self) -> Key {
        match self {
            Self::Orders => Key::Orders,
            Self::Dead => Key::Dead,
        }
    }
}

impl Streams {
    /// The first entries of a stream after `after` (its start, if that is empty), at most `count`.
    pub async fn undrained(
        &self,
        partition: Partition,
        source: Source,
        after: &str,
        count: usize,
    ) -> Result<Vec<UndrainedEntry>, RedisCallError> {
        let key = self.partitions.key(partition, source.key());
        let from = if after.is_empty() { "-".to_owned() } else { format!("({after}") };
        let raw: Vec<RawEntry> =
            self.partitions.connection(partition).xrange_count(key, from, "+", count).await?;
        let entries = raw.into_iter().filter_map(Entry::from_raw).map(|entry| {
            let orders_id = match source {
                Source::Orders => entry.id.clone(),
                Source::Dead => entry.field("id").unwrap_or_default().to_owned(),
            };
            UndrainedEntry { entry, orders_id }
        });
        Ok(entries.collect())
    }

    /// How many entries a stream holds.
    pub async fn length(
        &self,
        partition: Partition,
        source: Source,
    ) -> Result<u64, RedisCallError> {
        let key = self.partitions.key(partition, source.key());
        Ok(self.partitions.connection(partition).xlen(key).await?)
    }

    /// Removes entries that a rebuild has stored or voided.
    pub async fn drain(
        &self,
        at: PartitionEpoch,
        source: Source,
        ids: &[&str],
    ) -> Result<(), RedisCallError> {
        self.partitions.run_with_keys(at, &DRAIN, &[source.key()], ids).await
    }
}
