//! `lua/find.lua`: finds the entry of a reservation that is not settled yet.

use super::{
    Streams,
    entry::{Entry, Fields, fields},
};
use crate::{
    domain::{Epoch, Partition, PartitionEpoch, ReservationId},
    redis::{FenceError, script},
};

/// What the streams of a partition hold of a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Its entry, in `orders` or in `dead`.
    Entry(Entry),
    /// Nothing.
    Nothing {
        /// The epoch in which they were read.
        epoch: Epoch,
        /// The highest seq of this epoch that was settled as stored; 0 for none.
        stored: u64,
    },
}

// The fields of the entry, or the highest seq that was settled as stored.
script!(FIND: Result<Fields, u64> = "find", include_str!("../../lua/find.lua"),
    [Meta, Orders, Dead, DeadIndex] {
    ["found", ref elements @ ..] => Ok(fields(elements)?),
    ["none", stored] => Err(stored.parse().ok()?),
});

impl Streams {
    /// Searches `orders` and `dead` for the entry of a reservation, at one moment. An order only ever moves from there
    /// to the ledger: a caller that reads the ledger afterwards misses no order that was accepted in the epoch that
    /// this returns. It runs under the fence, since an older Redis holds entries that are settled.
    pub async fn find(&self, partition: Partition, id: ReservationId) -> Result<Found, FenceError> {
        let epoch = self.partitions.epoch(partition)?;
        let (entry_id, random) = (id.entry_id(), format!("{:x}", id.random()));
        let args = [entry_id.as_str(), &id.to_string(), &random];
        let at = PartitionEpoch { partition, epoch };
        Ok(match self.partitions.run_in(at, &FIND, &args).await? {
            Ok(fields) => Found::Entry(Entry { id: entry_id, fields }),
            Err(stored) => Found::Nothing { epoch, stored },
        })
    }
}
