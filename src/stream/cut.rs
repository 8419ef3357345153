//! `lua/cut.lua`: everything that Redis knows of a partition, at one moment.

use std::collections::HashMap;

use super::{Entry, Streams};
use crate::{
    domain::{Epoch, Partition, ProductId, ReservationId},
    redis::FenceError,
};

/// Most entries that one script may read: about 50 ms of Redis.
const MAX_ENTRIES: u32 = 20_000;

/// One product's units at the cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the design")]
pub struct ProductCut {
    pub available: i64,
    pub supply: i64,
    pub in_orders: i64,
    pub in_dead: i64,
}

/// A bucket of request ids at the cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClaimsCut {
    /// When the bucket begins, in milliseconds since 1970.
    pub since_ms: i64,
    /// Whether every request id of its orders must be in it. Not so for an earlier bucket that is not there: it may have
    /// been written under a shorter window.
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
    /// What is in the streams.
    pub in_streams: Vec<ReservationId>,
    /// Request ids that are remembered, oldest bucket first.
    pub claims: Vec<ClaimsCut>,
    /// Entries in the streams that no program of ours wrote.
    pub unrecognized: Vec<String>,
}

/// Why there is no cut.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// More is in the streams than one script may read.
    #[error("{0} entries wait in its streams, more than can be read at one moment")]
    TooMany(String),
    /// The script did not run to its end.
    #[error(transparent)]
    Fence(#[from] FenceError),
}

impl Streams {
    /// Cuts the log of a partition whose request ids are remembered for `window_ms`.
    ///
    /// # Errors
    ///
    /// See [`CutError`].
    pub async fn cut(&self, partition: Partition, window_ms: u64) -> Result<Cut, CutError> {
        let keys = self.partitions.keys();
        let keys = [
            keys.meta(partition),
            keys.stock(partition),
            keys.supply(partition),
            keys.orders(partition),
            keys.dead(partition),
            keys.claims(partition),
        ];
        let epoch = self.partitions.epoch(partition)?;
        let args = [MAX_ENTRIES.to_string(), window_ms.to_string()];
        let args = args.each_ref().map(String::as_str);
        let answer = self.partitions.run_in(epoch, &self.scripts.cut, &keys, &args).await?;
        match answer.as_slice() {
            [status, entries] if status == "too_many" => Err(CutError::TooMany(entries.clone())),
            [status, seq, records @ ..] if status == "ok" && records.len() % 4 == 0 => {
                let seq = seq.parse().map_err(|_| FenceError::Malformed(vec![seq.clone()]))?;
                let mut cut = Cut {
                    epoch,
                    seq,
                    products: HashMap::new(),
                    in_streams: Vec::new(),
                    claims: Vec::new(),
                    unrecognized: Vec::new(),
                };
                for record in records.chunks(4) {
                    let record = [&*record[0], &*record[1], &*record[2], &*record[3]];
                    cut.add(partition, record)
                        .ok_or_else(|| FenceError::Malformed(record.map(str::to_owned).to_vec()))?;
                }
                Ok(cut)
            }
            _ => Err(FenceError::Malformed(answer).into()),
        }
    }
}

impl Cut {
    fn add(&mut self, partition: Partition, [kind, a, b, c]: [&str; 4]) -> Option<()> {
        if kind == "c" || kind == "u" {
            self.claims.push(ClaimsCut {
                since_ms: a.parse().ok()?,
                is_kept: kind == "c",
                remembered: b.parse().ok()?,
                waiting: c.parse().ok()?,
            });
            return Some(());
        }
        if kind == "p" {
            let units = self.products.entry(a.parse().ok()?).or_default();
            units.available = b.parse().ok()?;
            units.supply = c.parse().ok()?;
            return Some(());
        }
        let entry = Entry { id: a.to_owned(), fields: vec![("r".to_owned(), c.to_owned())] };
        let (Ok(id), Ok(product)) = (entry.reservation_id(partition, a), b.parse::<ProductId>())
        else {
            self.unrecognized.push(a.to_owned());
            return Some(());
        };
        self.in_streams.push(id);
        let units = self.products.entry(product).or_default();
        match kind {
            "o" => units.in_orders += 1,
            "d" => units.in_dead += 1,
            _ => return None,
        }
        Some(())
    }
}
