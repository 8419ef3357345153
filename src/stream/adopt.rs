//! `lua/adopt.lua`: entries that were delivered and are in nobody's hands.

use super::{Delivery, Streams};
use crate::{
    domain::Partition,
    redis::{FenceError, GROUP},
};

impl Streams {
    /// Takes what nobody has pending among the next `count` delivered entries. `after` is the last entry
    /// that was looked at; when all were, the next look begins at the start.
    ///
    /// # Errors
    ///
    /// As [`crate::redis::Partitions::run`]; whatever was taken all the same comes back when it was idle
    /// for long enough.
    pub async fn adopt(
        &self,
        partition: Partition,
        consumer: &str,
        after: &mut String,
        count: usize,
    ) -> Result<Vec<Delivery>, FenceError> {
        let keys =
            [self.partitions.keys().meta(partition), self.partitions.keys().orders(partition)];
        let count = count.to_string();
        let args = [GROUP, consumer, after, &count];
        let answer = self.partitions.run(partition, &self.scripts.adopt, &keys, &args).await?;
        let [status, last, ids @ ..] = answer.as_slice() else {
            return Err(FenceError::Malformed(answer));
        };
        if status != "ok" {
            return Err(FenceError::Malformed(answer));
        }
        after.clone_from(last);
        let mut taken = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(entry) = self.entry(partition, id).await? {
                taken.push(Delivery { entry, deliveries: 1 });
            }
        }
        Ok(taken)
    }
}
