//! The consumer group of `orders`: read, claim, adopt, settle.

use redis::{
    AsyncCommands as _, RedisError,
    streams::{StreamInfoConsumer, StreamInfoConsumersReply},
};

use super::{
    Streams,
    entry::{Entry, RawEntry},
};
use crate::{
    domain::Partition,
    redis::{Connection, GROUP, Key, RedisCallError, script},
};

/// An entry that is pending with a consumer: it was delivered and is not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingEntry {
    /// The entry.
    pub entry: Entry,
    /// Its delivery count: one, plus its own failures (R4).
    pub deliveries: u32,
}

/// The most entries that a consumer gives up when it ends; it has fewer.
const IDLE_MAX: usize = 5_000;

/// A row of XPENDING: entry id, consumer, idle time, delivery count.
type PendingRow = (String, String, u64, u32);

script!(SETTLE: () = "settle", include_str!("../../lua/settle.lua"), [Meta, Orders] {
    ["ok", _] => (),
});

// The last entry checked, and the ids of the entries adopted.
script!(ADOPT: (String, Vec<String>) = "adopt", include_str!("../../lua/adopt.lua"),
    [Meta, Orders] {
    ["ok", last, ref ids @ ..] => (last.to_owned(), ids.iter().map(|&id| id.to_owned()).collect()),
});

script!(REMOVE_CONSUMER: () = "remove_consumer", include_str!("../../lua/remove_consumer.lua"),
    [Meta, Orders] {
    ["removed" | "has_pending"] => (),
});

impl Streams {
    /// Reads new entries, waiting up to `block_ms` for the first, on a connection of its own.
    pub async fn read_new(
        &self,
        connection: &mut Connection,
        partition: Partition,
        consumer: &str,
        (count, block_ms): (usize, usize),
    ) -> Result<Vec<PendingEntry>, RedisError> {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(consumer).arg("COUNT").arg(count);
        if block_ms > 0 {
            command.arg("BLOCK").arg(block_ms);
        }
        command.arg("STREAMS").arg(self.partitions.key(partition, Key::Orders)).arg(">");
        let streams: Option<Vec<(String, Vec<RawEntry>)>> = command.query_async(connection).await?;
        let raw = streams.unwrap_or_default().into_iter().flat_map(|(_, entries)| entries);
        let entries = raw.filter_map(Entry::from_raw);
        Ok(entries.map(|entry| PendingEntry { entry, deliveries: 1 }).collect())
    }

    /// Takes at most `count` entries that nothing touched for `idle_ms` and that are pending with the consumer `from`
    /// (`None`: with any), without counting a delivery. From `consumer` itself, these are entries that Redis delivered
    /// in an answer that was lost.
    pub async fn claim(
        &self,
        partition: Partition,
        consumer: &str,
        from: Option<&str>,
        (idle_ms, count): (u64, usize),
    ) -> Result<Vec<PendingEntry>, RedisError> {
        let mut connection = self.partitions.connection(partition);
        let key = self.partitions.key(partition, Key::Orders);
        let mut pending = redis::cmd("XPENDING");
        pending.arg(&key).arg(GROUP).arg("IDLE").arg(idle_ms).arg("-").arg("+").arg(count);
        let pending: Vec<PendingRow> = pending.arg(from).query_async(&mut connection).await?;
        if pending.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<&str> = pending.iter().map(|(id, ..)| id.as_str()).collect();
        let mut claim = redis::cmd("XCLAIM");
        claim.arg(&key).arg(GROUP).arg(consumer).arg(idle_ms).arg(&ids).arg("JUSTID");
        let claimed: Vec<String> = claim.query_async(&mut connection).await?;
        let mut taken = Vec::with_capacity(claimed.len());
        for (id, _, _, deliveries) in pending.into_iter().filter(|(id, ..)| claimed.contains(id)) {
            match self.entry(partition, &id).await? {
                Some(entry) => taken.push(PendingEntry { entry, deliveries }),
                // Deleted without an acknowledgement, which follows here.
                None => connection.xack::<_, _, _, ()>(&key, GROUP, &[id]).await?,
            }
        }
        Ok(taken)
    }

