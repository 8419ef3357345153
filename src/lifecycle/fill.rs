//! `lua/fill.lua`: fills the hashes of a closed partition from the ledger (R9).

use std::collections::BTreeMap;

use super::Lifecycle;
use crate::{
    domain::{Bought, IdempotencyRecord, PartitionEpoch, ProductWithSold, claim_text, join_field},
    redis::{Key, RedisCallError, script},
};

/// The most fields per script call.
const BATCH_MAX: usize = 1000;
/// The hash does not expire.
const NEVER: &str = "0";

script!(FILL: () = "fill", include_str!("../../lua/fill.lua"), [Meta] {
    ["ok"] => (),
});

impl Lifecycle {
    /// Writes products' stock, supply and terms.
    pub async fn fill_products(
        &self,
        at: PartitionEpoch,
        products: &[ProductWithSold],
    ) -> Result<(), RedisCallError> {
        let (mut stock, mut supply, mut catalogue) = (Vec::new(), Vec::new(), Vec::new());
        for ProductWithSold { product, sold } in products {
            let id = || product.id.to_string();
            stock.push((id(), (product.supply - sold).to_string()));
            supply.push((id(), product.supply.to_string()));
            catalogue.push((id(), product.redis_fields().join("|")));
        }
        self.fill(at, &[Key::Stock], NEVER, stock).await?;
        self.fill(at, &[Key::Supply], NEVER, supply).await?;
        self.fill(at, &[Key::Catalogue], NEVER, catalogue).await
    }

    /// Writes how many units users have bought of products with a limit.
    pub async fn fill_bought(
        &self,
        at: PartitionEpoch,
        bought: &[Bought],
    ) -> Result<(), RedisCallError> {
        let fields = bought.iter().map(|Bought { user, product, units }| {
            (join_field(&[user.as_str(), product.as_str()]), units.to_string())
        });
        self.fill(at, &[Key::Bought], NEVER, fields.collect()).await
    }

    /// The earliest accept whose request id must still be remembered at `now_ms`.
    pub fn remembered_since_ms(&self, now_ms: i64) -> i64 {
        let window = self.idempotency_window;
        // One bucket more than is looked up: this clock may be ahead of that of Redis.
        (window.bucket_of(now_ms) - window.earlier_buckets() - 1) * window.width_ms()
    }

    /// Writes the request ids of confirmed orders, each into the bucket of its accept.
    pub async fn fill_idempotency(
        &self,
        at: PartitionEpoch,
        records: &[IdempotencyRecord],
    ) -> Result<(), RedisCallError> {
        let window = self.idempotency_window;
        let mut buckets = BTreeMap::<i64, Vec<(String, String)>>::new();
        for IdempotencyRecord { id, user, product, request, reserved_at_ms } in records {
            let field = join_field(&[user, product, request]);
            let value = claim_text(*id, *reserved_at_ms);
            buckets.entry(window.bucket_of(*reserved_at_ms)).or_default().push((field, value));
        }
        for (bucket, fields) in buckets {
            let keys = [Key::IdempotencyBucket(bucket), Key::OldIdempotencyBucket(bucket)];
            self.fill(at, &keys, &window.until_ms(bucket).to_string(), fields).await?;
        }
        Ok(())
    }

    async fn fill(
        &self,
        at: PartitionEpoch,
        keys: &[Key],
        expires: &str,
        fields: Vec<(String, String)>,
    ) -> Result<(), RedisCallError> {
        // Redis runs one script while the arguments of the next one are written.
        for two in fields.chunks(2 * BATCH_MAX) {
            let (first, second) = two.split_at(two.len().min(BATCH_MAX));
            tokio::try_join!(
                self.fill_batch(at, keys, expires, first),
                self.fill_batch(at, keys, expires, second)
            )?;
        }
        Ok(())
    }

    async fn fill_batch(
        &self,
        at: PartitionEpoch,
        keys: &[Key],
        expires: &str,
        fields: &[(String, String)],
    ) -> Result<(), RedisCallError> {
        if fields.is_empty() {
            return Ok(());
        }
        let mut args = vec![expires];
        args.extend(fields.iter().flat_map(|(field, value)| [field.as_str(), value.as_str()]));
        self.partitions.run_with_keys(at, &FILL, keys, &args).await
    }
}
