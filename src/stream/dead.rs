//! The dead stream: entries given up on, each the token for its own unit.

use redis::{AsyncCommands as _, RedisError};

use super::{
    Streams,
    entry::{Entry, EntryError, RawEntry},
};
use crate::{
    domain::{Order, Partition, ReservationId},
    fence::FenceError,
};

/// An entry of `dead`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadEntry {
    /// Its partition.
    pub partition: Partition,
    /// The entry, under its id in `dead`.
    pub entry: Entry,
}

impl DeadEntry {
    fn field(&self, name: &str) -> &str {
        self.entry.field(name).unwrap_or_default()
    }

    /// Its id in `dead`.
    pub fn dead_id(&self) -> &str {
        &self.entry.id
    }

    /// The id it had in `orders`.
    pub fn accepted_as(&self) -> &str {
        self.field("id")
    }

    /// The name it was buried under: the reservation id, or `accepted_as` if it has none.
    pub fn named(&self) -> &str {
        self.field("rid")
    }

    /// Why it was buried.
    pub fn reason(&self) -> &str {
        self.field("reason")
    }

    /// What Postgres called it; empty if it was not Postgres.
    pub fn sqlstate(&self) -> &str {
        self.field("sqlstate")
    }

    /// When it was buried, in milliseconds since 1970.
    pub fn buried_at_ms(&self) -> i64 {
        self.field("at").parse().unwrap_or(0)
    }

    /// The reservation it is.
    ///
    /// # Errors
    ///
    /// `Malformed` when no program of ours wrote it.
    pub fn reservation_id(&self) -> Result<ReservationId, EntryError> {
        self.entry.reservation_id(self.partition, self.accepted_as())
    }

    /// The order in it.
    ///
    /// # Errors
    ///
    /// As [`Entry::order`].
    pub fn order(&self) -> Result<Order, EntryError> {
        self.entry.order(self.partition, self.accepted_as())
    }
}

impl Streams {
    /// At most `count` dead entries of a partition, oldest first, after `after` (an id in `dead`).
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn dead(
        &self,
        partition: Partition,
        after: Option<&str>,
        count: usize,
    ) -> Result<Vec<DeadEntry>, RedisError> {
        self.dead_up_to(partition, (after, "+"), count).await
    }

    /// As [`Streams::dead`], up to the id `last`.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn dead_up_to(
        &self,
        partition: Partition,
        (after, last): (Option<&str>, &str),
        count: usize,
    ) -> Result<Vec<DeadEntry>, RedisError> {
        let start = after.map_or("-".to_owned(), |id| format!("({id}"));
        let key = self.partitions.keys().dead(partition);
        let raw: Vec<RawEntry> =
            self.partitions.connection().xrange_count(key, start, last, count).await?;
        let entries = raw.into_iter().filter_map(Entry::from_raw);
        Ok(entries.map(|entry| DeadEntry { partition, entry }).collect())
    }

    /// The id of a partition's newest dead entry.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn newest_dead(&self, partition: Partition) -> Result<Option<String>, RedisError> {
        let key = self.partitions.keys().dead(partition);
        let newest: Vec<RawEntry> =
            self.partitions.connection().xrevrange_count(key, "+", "-", 1).await?;
        Ok(newest.into_iter().next().map(|(id, _)| id))
    }

    /// The time by the clock of Redis, which says when an entry was buried; in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn now_ms(&self) -> Result<i64, RedisError> {
        let time = redis::cmd("TIME");
        let (seconds, micros): (i64, i64) =
            time.query_async(&mut self.partitions.connection()).await?;
        Ok(seconds * 1000 + micros / 1000)
    }

    /// The dead entry that was buried under this name.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn dead_of(
        &self,
        partition: Partition,
        named: &str,
    ) -> Result<Option<DeadEntry>, RedisError> {
        let mut connection = self.partitions.connection();
        let key = self.partitions.keys().buried(partition);
        let Some(dead_id) = connection.hget::<_, _, Option<String>>(key, named).await? else {
            return Ok(None);
        };
        let key = self.partitions.keys().dead(partition);
        let raw: Vec<RawEntry> = connection.xrange(key, &dead_id, &dead_id).await?;
        let entry = raw.into_iter().find_map(Entry::from_raw);
        Ok(entry.map(|entry| DeadEntry { partition, entry }))
    }

    /// Removes a dead entry whose order is in the ledger; returns whether it was still there.
    ///
    /// # Errors
    ///
    /// As [`crate::fence::Partitions::run`]; repeat it.
    pub async fn discard(&self, dead: &DeadEntry) -> Result<bool, FenceError> {
        let keys = self.partitions.keys();
        let partition = dead.partition;
        let keys = [keys.meta(partition), keys.dead(partition), keys.buried(partition)];
        let args = [dead.dead_id(), dead.named()];
        let answer = self.partitions.run(partition, &self.scripts.discard, &keys, &args).await?;
        match answer[0].as_str() {
            "discarded" => Ok(true),
            "gone" => Ok(false),
            _ => Err(FenceError::Malformed(answer)),
        }
    }
}
