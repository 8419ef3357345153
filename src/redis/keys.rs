//! Every key in Redis. Nothing else may spell one.
//!
//! All keys of a partition carry its hash tag, so that one script touches one slot.

use crate::domain::Partition;

/// The consumer group of every orders stream.
pub const GROUP: &str = "ledger";

/// Names the keys under a prefix.
#[derive(Debug, Clone)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// Keys under `prefix` (`yoink` by default).
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    fn key(&self, partition: Partition, name: &str) -> String {
        format!("{}:{{{partition}}}:{name}", self.prefix)
    }

    /// Hash: deployment, epoch, status, replid, seq, stored, timeline.
    pub fn meta(&self, partition: Partition) -> String {
        self.key(partition, "meta")
    }

    /// Holds nothing: a command on it tells whether Redis takes writes.
    pub fn scratch(&self, partition: Partition) -> String {
        self.key(partition, "scratch")
    }

    /// Hash: product → available units.
    pub fn stock(&self, partition: Partition) -> String {
        self.key(partition, "stock")
    }

    /// Hash: product → units granted so far, as known to Redis.
    pub fn supply(&self, partition: Partition) -> String {
        self.key(partition, "supply")
    }

    /// Hash: product → version, status, per-user limit, opens, closes.
    pub fn catalogue(&self, partition: Partition) -> String {
        self.key(partition, "catalogue")
    }

    /// Base of the hashes `<base>:<bucket>`: user, product, request → entry id and random part.
    pub fn claims(&self, partition: Partition) -> String {
        self.key(partition, "claims")
    }

    /// Hash: user, product, request → entry id and random part of an order that is in neither store.
    pub fn lost(&self, partition: Partition) -> String {
        self.key(partition, "lost")
    }

    /// Hash: user, product → units, for products with a limit.
    pub fn bought(&self, partition: Partition) -> String {
        self.key(partition, "bought")
    }

    /// Stream: one entry per accepted reservation, id `<epoch>-<seq>`.
    pub fn orders(&self, partition: Partition) -> String {
        self.key(partition, "orders")
    }

    /// Stream: entries given up on.
    pub fn dead(&self, partition: Partition) -> String {
        self.key(partition, "dead")
    }

    /// Hash: reservation id → its entry in `dead`.
    pub fn dead_index(&self, partition: Partition) -> String {
        self.key(partition, "dead_index")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    #[test]
    fn keys_are_as_the_design_names_them() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let keys = Keys::new("yoink");
        assert_eq!(keys.meta(partition), "yoink:{3}:meta");
        assert_eq!(keys.scratch(partition), "yoink:{3}:scratch");
        assert_eq!(keys.stock(partition), "yoink:{3}:stock");
        assert_eq!(keys.supply(partition), "yoink:{3}:supply");
        assert_eq!(keys.catalogue(partition), "yoink:{3}:catalogue");
        assert_eq!(keys.claims(partition), "yoink:{3}:claims");
        assert_eq!(keys.lost(partition), "yoink:{3}:lost");
        assert_eq!(keys.bought(partition), "yoink:{3}:bought");
        assert_eq!(keys.orders(partition), "yoink:{3}:orders");
        assert_eq!(keys.dead(partition), "yoink:{3}:dead");
        assert_eq!(keys.dead_index(partition), "yoink:{3}:dead_index");
    }
}
