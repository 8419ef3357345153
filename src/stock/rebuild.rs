//! Redis's half of a rebuild (R7–R9): seize, fill, open. Each script acts only while the partition is closed
//! and this rebuild's, on the instance that it was seized on.

use super::{Offer, SinceOpened, Stock, grant};
use crate::{
    domain::{Epoch, Partition, ProductId, ReservationId, UserId, join_field},
    redis::{FenceError, GROUP},
};

/// Fields a script call.
const MAX_FIELDS: usize = 1000;

/// What a seizure found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seized {
    /// The partition is closed, and this rebuild's.
    Ours,
    /// Another rebuild is further.
    Late,
    /// Redis holds another deployment's data.
    Foreign,
}

/// What an attempt at opening found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reopened {
    /// It is open.
    Opened,
    /// Something is in its streams.
    NotEmpty,
}

/// What one product's part of the hashes is.
#[derive(Debug, Clone)]
pub struct Filling {
    /// How it is offered.
    pub offer: Offer,
    /// Units ever granted.
    pub supply: i64,
    /// Units available: supply − sold, nothing being in flight.
    pub available: i64,
}

/// A confirmed order's idempotency key.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the parts of a claim")]
pub struct ClaimParts<'a> {
    pub user: &'a str,
    pub product: &'a str,
    pub request: &'a str,
    pub id: ReservationId,
    pub reserved_at_ms: i64,
}

impl Stock {
    /// Asks whether a partition is open to what is believed of it.
    ///
    /// # Errors
    ///
    /// `Fenced` when it is not.
    pub async fn probe(&self, partition: Partition) -> Result<(), FenceError> {
        self.probe_in(partition, self.partitions.epoch(partition)?).await.map(drop)
    }

    /// Asks whether a partition is open in this epoch.
    ///
    /// # Errors
    ///
    /// `Fenced` when it is not.
    pub async fn probe_in(
        &self,
        partition: Partition,
        epoch: Epoch,
    ) -> Result<SinceOpened, FenceError> {
        let keys = [self.partitions.keys().meta(partition)];
        let answer = self.partitions.run_in(epoch, &self.scripts.probe, &keys, &[]).await?;
        match answer.as_slice() {
            [_, stored, timeline] => match stored.parse() {
                Ok(stored) => Ok(SinceOpened {
                    stored,
                    timeline: Some(timeline.clone()).filter(|timeline| !timeline.is_empty()),
                }),
                Err(_) => Err(FenceError::Malformed(answer)),
            },
            _ => Err(FenceError::Malformed(answer)),
        }
    }

    /// Closes a partition under the epoch that the ledger has given this rebuild.
    ///
    /// # Errors
    ///
    /// When Redis is away.
    pub async fn seize(&self, partition: Partition, epoch: Epoch) -> Result<Seized, FenceError> {
        let keys = self.partitions.keys();
        let keys = [
            keys.meta(partition),
            keys.stock(partition),
            keys.supply(partition),
            keys.catalogue(partition),
            keys.bought(partition),
            keys.claims(partition),
        ];
        let window = self.settings.idempotency_window_ms.to_string();
        let script = &self.scripts.seize;
        let answer = self.partitions.run_in(epoch, script, &keys, &[&window]).await?;
        match answer[0].as_str() {
            "seized" => Ok(Seized::Ours),
            "late" => Ok(Seized::Late),
            "foreign" => Ok(Seized::Foreign),
            _ => Err(FenceError::Malformed(answer)),
        }
    }

    /// Writes products' stock, supply and terms.
    ///
    /// # Errors
    ///
    /// `Fenced` when this rebuild is over.
    pub async fn fill_products(
        &self,
        partition: Partition,
        epoch: Epoch,
        products: &[Filling],
    ) -> Result<(), FenceError> {
        let keys = self.partitions.keys();
        let (mut stock, mut supply, mut catalogue) = (Vec::new(), Vec::new(), Vec::new());
        for product in products {
            let words = grant::words(&product.offer);
            let id = &words[0];
            stock.push((id.clone(), product.available.to_string()));
            supply.push((id.clone(), product.supply.to_string()));
            catalogue.push((id.clone(), words[1..].join("|")));
        }
        self.fill(epoch, &[keys.meta(partition), keys.stock(partition)], "0", stock).await?;
        self.fill(epoch, &[keys.meta(partition), keys.supply(partition)], "0", supply).await?;
        self.fill(epoch, &[keys.meta(partition), keys.catalogue(partition)], "0", catalogue).await
    }

