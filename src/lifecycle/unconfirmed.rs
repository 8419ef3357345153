//! Request ids that were remembered before a rebuild and that the ledger did not confirm: each is looked up, and those
//! of lost orders stay remembered as lost (`lua/resolve_requests.lua`).

use super::Lifecycle;
use crate::{
    domain::{Partition, PartitionEpoch, ReservationId, split_field},
    redis::{Key, RedisCallError, script},
};

/// The most fields per page.
const PAGE: usize = 500;

script!(RESOLVE_REQUESTS: () = "resolve_requests", include_str!("../../lua/resolve_requests.lua"),
    [Meta, Lost] {
    ["ok"] => (),
});

/// A request id that was remembered before a rebuild and that the ledger did not confirm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnconfirmedRequest {
    /// User, product and request id.
    field: String,
    /// The order that it belongs to; none if this program did not write it.
    pub id: Option<ReservationId>,
}

impl UnconfirmedRequest {
    fn new(partition: Partition, (field, value): (String, String)) -> Self {
        let parts: Vec<&str> = value.split(' ').collect();
        let id = match *parts.as_slice() {
            [entry_id, random, _] => ReservationId::from_entry(partition, entry_id, random),
            _ => None,
        };
        Self { field, id }
    }

    /// Its user and product.
    pub fn user_and_product(&self) -> (String, String) {
        let mut parts = split_field(&self.field).into_iter();
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    }
}

/// A hash of request ids that a rebuild has set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldBucket(i64);

impl Lifecycle {
    /// The buckets whose request ids a rebuild has set aside, by the clock of Redis.
    pub async fn old_buckets(
        &self,
        partition: Partition,
    ) -> Result<Vec<OldBucket>, RedisCallError> {
        let (seconds, _): (i64, i64) =
            redis::cmd("TIME").query_async(&mut self.partitions.connection(partition)).await?;
        let window = self.idempotency_window;
        let now = window.bucket_of(seconds * 1000);
        // One more on either side than begin_rebuild.lua sets aside: time has passed since.
        Ok((now - window.earlier_buckets() - 1..=now + 2).map(OldBucket).collect())
    }

    /// A page of the request ids that are left of a bucket, and where the next page begins (0: no more pages).
    pub async fn unconfirmed(
        &self,
        partition: Partition,
        OldBucket(bucket): OldBucket,
        cursor: u64,
    ) -> Result<(u64, Vec<UnconfirmedRequest>), RedisCallError> {
        let key = self.partitions.key(partition, Key::OldIdempotencyBucket(bucket));
        let mut scan = redis::cmd("HSCAN");
        scan.arg(key).arg(cursor).arg("COUNT").arg(PAGE);
        let (next, page): (u64, Vec<(String, String)>) =
            scan.query_async(&mut self.partitions.connection(partition)).await?;
        let requests = page.into_iter().map(|field| UnconfirmedRequest::new(partition, field));
        Ok((next, requests.collect()))
    }

    /// Removes request ids from their bucket; those of lost orders (`true`) are remembered as lost for as long as they
    /// would have been remembered.
    pub async fn resolve(
        &self,
        at: PartitionEpoch,
        OldBucket(bucket): OldBucket,
        requests: &[(UnconfirmedRequest, bool)],
    ) -> Result<(), RedisCallError> {
        let until_ms = self.idempotency_window.until_ms(bucket).to_string();
        for page in requests.chunks(PAGE) {
            let values = page.iter().map(|(request, is_lost)| {
                let lost = request.id.filter(|_| *is_lost);
                lost.map(lost_text).unwrap_or_default()
            });
            let values: Vec<String> = values.collect();
            let mut args = vec![until_ms.as_str()];
            for ((request, _), value) in page.iter().zip(&values) {
                args.extend([request.field.as_str(), value]);
            }
            let keys = [Key::OldIdempotencyBucket(bucket)];
            self.partitions.run_with_keys(at, &RESOLVE_REQUESTS, &keys, &args).await?;
        }
        Ok(())
    }
}

/// What `lost` holds for a request id.
fn lost_text(id: ReservationId) -> String {
    format!("{} {}", id.entry_id(), ReservationId::random_text(id.random()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Epoch, PartitionCount};

    #[test]
    fn request_has_its_order_its_user_and_its_product() {
        let partition = PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let request =
            |value: &str| UnconfirmedRequest::new(partition, ("ann/shoe/r:1".into(), value.into()));
        let whole = request("2-7 ff 1700000000000");
        assert_eq!(whole.id, Some(ReservationId::new(3, Epoch(2), 7, 0xff).unwrap()));
        assert_eq!(whole.user_and_product(), ("ann".to_owned(), "shoe".to_owned()));
        let field = ("a%2F%25b/shoe/r%2F1".into(), String::new());
        let escaped = UnconfirmedRequest::new(partition, field);
        assert_eq!(escaped.user_and_product(), ("a/%b".to_owned(), "shoe".to_owned()));
        for bad in ["", "2-7", "2-7 zz 1", "0-7 ff 1", "x"] {
            assert_eq!(request(bad).id, None, "{bad}");
        }
    }
}
