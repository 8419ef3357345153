//! What a rebuild takes out of the streams of a closed partition (R8).

use redis::{AsyncCommands as _, RedisError};

use super::{
    Streams,
    entry::{Entry, RawEntry},
};
use crate::{
    domain::{Epoch, Partition},
    redis::{FenceError, expect},
};

/// One of a partition's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Accepted orders.
    Orders,
    /// Orders given up on.
    Dead,
}

/// An entry, and the id it was accepted under.
#[derive(Debug, Clone)]
pub struct Surviving {
    /// The entry, under its id in its stream.
    pub entry: Entry,
    /// Its id when it was accepted.
    pub accepted_as: String,
}

impl Streams {
    fn source(&self, partition: Partition, source: Source) -> String {
        match source {
            Source::Orders => self.partitions.keys().orders(partition),
            Source::Dead => self.partitions.keys().dead(partition),
        }
    }

    /// The first entries of a stream behind `after` (its start, if that is empty), at most `count`.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn surviving(
        &self,
        partition: Partition,
        source: Source,
        (after, count): (&str, usize),
    ) -> Result<Vec<Surviving>, RedisError> {
        let key = self.source(partition, source);
        let from = if after.is_empty() { "-".to_owned() } else { format!("({after}") };
        let raw: Vec<RawEntry> =
            self.partitions.connection().xrange_count(key, from, "+", count).await?;
        let entries = raw.into_iter().filter_map(Entry::from_raw).map(|entry| {
            let accepted_as = match source {
                Source::Orders => entry.id.clone(),
                Source::Dead => entry.field("id").unwrap_or_default().to_owned(),
            };
            Surviving { entry, accepted_as }
        });
        Ok(entries.collect())
    }

    /// How many entries a stream holds.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn length(&self, partition: Partition, source: Source) -> Result<u64, RedisError> {
        self.partitions.connection().xlen(self.source(partition, source)).await
    }

    /// Removes entries that the rebuild of `epoch` has stored or voided.
    ///
    /// # Errors
    ///
    /// `Fenced` when that rebuild is over.
    pub async fn drained(
        &self,
        (partition, source): (Partition, Source),
        epoch: Epoch,
        ids: &[&str],
    ) -> Result<(), FenceError> {
        let keys = [self.partitions.keys().meta(partition), self.source(partition, source)];
        let answer = self.partitions.run_in(epoch, &self.scripts.drained, &keys, ids).await?;
        expect(answer, &["ok"])
    }
}
