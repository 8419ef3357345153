//! Every key in Redis; no other module spells one.
//!
//! All keys of a partition carry its hash tag, so that one script touches one slot.

use std::fmt;

use crate::domain::Partition;

/// The consumer group of every orders stream.
pub const GROUP: &str = "ledger";

/// A key of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Hash: deployment, epoch, status, replid, seq, stored, timeline, moved.
    Meta,
    /// Never written: a command on it shows whether Redis accepts writes.
    Scratch,
    /// Hash: product → available units.
    Stock,
    /// Hash: product → units granted so far, as known to Redis.
    Supply,
    /// Hash: product → version, status, per-user limit, opens, closes.
    Catalogue,
    /// Base of the names of the idempotency hashes, from which scripts build them.
    Idempotency,
    /// Hash of one bucket of time: user, product, request → entry id, random part and time of the accept (`src/domain/claim.rs`).
    IdempotencyBucket(i64),
    /// Such a hash that a rebuild has set aside.
    OldIdempotencyBucket(i64),
    /// Hash: user, product, request → entry id and random part of an order that is in neither store.
    Lost,
    /// Hash: user, product → units, for products with a limit.
    Bought,
    /// Stream: one entry per accepted reservation, id `<epoch>-<seq>`.
    Orders,
    /// Stream: entries that could not be stored.
    Dead,
    /// Hash: dead key → id of its entry in `dead`.
    DeadIndex,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Meta => "meta",
            Self::Scratch => "scratch",
            Self::Stock => "stock",
            Self::Supply => "supply",
            Self::Catalogue => "catalogue",
            Self::Idempotency => "idempotency",
            Self::IdempotencyBucket(bucket) => return write!(f, "idempotency:{bucket}"),
            Self::OldIdempotencyBucket(bucket) => return write!(f, "idempotency:{bucket}:old"),
            Self::Lost => "lost",
            Self::Bought => "bought",
            Self::Orders => "orders",
            Self::Dead => "dead",
            Self::DeadIndex => "dead_index",
        })
    }
}

impl Key {
    /// The whole name, under a prefix (`yoink` by default).
    pub(super) fn name(self, prefix: &str, partition: Partition) -> String {
        format!("{prefix}:{{{partition}}}:{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    #[test]
    fn keys_have_their_documented_names() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        for (key, name) in [
            (Key::Meta, "meta"),
            (Key::Scratch, "scratch"),
            (Key::Stock, "stock"),
            (Key::Supply, "supply"),
            (Key::Catalogue, "catalogue"),
            (Key::Idempotency, "idempotency"),
            (Key::IdempotencyBucket(7), "idempotency:7"),
            (Key::OldIdempotencyBucket(7), "idempotency:7:old"),
            (Key::Lost, "lost"),
            (Key::Bought, "bought"),
            (Key::Orders, "orders"),
            (Key::Dead, "dead"),
            (Key::DeadIndex, "dead_index"),
        ] {
            assert_eq!(key.name("yoink", partition), format!("yoink:{{3}}:{name}"));
        }
    }
}
