//! What happens to a partition as a whole in Redis: it is opened, probed, closed, and filled again by a rebuild. Each
//! step is a script or a read; `recovery` decides which one comes next.
//!
//! Must never: open a partition that has anything in flight, or change one that is not this rebuild's.

mod fill;
mod open;
mod permissions;
mod read_meta;
mod unconfirmed;

pub use open::{Opening, RebuildStart, Reopened};
pub use permissions::NotPermitted;
pub use read_meta::Meta;
pub use unconfirmed::{OldBucket, UnconfirmedRequest};

use crate::{
    domain::{Epoch, IdempotencyWindow, Partition, PartitionEpoch},
    redis::{Partitions, RedisCallError, script},
};

/// What Redis holds of the ledger's state: what was stored since the partition was opened, and the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredState {
    /// The highest seq of this epoch that was settled; 0 for none.
    pub stored_seq: u64,
    /// The timeline of the ledger before the partition was opened, if that is known.
    pub timeline: Option<String>,
}

script!(PROBE: StoredState = "probe", include_str!("../../lua/probe.lua"), [Meta] {
    ["ok", stored_seq, timeline] => StoredState {
        stored_seq: read_meta::seq_of(stored_seq)?,
        timeline: (!timeline.is_empty()).then(|| timeline.to_owned()),
    },
});

script!(CLOSE: () = "close", include_str!("../../lua/close.lua"), [Meta] {
    ["closed"] => (),
});

/// A handle on the life cycle of every partition; clones share what is known. Calls fail when Redis is unavailable, and
/// are `Fenced` when the partition is not in the state that they need; a failed call may be repeated.
#[derive(Clone)]
pub struct Lifecycle {
    partitions: Partitions,
    idempotency_window: IdempotencyWindow,
}

impl Lifecycle {
    /// The life cycle of these partitions, whose request ids are remembered for this long at least.
    pub fn new(partitions: Partitions, idempotency_window_ms: u64) -> Self {
        Self { partitions, idempotency_window: IdempotencyWindow::new(idempotency_window_ms) }
    }

    /// The partitions.
    pub fn partitions(&self) -> &Partitions {
        &self.partitions
    }

    /// Checks whether a partition is open in the epoch in which it is known to be open; it is `Fenced` when it is not.
    pub async fn probe(&self, partition: Partition) -> Result<(), RedisCallError> {
        self.partitions.run(partition, &PROBE, &[]).await.map(drop)
    }

    /// Checks whether a partition is open in this epoch.
    pub async fn probe_in(
        &self,
        partition: Partition,
        epoch: Epoch,
    ) -> Result<StoredState, RedisCallError> {
        self.partitions.run_in_epoch(PartitionEpoch { partition, epoch }, &PROBE, &[]).await
    }

    /// Closes a partition: nothing is taken from it until it is rebuilt.
    pub async fn close(&self, partition: Partition) -> Result<(), RedisCallError> {
        self.partitions.run(partition, &CLOSE, &[]).await
    }

    /// Closes a partition that is open in this epoch.
    pub async fn close_in(&self, partition: Partition, epoch: Epoch) -> Result<(), RedisCallError> {
        self.partitions.run_in_epoch(PartitionEpoch { partition, epoch }, &CLOSE, &[]).await
    }
}
