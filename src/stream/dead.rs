//! The dead stream: entries that could not be stored. Only the call that removes an entry may give back its unit.

use super::{
    Streams,
    entry::{Entry, EntryError, fields},
};
use crate::{
    domain::{Order, Partition, ProductId, ReservationId},
    redis::{Applied, GROUP, RedisCallError, script},
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadPage {
    /// The entries, the oldest first.
    pub entries: Vec<DeadEntry>,
    /// The id of the newest dead entry of the partition, on this page or not.
    pub newest: Option<String>,
}

/// A request to move an order from `orders` to `dead`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MoveToDead {
    /// Its id in `orders`.
    pub entry_id: String,
    /// The reservation, if the entry has a valid one.
    pub reservation_id: Option<ReservationId>,
    /// The reason, for operators.
    pub reason: String,
    /// The SQLSTATE of Postgres.
    pub sqlstate: Option<String>,
}

/// The newest id of the stream, and entries.
type Page = (Option<String>, Vec<Entry>);

// Whether the order was still in `orders`; an error is the refusal of Redis.
script!(MOVE_TO_DEAD: Result<bool, String> = "move_to_dead", include_str!("../../lua/move_to_dead.lua"),
    [Meta, Orders, Dead, DeadIndex] {
    ["moved", _] => Ok(true),
    ["gone"] => Ok(false),
    ["not_applied", refusal] => Err(refusal.to_owned()),
});

// `None` where no entry has the requested dead key.
script!(DEAD: Option<Page> = "dead", include_str!("../../lua/dead.lua"), [Meta, Dead, DeadIndex] {
    ["none"] => None,
    ["read", newest, ref elements @ ..] => {
        Some(((!newest.is_empty()).then(|| newest.to_owned()), entries(elements)?))
    },
});

// Whether the entry was still in `dead`.
script!(DISCARD: bool = "discard", include_str!("../../lua/discard.lua"), [Meta, Dead, DeadIndex] {
    ["discarded"] => true,
    ["gone"] => false,
});

/// Entries, each as its id, the number of elements of its fields, and these elements.
fn entries(mut elements: &[&str]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while let [id, count, rest @ ..] = elements {
        let (of_entry, others) = rest.split_at_checked(count.parse().ok()?)?;
        entries.push(Entry { id: (*id).to_owned(), fields: fields(of_entry)? });
        elements = others;
    }
    elements.is_empty().then_some(entries)
}

impl DeadEntry {
    fn field(&self, name: &str) -> &str {
        self.entry.field(name).unwrap_or_default()
    }

    /// Its id in `dead`.
    pub fn dead_id(&self) -> &str {
        &self.entry.id
    }

    /// The id that it had in `orders`.
    pub fn orders_id(&self) -> &str {
        self.field("id")
    }

    /// Its key in the dead index: the reservation id, or `orders_id` if it has none.
    pub fn dead_key(&self) -> &str {
        self.field("rid")
    }

    /// Its product; `None` if the entry has no valid product id.
    pub fn product(&self) -> Option<ProductId> {
        self.field("p").parse().ok()
    }

    /// Why it was moved to `dead`.
    pub fn reason(&self) -> &str {
        self.field("reason")
    }

    /// The SQLSTATE of Postgres; empty if Postgres gave none.
    pub fn sqlstate(&self) -> &str {
        self.field("sqlstate")
    }

    /// When it was moved to `dead`, in milliseconds since 1970.
    pub fn moved_at_ms(&self) -> i64 {
        self.field("at").parse().unwrap_or(0)
    }

    /// The reservation it is; an error if this program did not write it.
    pub fn reservation_id(&self) -> Result<ReservationId, EntryError> {
        self.entry.reservation_id(self.partition, self.orders_id())
    }

    /// The order in it, as [`Entry::order`].
    pub fn order(&self) -> Result<Order, EntryError> {
        self.entry.order(self.partition, self.orders_id())
    }
}

