//! `lua/cut.lua`: reads everything that Redis holds of a partition, at one moment.

use std::collections::HashMap;

use super::{Entry, Streams};
use crate::{
    domain::{Epoch, Partition, PartitionEpoch, ProductId, ReservationId},
    redis::{RedisCallError, script},
};

/// The most entries that one script may read: about 50 ms of Redis.
const ENTRIES_MAX: u32 = 20_000;

/// One product's units at the cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the glossary")]
pub struct ProductCut {
    pub stock: i64,
    pub supply: i64,
    pub in_orders: i64,
    pub in_dead: i64,
}

/// A bucket of request ids at the cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdempotencyCut {
    /// When the bucket begins, in milliseconds since 1970.
    pub since_ms: i64,
    /// Whether every request id of its orders must be in it. Not so for an earlier bucket that does not exist: it may
    /// have been written under a shorter `idempotency_window_ms`.
    pub is_kept: bool,
    /// How many it holds.
    pub remembered: i64,
    /// How many of them are of orders in the streams.
    pub waiting: i64,
}

/// A partition at one moment.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Its epoch.
    pub epoch: Epoch,
    /// Accepts in this epoch.
    pub seq: i64,
    /// By product.
    pub products: HashMap<ProductId, ProductCut>,
    /// The orders in the streams.
    pub in_streams: Vec<ReservationId>,
    /// Request ids that are remembered, oldest bucket first.
    pub idempotency: Vec<IdempotencyCut>,
    /// Entries in the streams that this program did not write.
    pub unrecognized: Vec<String>,
}

/// Why there is no cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The streams hold more than one script may read.
    #[error("the streams hold {0} entries, and an audit reads at most {max}", max = ENTRIES_MAX)]
    TooMany(String),
    /// Redis did not answer, or refused the script.
    #[error(transparent)]
    Redis(#[from] RedisCallError),
}

/// A record of the reply.
pub(super) enum Record {
    Product { product: ProductId, stock: i64, supply: i64 },
    Entry { in_dead: bool, orders_id: String, product: String, random: String },
    Bucket(IdempotencyCut),
}

// The number of entries, where that is too large; or the seq, and the records.
script!(CUT: Result<(i64, Vec<Record>), String> = "cut", include_str!("../../lua/cut.lua"),
    [Meta, Stock, Supply, Orders, Dead, Idempotency] {
    ["too_many", entries] => Err(entries.to_owned()),
    ["ok", seq, ref elements @ ..] => {
        Ok((seq.parse().ok()?, elements.chunks(4).map(record).collect::<Option<_>>()?))
    },
});

fn record(elements: &[&str]) -> Option<Record> {
    let &[kind, a, b, c] = elements else { return None };
    Some(match kind {
        "product" => Record::Product {
            product: a.parse().ok()?,
            stock: b.parse().ok()?,
            supply: c.parse().ok()?,
        },
        "order" | "dead" => Record::Entry {
            in_dead: kind == "dead",
            orders_id: a.to_owned(),
            product: b.to_owned(),
            random: c.to_owned(),
        },
        "bucket" | "no_bucket" => Record::Bucket(IdempotencyCut {
            since_ms: a.parse().ok()?,
            is_kept: kind == "bucket",
            remembered: b.parse().ok()?,
            waiting: c.parse().ok()?,
        }),
        _ => return None,
    })
}

impl Streams {
    /// Reads a cut of a partition whose request ids are remembered for `idempotency_window_ms`.
    pub async fn cut(
        &self,
        partition: Partition,
        idempotency_window_ms: u64,
    ) -> Result<Cut, CutError> {
        let epoch = self.partitions.epoch(partition)?;
        let args = [&*ENTRIES_MAX.to_string(), &*idempotency_window_ms.to_string()];
        let at = PartitionEpoch { partition, epoch };
        let cut = self.partitions.run_in_epoch(at, &CUT, &args).await?;
        let (seq, records) = cut.map_err(CutError::TooMany)?;
        let mut cut = Cut {
            epoch,
            seq,
            products: HashMap::new(),
            in_streams: Vec::new(),
            idempotency: Vec::new(),
            unrecognized: Vec::new(),
        };
        for record in records {
            cut.add(partition, record);
        }
        Ok(cut)
    }
}

impl Cut {
    fn add(&mut self, partition: Partition, record: Record) {
        match record {
            Record::Bucket(bucket) => self.idempotency.push(bucket),
            Record::Product { product, stock, supply } => {
                let units = self.products.entry(product).or_default();
                (units.stock, units.supply) = (stock, supply);
            }
            Record::Entry { in_dead, orders_id, product, random } => {
                let entry = Entry { id: orders_id, fields: vec![("r".to_owned(), random)] };
                let id = entry.reservation_id(partition, &entry.id);
                let (Ok(id), Ok(product)) = (id, product.parse::<ProductId>()) else {
                    self.unrecognized.push(entry.id);
                    return;
                };
                self.in_streams.push(id);
                let units = self.products.entry(product).or_default();
                *if in_dead { &mut units.in_dead } else { &mut units.in_orders } += 1;
            }
        }
    }
}
