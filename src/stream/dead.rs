//! The dead stream: entries given up on, each the token for its own unit.

use redis::RedisError;

use super::{
    Streams,
    entry::{Entry, EntryError},
};
use crate::{
    domain::{Order, Partition, ReservationId},
    redis::FenceError,
};

/// An entry of `dead`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadEntry {
    /// Its partition.
    pub partition: Partition,
    /// The entry, under its id in `dead`.
    pub entry: Entry,
}

/// Some of a partition's dead entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadPage {
    /// The entries, the oldest first.
    pub entries: Vec<DeadEntry>,
    /// The id of the newest dead entry of the partition, on this page or not.
    pub newest: Option<String>,
}

/// Entries as `lua/dead.lua` returns them; `None` if the words do not add up.
fn dead_entries(partition: Partition, mut words: &[String]) -> Option<Vec<DeadEntry>> {
    let mut entries = Vec::new();
    while let [id, count, rest @ ..] = words {
        let (fields, others) = rest.split_at_checked(count.parse().ok()?)?;
        let fields = fields.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        let entry = Entry { id: id.clone(), fields: fields.collect() };
        entries.push(DeadEntry { partition, entry });
        words = others;
    }
    words.is_empty().then_some(entries)
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
    pub fn moved_at_ms(&self) -> i64 {
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
    /// At most `count` dead entries of a partition, the oldest first, after `after` (an id in `dead`) and up to `last`
    /// (without it, to the newest).
    ///
    /// # Errors
    ///
    /// As [`crate::redis::Partitions::run`].
    pub async fn dead(
        &self,
        partition: Partition,
        (after, last): (Option<&str>, Option<&str>),
        count: usize,
    ) -> Result<DeadPage, FenceError> {
        let first = after.map_or("-".to_owned(), |id| format!("({id}"));
        let args = ["", &first, last.unwrap_or("+"), &count.to_string()];
        let page = self.read_dead(partition, &args).await?;
        page.ok_or_else(|| FenceError::Malformed(vec!["none".to_owned()]))
    }

    /// Reads dead entries behind the fence, since an older Redis holds entries that are settled; `None` if there is
    /// none of the name that was asked for.
    async fn read_dead(
        &self,
        partition: Partition,
        args: &[&str],
    ) -> Result<Option<DeadPage>, FenceError> {
        let keys = self.partitions.keys();
        let keys = [keys.meta(partition), keys.dead(partition), keys.dead_index(partition)];
        let answer = self.partitions.run(partition, &self.scripts.dead, &keys, args).await?;
        match answer.as_slice() {
            [status] if status == "none" => Ok(None),
            [status, newest, words @ ..] if status == "read" => {
                let entries = dead_entries(partition, words);
                let newest = (!newest.is_empty()).then(|| newest.clone());
                let entries = entries.ok_or(FenceError::Malformed(answer))?;
                Ok(Some(DeadPage { entries, newest }))
            }
            _ => Err(FenceError::Malformed(answer)),
        }
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
    /// As [`crate::redis::Partitions::run`].
    pub async fn dead_of(
        &self,
        partition: Partition,
        named: &str,
    ) -> Result<Option<DeadEntry>, FenceError> {
        let page = self.read_dead(partition, &[named, "", "", "1"]).await?;
        Ok(page.and_then(|page| page.entries.into_iter().next()))
    }

    /// Removes a dead entry whose order is in the ledger; returns whether it was still there.
    ///
    /// # Errors
    ///
    /// As [`crate::redis::Partitions::run`]; repeat it.
    pub async fn discard(&self, dead: &DeadEntry) -> Result<bool, FenceError> {
        let keys = self.partitions.keys();
        let partition = dead.partition;
        let keys = [keys.meta(partition), keys.dead(partition), keys.dead_index(partition)];
        let args = [dead.dead_id(), dead.named()];
        let answer = self.partitions.run(partition, &self.scripts.discard, &keys, &args).await?;
        match answer[0].as_str() {
            "discarded" => Ok(true),
            "gone" => Ok(false),
            _ => Err(FenceError::Malformed(answer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    #[test]
    fn words_that_do_not_add_up_are_no_entries() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let read = |words: &str| {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            dead_entries(partition, &words)
        };
        let entries = read("1-1 2 p shoe 1-2 0 1-3 4 p hat u ann").unwrap();
        let fields: Vec<usize> = entries.iter().map(|dead| dead.entry.fields.len()).collect();
        assert_eq!(fields, [1, 0, 2]);
        assert_eq!((entries[2].dead_id(), entries[2].field("u")), ("1-3", "ann"));
        assert_eq!(read("").unwrap(), []);
        for broken in ["1-1", "1-1 two p shoe", "1-1 3 p shoe", "1-1 2 p shoe 1-2"] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
