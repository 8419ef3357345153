//! The audit: nothing is lost, nothing is sold twice, every unit is in exactly one place.
//!
//! For each partition one script reads Redis at one moment, the cut. Then the ledger is read, without what is beyond
//! the cut and what is in the streams. So it may run under traffic.
//!
//! Must never: report *holds* for something that it could not read.

mod checks;
mod periodic;

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::Mutex;

use self::checks::{check_product, check_request_ids, check_seqs, waiting_seqs};
use crate::{
    domain::{IdempotencyWindow, Lost, Partition, ProductId},
    ledger::{AuditCut, Ledger},
    stream::{ProductCut, Streams},
};

/// What an audit found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is where it must be.
    Holds,
    /// Something is missing, or there twice.
    Violated,
    /// Something could not be read.
    Unknown,
}

/// One product's units.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the design")]
pub struct ProductUnits {
    pub product: ProductId,
    pub supply: i64,
    pub stock: i64,
    pub in_orders: i64,
    pub in_dead: i64,
    pub confirmed: i64,
}

/// The result of an audit.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Every product's units, in the order of their ids.
    pub products: Vec<ProductUnits>,
    /// What is wrong, and by how much.
    pub violations: Vec<String>,
    /// The sum of all differences: units, orders or request ids too many or too few; 0 if nothing is wrong.
    pub differences: u64,
    /// What could not be checked, and why.
    pub unknown: Vec<String>,
    /// What an operator may want to know although nothing is wrong.
    pub notes: Vec<String>,
    /// What was accepted in epochs that have ended and is in neither store: its units are for sale again.
    pub lost: Vec<Lost>,
}

impl Report {
    fn violated(&mut self, difference: i64, what: String) {
        self.differences += difference.unsigned_abs();
        self.violations.push(what);
    }

    /// The verdict. One violation is enough for [`Verdict::Violated`], even if something else is unknown.
    pub fn verdict(&self) -> Verdict {
        if !self.violations.is_empty() {
            Verdict::Violated
        } else if !self.unknown.is_empty() {
            Verdict::Unknown
        } else {
            Verdict::Holds
        }
    }
}

/// Makes audits; clones make one at a time.
#[derive(Clone)]
pub struct Auditor {
    streams: Streams,
    ledger: Ledger,
    idempotency_window_ms: u64,
    /// Held by the audit under way: each reads the whole ledger.
    lock: Arc<Mutex<()>>,
}

impl Auditor {
    /// An auditor of these stores; request ids are remembered for that many milliseconds.
    pub fn new(streams: Streams, ledger: Ledger, idempotency_window_ms: u64) -> Self {
        Self { streams, ledger, idempotency_window_ms, lock: Arc::default() }
    }

    /// Audits every partition, after any audit of a clone that is under way. Never fails: what cannot be read is
    /// reported as unknown. When the future is dropped, Postgres ends the query as well.
    pub async fn audit(&self) -> Report {
        let _lock = self.lock.lock().await;
        let mut report = Report::default();
        for partition in self.streams.partitions().count().all() {
            if let Err(error) = self.audit_partition(partition, &mut report).await {
                report.unknown.push(format!("partition {partition}: {error:#}"));
            }
        }
        report.products.sort_by(|a, b| a.product.cmp(&b.product));
        report
    }

    async fn audit_partition(
        &self,
        partition: Partition,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        // First, and from the ledger alone: a loss is reported also while Redis cannot be read.
        report.lost.extend(self.ledger.lost_of_ended(partition).await?);
        let cut = self.streams.cut(partition, self.idempotency_window_ms).await?;
        let of_ledger = AuditCut {
            partition,
            epoch: cut.epoch,
            seq: cut.seq,
            ids: cut.in_streams.iter().map(|id| id.to_uuid()).collect(),
            seqs: waiting_seqs(&cut),
            since_ms: cut.idempotency.first().map_or(0, |bucket| bucket.since_ms),
            width_ms: IdempotencyWindow::new(self.idempotency_window_ms).width_ms(),
        };
        let rows = self.ledger.audit_rows(&of_ledger).await?;
        check_request_ids(partition, &cut.idempotency, &rows, report);
        if !check_seqs(partition, &cut, &rows, report) {
            for seq in self.ledger.missing_seqs(&of_ledger).await? {
                report.violations.push(format!(
                    "partition {partition}: order {}-{seq} was accepted and is in neither store",
                    cut.epoch
                ));
            }
        }
        let products: BTreeSet<&ProductId> =
            cut.products.keys().chain(rows.products.keys()).collect();
        for product in products {
            let redis = cut.products.get(product).copied().unwrap_or_default();
            let ledger = rows.products.get(product).copied().unwrap_or_default();
            check_product(product, redis, ledger, report);
            let ProductCut { supply, stock, in_orders, in_dead } = redis;
            let (product, confirmed) = (product.clone(), ledger.confirmed_at_cut);
            let units = ProductUnits { product, supply, stock, in_orders, in_dead, confirmed };
            report.products.push(units);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_never_holds_while_something_is_unknown() {
        let unknown = Report { unknown: vec!["x".into()], ..Report::default() };
        assert_eq!(unknown.verdict(), Verdict::Unknown);
        let both = Report { violations: vec!["y".into()], ..unknown };
        assert_eq!(both.verdict(), Verdict::Violated);
        assert_eq!(Report::default().verdict(), Verdict::Holds);
    }
}
