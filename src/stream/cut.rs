//! `lua/cut.lua`: reads everything that Redis holds of a partition, at one moment. Long streams are read in pages; an order
//! that left them meanwhile is in the ledger, which an audit reads afterwards.

use std::collections::HashMap;

use super::{Entry, Streams};
use crate::{
    domain::{Epoch, Partition, PartitionEpoch, ProductId, ReservationId},
    redis::{RedisCallError, script},
};

/// The most entries that the first script reads: about 50 ms of Redis.
const FIRST_PAGE: &str = "20000";
/// The most entries that each further script reads.
const NEXT_PAGES: &str = "5000";
/// How often a cut is begun.
const ATTEMPTS: usize = 3;

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
    /// The streams need several pages, and an entry was moved to dead or released between them each time: it may have
    /// been missed, or read twice.
    #[error(
        "orders were moved to dead or released in each of {ATTEMPTS} attempts to read the long streams in pages"
    )]
    Moved,
    /// Redis did not answer, or refused the script.
    #[error(transparent)]
    Redis(#[from] RedisCallError),
}

/// A record of the reply.
pub(super) enum Record {
    Product { product: ProductId, stock: i64, supply: i64 },
    Entry { in_dead: bool, orders_id: String, product: String, random: String },
    Bucket(IdempotencyCut),
    Waiting { since_ms: i64, entries: i64 },
}

/// A reply.
pub(super) struct Page {
    seq: i64,
    /// How many entries were moved to dead or released in this epoch.
    moved: String,
    /// Where the next page begins; empty after the last one.
    next: String,
    records: Vec<Record>,
}

script!(CUT: Page = "cut", include_str!("../../lua/cut.lua"),
    [Meta, Stock, Supply, Orders, Dead, Idempotency] {
    ["ok", seq, moved, next, ref elements @ ..] => Page {
        seq: seq.parse().ok()?,
        moved: moved.to_owned(),
        next: next.to_owned(),
        records: elements.chunks(4).map(record).collect::<Option<_>>()?,
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
            waiting: 0,
        }),
        "waiting" => Record::Waiting { since_ms: a.parse().ok()?, entries: b.parse().ok()? },
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
        let at = PartitionEpoch { partition, epoch };
        for _ in 0..ATTEMPTS {
            if let Some(cut) = self.try_cut(at, &idempotency_window_ms.to_string()).await? {
                return Ok(cut);
            }
        }
        Err(CutError::Moved)
    }

    /// `None` if an entry was moved to dead or released between two pages.
    async fn try_cut(
        &self,
        at: PartitionEpoch,
        window_ms: &str,
    ) -> Result<Option<Cut>, RedisCallError> {
        let read = async |entries: &str, from: &str| {
            self.partitions.run_in_epoch(at, &CUT, &[entries, window_ms, from]).await
        };
        let first = read(FIRST_PAGE, "").await?;
        let mut cut = Cut {
            epoch: at.epoch,
            seq: first.seq,
            products: HashMap::new(),
            in_streams: Vec::new(),
            idempotency: Vec::new(),
            unrecognized: Vec::new(),
        };
        let (moved, mut next) = (first.moved, first.next);
        cut.add_all(at.partition, first.records);
        while !next.is_empty() {
            let page = read(NEXT_PAGES, &next).await?;
            if page.moved != moved {
                return Ok(None);
            }
            cut.add_all(at.partition, page.records);
            next = page.next;
        }
        Ok(Some(cut))
    }
}

impl Cut {
    fn add_all(&mut self, partition: Partition, records: Vec<Record>) {
        for record in records {
            self.add(partition, record);
        }
    }

    fn add(&mut self, partition: Partition, record: Record) {
        match record {
            Record::Bucket(bucket) => self.idempotency.push(bucket),
            // A bucket that is no longer searched is not counted.
            Record::Waiting { since_ms, entries } => {
                let mut buckets = self.idempotency.iter_mut();
                if let Some(bucket) = buckets.find(|bucket| bucket.since_ms == since_ms) {
                    bucket.waiting += entries;
                }
            }
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