    /// Writes what users hold of products with a limit.
    ///
    /// # Errors
    ///
    /// `Fenced` when this rebuild is over.
    pub async fn fill_bought(
        &self,
        partition: Partition,
        epoch: Epoch,
        bought: impl Iterator<Item = (UserId, ProductId, i64)>,
    ) -> Result<(), FenceError> {
        let keys =
            [self.partitions.keys().meta(partition), self.partitions.keys().bought(partition)];
        let fields = bought.map(|(user, product, units)| {
            (join_field(&[user.as_str(), product.as_str()]), units.to_string())
        });
        self.fill(epoch, &keys, "0", fields.collect()).await
    }

    /// The earliest accept whose request id must still be remembered at `now_ms`.
    pub fn remembered_since_ms(&self, now_ms: i64) -> i64 {
        let window = self.settings.id_window();
        // One more than is looked at: this clock may be ahead of that of Redis.
        (window.bucket_of(now_ms) - window.earlier_buckets() - 1) * window.width_ms()
    }

    /// Writes claims of confirmed orders, each into the bucket it was made in.
    ///
    /// # Errors
    ///
    /// `Fenced` when this rebuild is over.
    pub async fn fill_claims(
        &self,
        partition: Partition,
        epoch: Epoch,
        claims: &[ClaimParts<'_>],
    ) -> Result<(), FenceError> {
        let window = self.settings.id_window();
        let mut buckets = std::collections::BTreeMap::<i64, Vec<(String, String)>>::new();
        for claim in claims {
            let ClaimParts { user, product, request, id, reserved_at_ms } = claim;
            let field = join_field(&[user, product, request]);
            let value = format!("{} {:x} {reserved_at_ms}", id.entry_id(), id.random());
            buckets.entry(window.bucket_of(*reserved_at_ms)).or_default().push((field, value));
        }
        for (bucket, fields) in buckets {
            let keys = self.partitions.keys();
            let hash = format!("{}:{bucket}", keys.claims(partition));
            let expires = window.until_ms(bucket).to_string();
            let old = format!("{hash}:old");
            self.fill(epoch, &[keys.meta(partition), hash, old], &expires, fields).await?;
        }
        Ok(())
    }

    async fn fill(
        &self,
        epoch: Epoch,
        keys: &[String],
        expires: &str,
        fields: Vec<(String, String)>,
    ) -> Result<(), FenceError> {
        for chunk in fields.chunks(MAX_FIELDS) {
            let mut args = vec![expires];
            args.extend(chunk.iter().flat_map(|(field, value)| [field.as_str(), value.as_str()]));
            self.partitions.run_in(epoch, &self.scripts.fill, keys, &args).await?;
        }
        Ok(())
    }

    /// Opens a partition that is filled and has nothing in flight.
    ///
    /// # Errors
    ///
    /// `Fenced` when this rebuild is over.
    pub async fn reopen(
        &self,
        partition: Partition,
        epoch: Epoch,
        timeline: Option<&str>,
    ) -> Result<Reopened, FenceError> {
        let keys = self.partitions.keys();
        let keys = [
            keys.meta(partition),
            keys.orders(partition),
            keys.dead(partition),
            keys.dead_index(partition),
        ];
        let script = &self.scripts.reopen;
        let args = [GROUP, timeline.unwrap_or_default()];
        let answer = self.partitions.run_in(epoch, script, &keys, &args).await?;
        match answer[0].as_str() {
            "opened" => Ok(Reopened::Opened),
            "not_empty" => Ok(Reopened::NotEmpty),
            _ => Err(FenceError::Malformed(answer)),
        }
    }
}