impl Streams {
    /// Moves an order to `dead` if it is still in `orders`; returns whether it was.
    pub async fn move_to_dead(
        &self,
        partition: Partition,
        request: &MoveToDead,
    ) -> Result<bool, RedisCallError> {
        let MoveToDead { entry_id, reservation_id, reason, sqlstate } = request;
        let dead_key = reservation_id.map_or_else(|| entry_id.clone(), |id| id.to_string());
        let args = [GROUP, entry_id, &dead_key, reason, sqlstate.as_deref().unwrap_or_default()];
        let moved = self.partitions.run(partition, &MOVE_TO_DEAD, &args).await?;
        moved.map_err(|refusal| {
            let source =
                (redis::ErrorKind::Extension, "Redis refused to write the dead entry", refusal);
            RedisCallError::Unavailable { applied: Applied::No, source: source.into() }
        })
    }

    /// At most `count` dead entries of a partition, the oldest first, after `after` (an id in `dead`) and up to `last`
    /// (without it, to the newest).
    pub async fn dead(
        &self,
        partition: Partition,
        after: Option<&str>,
        last: Option<&str>,
        count: usize,
    ) -> Result<DeadPage, RedisCallError> {
        let first = after.map_or("-".to_owned(), |id| format!("({id}"));
        let args = ["", &first, last.unwrap_or("+"), &count.to_string()];
        self.read_dead(partition, &args).await.map(Option::unwrap_or_default)
    }

    /// Reads dead entries by a script that begins with the fence: a Redis with older data (a restored backup) holds
    /// entries that are removed; `None` where no entry has the requested dead key.
    async fn read_dead(
        &self,
        partition: Partition,
        args: &[&str],
    ) -> Result<Option<DeadPage>, RedisCallError> {
        let page = self.partitions.run(partition, &DEAD, args).await?;
        Ok(page.map(|(newest, entries)| {
            let entries = entries.into_iter().map(|entry| DeadEntry { partition, entry });
            DeadPage { entries: entries.collect(), newest }
        }))
    }

    /// The time by the clock of the Redis of a partition, which dates its dead entries; in milliseconds since 1970.
    pub async fn now_ms(&self, partition: Partition) -> Result<i64, RedisCallError> {
        let time = redis::cmd("TIME");
        let (seconds, micros): (i64, i64) =
            time.query_async(&mut self.partitions.connection(partition)).await?;
        Ok(seconds * 1000 + micros / 1000)
    }

    /// The dead entry with this key in the dead index.
    pub async fn dead_of(
        &self,
        partition: Partition,
        dead_key: &str,
    ) -> Result<Option<DeadEntry>, RedisCallError> {
        let page = self.read_dead(partition, &[dead_key, "", "", "1"]).await?;
        Ok(page.and_then(|page| page.entries.into_iter().next()))
    }

    /// Removes a dead entry whose order is in the ledger; returns whether it was still there.
    pub async fn discard(&self, dead: &DeadEntry) -> Result<bool, RedisCallError> {
        self.partitions.run(dead.partition, &DISCARD, &[dead.dead_id(), dead.dead_key()]).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_with_a_wrong_number_of_elements_has_no_entries() {
        let read = |elements: &str| entries(&elements.split_whitespace().collect::<Vec<_>>());
        let entries = read("1-1 2 p shoe 1-2 0 1-3 4 p hat u ann").unwrap();
        let counts: Vec<usize> = entries.iter().map(|entry| entry.fields.len()).collect();
        assert_eq!(counts, [1, 0, 2]);
        assert_eq!((entries[2].id.as_str(), entries[2].field("u")), ("1-3", Some("ann")));
        assert_eq!(read("").unwrap(), []);
        for broken in ["1-1", "1-1 two p shoe", "1-1 1 p", "1-1 3 p shoe", "1-1 2 p shoe 1-2"] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