    /// Adopts those of the next `count` delivered entries that no consumer has pending. `after` is the last entry
    /// checked; when all were, the next call begins at the start of the stream. Entries that were adopted although
    /// this fails are taken over later, as idle ones are.
    pub async fn adopt(
        &self,
        partition: Partition,
        consumer: &str,
        after: &mut String,
        count: usize,
    ) -> Result<Vec<PendingEntry>, RedisCallError> {
        let args = [GROUP, consumer, after, &count.to_string()];
        let (last, ids) = self.partitions.run(partition, &ADOPT, &args).await?;
        *after = last;
        let mut adopted = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(entry) = self.entry(partition, &id).await? {
                adopted.push(PendingEntry { entry, deliveries: 1 });
            }
        }
        Ok(adopted)
    }

    /// One entry of `orders`, if it is still there.
    pub async fn entry(&self, partition: Partition, id: &str) -> Result<Option<Entry>, RedisError> {
        let key = self.partitions.key(partition, Key::Orders);
        let found: Vec<RawEntry> =
            self.partitions.connection(partition).xrange(key, id, id).await?;
        Ok(found.into_iter().find_map(Entry::from_raw))
    }

    /// Writes an order's own failure to its delivery count.
    pub async fn set_deliveries(
        &self,
        partition: Partition,
        consumer: &str,
        id: &str,
        deliveries: u32,
    ) -> Result<(), RedisError> {
        let key = self.partitions.key(partition, Key::Orders);
        let mut claim = redis::cmd("XCLAIM");
        claim.arg(key).arg(GROUP).arg(consumer).arg(0).arg(id);
        claim.arg("JUSTID").arg("RETRYCOUNT").arg(deliveries);
        let _ids: Vec<String> =
            claim.query_async(&mut self.partitions.connection(partition)).await?;
        Ok(())
    }

    /// Makes the pending entries of a consumer look as if nothing had touched them for `idle_ms`, so that they can be taken
    /// over at once. Counts no delivery (R4). An entry that another consumer takes over meanwhile may be taken over again.
    pub async fn make_idle(
        &self,
        partition: Partition,
        consumer: &str,
        idle_ms: u64,
    ) -> Result<(), RedisError> {
        let mut connection = self.partitions.connection(partition);
        let key = self.partitions.key(partition, Key::Orders);
        let mut pending = redis::cmd("XPENDING");
        pending.arg(&key).arg(GROUP).arg("-").arg("+").arg(IDLE_MAX).arg(consumer);
        let pending: Vec<PendingRow> = pending.query_async(&mut connection).await?;
        if pending.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = pending.iter().map(|(id, ..)| id.as_str()).collect();
        let mut claim = redis::cmd("XCLAIM");
        claim.arg(&key).arg(GROUP).arg(consumer).arg(0).arg(&ids);
        claim.arg("IDLE").arg(idle_ms).arg("JUSTID");
        let _ids: Vec<String> = claim.query_async(&mut connection).await?;
        Ok(())
    }

    /// Acknowledges and deletes orders that the ledger holds. Repeating it changes nothing.
    pub async fn settle(&self, partition: Partition, ids: &[&str]) -> Result<(), RedisCallError> {
        let mut args = vec![GROUP];
        args.extend_from_slice(ids);
        self.partitions.run(partition, &SETTLE, &args).await
    }

    /// Creates the group again where it was deleted: at 0, so that everything in the stream is delivered again.
    /// A stream that does not exist is an error: only a rebuild may create it.
    pub async fn restore_group(&self, partition: Partition) -> Result<(), RedisError> {
        let key = self.partitions.key(partition, Key::Orders);
        self.partitions.connection(partition).xgroup_create(key, GROUP, "0").await
    }

    /// Removes a consumer that has nothing pending.
    pub async fn remove_consumer(
        &self,
        partition: Partition,
        consumer: &str,
    ) -> Result<(), RedisCallError> {
        self.partitions.run(partition, &REMOVE_CONSUMER, &[GROUP, consumer]).await
    }

    /// Consumers that have nothing pending and read nothing for `idle_ms`.
    pub async fn idle_consumers(
        &self,
        partition: Partition,
        idle_ms: usize,
    ) -> Result<Vec<String>, RedisError> {
        let consumers = self.consumers(partition).await?.into_iter();
        let idle = consumers.filter(|consumer| consumer.pending == 0 && consumer.idle >= idle_ms);
        Ok(idle.map(|consumer| consumer.name).collect())
    }

    /// Whether a consumer has read entries within the last `idle_ms`. Before version 7.2, Redis does not record a read that
    /// gets none.
    pub async fn is_reading(
        &self,
        partition: Partition,
        consumer: &str,
        idle_ms: usize,
    ) -> Result<bool, RedisError> {
        let consumers = self.consumers(partition).await?;
        Ok(consumers.iter().any(|found| found.name == consumer && found.idle < idle_ms))
    }

    async fn consumers(&self, partition: Partition) -> Result<Vec<StreamInfoConsumer>, RedisError> {
        let key = self.partitions.key(partition, Key::Orders);
        let info: StreamInfoConsumersReply =
            self.partitions.connection(partition).xinfo_consumers(key, GROUP).await?;
        Ok(info.consumers)
    }
}
