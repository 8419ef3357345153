//! `lua/adopt.lua`: takes entries that were delivered and are pending with no consumer.

use super::{Delivery, Streams};
use crate::{
    domain::Partition,
    redis::{FenceError, GROUP, script},
};

// The last entry checked, and the ids of the entries taken.
script!(ADOPT: (String, Vec<String>) = "adopt", include_str!("../../lua/adopt.lua"),
    [Meta, Orders] {
    ["ok", last, ref ids @ ..] => (last.to_owned(), ids.iter().map(|&id| id.to_owned()).collect()),
});

impl Streams {
    /// Takes those of the next `count` delivered entries that no consumer has pending. `after` is the last entry
    /// checked; when all were, the next call begins at the start of the stream.
    ///
    /// # Errors
    ///
    /// As [`crate::redis::Partitions::run`]; entries that were taken nevertheless are taken over later, as idle
    /// ones are.
    pub async fn adopt(
        &self,
        partition: Partition,
        consumer: &str,
        after: &mut String,
        count: usize,
    ) -> Result<Vec<Delivery>, FenceError> {
        let args = [GROUP, consumer, after, &count.to_string()];
        let (last, ids) = self.partitions.run(partition, &ADOPT, &args).await?;
        *after = last;
        let mut taken = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(entry) = self.entry(partition, &id).await? {
                taken.push(Delivery { entry, deliveries: 1 });
            }
        }
        Ok(taken)
    }
}
