//! Request ids that were remembered before a rebuild: each is looked up, and those of lost orders stay remembered
//! as lost (`lua/lost.lua`).

use super::Stock;
use crate::{
    domain::{Epoch, Partition, ReservationId, split_field},
    redis::FenceError,
};

/// Fields a page.
const PAGE: usize = 500;

/// A request id that was remembered before a rebuild and that the ledger did not confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldClaim {
    /// User, product and request id.
    field: String,
    /// The order that it stands for; none, if no program of ours wrote it.
    pub id: Option<ReservationId>,
}

impl OldClaim {
    fn new(partition: Partition, (field, value): (String, String)) -> Self {
        let words: Vec<&str> = value.split(' ').collect();
        let id = match words.as_slice() {
            [entry, random, _] => entry.split_once('-').and_then(|(epoch, seq)| {
                let (epoch, seq) = (Epoch(epoch.parse().ok()?), seq.parse().ok()?);
                let random = u64::from_str_radix(random, 16).ok()?;
                ReservationId::new(partition.number(), epoch, seq, random).ok()
            }),
            _ => None,
        };
        Self { field, id }
    }

    /// Whose it is: user and product.
    pub fn buyer(&self) -> (String, String) {
        let mut parts = split_field(&self.field).into_iter();
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    }
}

/// A hash of request ids that a seizure has set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldBucket(i64);

impl Stock {
    /// The buckets whose request ids a seizure has set aside, by the clock of Redis.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn old_buckets(&self) -> Result<Vec<OldBucket>, FenceError> {
        let (seconds, _): (i64, i64) =
            redis::cmd("TIME").query_async(&mut self.partitions.connection()).await?;
        let window = self.settings.id_window();
        let now = window.bucket_of(seconds * 1000);
        // One more than seize.lua sets aside on either side: time goes on.
        Ok((now - window.earlier_buckets() - 1..=now + 2).map(OldBucket).collect())
    }

    fn old_claims_key(&self, partition: Partition, OldBucket(bucket): OldBucket) -> String {
        format!("{}:{bucket}:old", self.partitions.keys().claims(partition))
    }

    /// A page of the request ids that are left of a bucket, and where the next page begins (0: no more pages).
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn old_claims(
        &self,
        partition: Partition,
        bucket: OldBucket,
        cursor: u64,
    ) -> Result<(u64, Vec<OldClaim>), FenceError> {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(self.old_claims_key(partition, bucket)).arg(cursor).arg("COUNT").arg(PAGE);
        let (next, page): (u64, Vec<(String, String)>) =
            scan.query_async(&mut self.partitions.connection()).await?;
        Ok((next, page.into_iter().map(|claim| OldClaim::new(partition, claim)).collect()))
    }

    /// Concludes with a page: these request ids are dropped, and those of lost orders remembered as lost for as
    /// long as they would have been.
    ///
    /// # Errors
    ///
    /// `Fenced` when this rebuild is over.
    pub async fn conclude_claims(
        &self,
        (partition, bucket): (Partition, OldBucket),
        epoch: Epoch,
        claims: &[(OldClaim, bool)],
    ) -> Result<(), FenceError> {
        let keys = self.partitions.keys();
        let old = self.old_claims_key(partition, bucket);
        let keys = [keys.meta(partition), old, keys.lost(partition)];
        let until = self.settings.id_window().until_ms(bucket.0).to_string();
        for claims in claims.chunks(PAGE) {
            let mut words = vec![until.clone()];
            for (claim, is_lost) in claims {
                let lost = claim.id.filter(|_| *is_lost);
                let value = lost.map(|id| format!("{} {:x}", id.entry_id(), id.random()));
                words.extend([claim.field.clone(), value.unwrap_or_default()]);
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.partitions.run_in(epoch, &self.scripts.lost, &keys, &words).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PartitionCount;

    #[test]
    fn a_remembered_request_id_names_its_order_and_its_buyer() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let claim = |value: &str| OldClaim::new(partition, ("ann/shoe/r:1".into(), value.into()));
        let whole = claim("2-7 ff 1700000000000");
        assert_eq!(whole.id, Some(ReservationId::new(3, Epoch(2), 7, 0xff).unwrap()));
        assert_eq!(whole.buyer(), ("ann".to_owned(), "shoe".to_owned()));
        let escaped = OldClaim::new(partition, ("a%2F%25b/shoe/r%2F1".into(), String::new()));
        assert_eq!(escaped.buyer(), ("a/%b".to_owned(), "shoe".to_owned()));
        for bad in ["", "2-7", "2-7 zz 1", "0-7 ff 1", "x"] {
            assert_eq!(claim(bad).id, None, "{bad}");
        }
    }
}
