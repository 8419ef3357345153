//! `lua/find.lua`: the entry of a reservation that is not settled yet.

use super::{Streams, entry::Entry};
use crate::{
    domain::{Epoch, Partition, ReservationId},
    redis::FenceError,
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

impl Streams {
    /// Looks for the entry of a reservation in `orders` and in `dead`, at one moment. An order only ever
    /// moves from there to the ledger: whoever then asks the ledger misses nothing that was accepted in
    /// the epoch that this returns. Behind the fence, since an older Redis holds entries that are settled.
    ///
    /// # Errors
    ///
    /// As [`crate::redis::Partitions::run`].
    pub async fn find(&self, partition: Partition, id: ReservationId) -> Result<Found, FenceError> {
        let epoch = self.partitions.epoch(partition)?;
        let keys = self.partitions.keys();
        let keys = [
            keys.meta(partition),
            keys.orders(partition),
            keys.dead(partition),
            keys.dead_index(partition),
        ];
        let (entry_id, named, random) =
            (id.entry_id(), id.to_string(), format!("{:x}", id.random()));
        let args = [entry_id.as_str(), &named, &random];
        let answer = self.partitions.run_in(epoch, &self.scripts.find, &keys, &args).await?;
        match answer.as_slice() {
            [status, fields @ ..] if status == "found" && fields.len() % 2 == 0 => {
                let pairs = fields.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
                Ok(Found::Entry(Entry { id: entry_id, fields: pairs.collect() }))
            }
            [status, stored] if status == "none" => match stored.parse() {
                Ok(stored) => Ok(Found::Nothing { epoch, stored }),
                Err(_) => Err(FenceError::Malformed(answer)),
            },
            _ => Err(FenceError::Malformed(answer)),
        }
    }
}
