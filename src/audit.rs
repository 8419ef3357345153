//! The verdict: nothing lost, nothing sold twice, everything in exactly one place.
//!
//! For each partition one script cuts the log; then the ledger is read, leaving out what lies beyond the
//! cut and what is in the streams. So it may run under traffic.
//!
//! Must never: call something well that it could not see.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::{
    domain::{IdWindow, Lost, Partition, ProductId},
    ledger::{AuditRows, IdBuckets, InStreams, Ledger, LedgerError, LedgerUnits},
    redis::FenceError,
    stream::{Cut, CutError, IdempotencyCut, ProductCut, Streams},
};

/// What an audit found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is where it must be.
    Holds,
    /// Something is not.
    Violated,
    /// It could not be told.
    Unknown,
}

/// One product's units.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the design")]
pub struct ProductUnits {
    pub product: ProductId,
    pub supply: i64,
    pub available: i64,
    pub in_orders: i64,
    pub in_dead: i64,
    pub confirmed: i64,
}

/// An audit.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Every product's units, in the order of their ids.
    pub products: Vec<ProductUnits>,
    /// What is wrong, by how much.
    pub violations: Vec<String>,
    /// By how much in all: units, orders or request ids too many or too few; 0 if nothing is wrong.
    pub error_units: u64,
    /// What could not be told, and why.
    pub unknown: Vec<String>,
    /// What an operator may want to know, and is no fault.
    pub notes: Vec<String>,
    /// What was accepted in epochs that have ended and is nowhere: announced, and its units sold again.
    pub lost: Vec<Lost>,
}

impl Report {
    fn violated(&mut self, off: i64, what: String) {
        self.error_units += off.unsigned_abs();
        self.violations.push(what);
    }

    /// The verdict: what is wrong weighs more than what is unknown.
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

/// Audits; clones take turns.
#[derive(Clone)]
pub struct Auditor {
    streams: Streams,
    ledger: Ledger,
    idempotency_window_ms: u64,
    /// Held by the audit under way: each reads the whole ledger.
    one: Arc<Mutex<()>>,
}

impl Auditor {
    /// Over these; request ids are remembered for so many milliseconds.
    pub fn new(streams: Streams, ledger: Ledger, idempotency_window_ms: u64) -> Self {
        Self { streams, ledger, idempotency_window_ms, one: Arc::default() }
    }

    /// Audits every partition, after any audit that a clone of this one has under way. Never fails: what it
    /// cannot see it calls unknown. Dropped before its end, it ends in Postgres as well.
    pub async fn audit(&self) -> Report {
        let _one = self.one.lock().await;
        let mut report = Report::default();
        for partition in self.streams.partitions().count().all() {
            if let Err(unknown) = self.audit_partition(partition, &mut report).await {
                report.unknown.push(format!("partition {partition}: {unknown}"));
            }
        }
        report.products.sort_by(|a, b| a.product.cmp(&b.product));
        report
    }

    async fn audit_partition(
        &self,
        partition: Partition,
        report: &mut Report,
    ) -> Result<(), String> {
        // First, and from the ledger alone: a loss is announced also while Redis cannot be read.
        let lost = self.ledger.lost_of_ended(partition).await.map_err(|error| told(&error))?;
        report.lost.extend(lost);
        let cut =
            self.streams.cut(partition, self.idempotency_window_ms).await.map_err(|error| {
                match error {
                    CutError::Fence(FenceError::Fenced(reason)) => format!("fenced: {reason}"),
                    CutError::TooMany(_) | CutError::Fence(_) => told(&error),
                }
            })?;
        let in_streams: Vec<_> = cut.in_streams.iter().map(|id| id.to_uuid()).collect();
        let waiting = waiting_seqs(&cut);
        let at = (cut.epoch, cut.seq);
        let streams = InStreams { ids: &in_streams, seqs: &waiting };
        let buckets = IdBuckets {
            since_ms: cut.idempotency.first().map_or(0, |bucket| bucket.since_ms),
            width_ms: IdWindow::new(self.idempotency_window_ms).width_ms(),
        };
        let rows = self.ledger.audit_rows(partition, at, streams, buckets);
        let rows = rows.await.map_err(|error: LedgerError| told(&error))?;
        check_claims(partition, &cut.idempotency, &rows, report);
        if !check_log(partition, &cut, &rows, report) {
            let missing = self.ledger.missing_seqs(partition, at, &waiting);
            for seq in missing.await.map_err(|error| told(&error))? {
                let epoch = cut.epoch;
                report.violations.push(format!(
                    "partition {partition}: {epoch}-{seq} was accepted and is nowhere"
                ));
            }
        }
        let mut products: Vec<&ProductId> =
            cut.products.keys().chain(rows.products.keys()).collect();
        products.sort();
        products.dedup();
        for product in products {
            let redis = cut.products.get(product).copied().unwrap_or_default();
            let ledger = rows.products.get(product).copied().unwrap_or_default();
            check_product(product, redis, ledger, report);
            report.products.push(ProductUnits {
                product: product.clone(),
                supply: redis.supply,
                available: redis.available,
                in_orders: redis.in_orders,
                in_dead: redis.in_dead,
                confirmed: ledger.confirmed_at_cut,
            });
        }
        Ok(())
    }
}

fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

/// The seqs of the cut's epoch that are in a stream, each once.
fn waiting_seqs(cut: &Cut) -> Vec<i64> {
    let ours = cut.in_streams.iter().filter(|id| id.epoch() == cut.epoch);
    let mut seqs: Vec<i64> = ours.filter_map(|id| i64::try_from(id.seq()).ok()).collect();
    seqs.sort_unstable();
    seqs.dedup();
    seqs
}

/// Every accept of this epoch is in exactly one place: the sum of units alone would be blind to a doubled
/// id that hides a lost one. Returns whether it is so.
fn check_log(partition: Partition, cut: &Cut, rows: &AuditRows, report: &mut Report) -> bool {
    for stranger in &cut.unrecognized {
        report.violated(1, format!("partition {partition}: entry {stranger:?} is none of ours"));
    }
    let waiting = waiting_seqs(cut).len();
    if waiting != cut.in_streams.len() {
        let told = "its streams hold a reservation twice, or one of another epoch";
        report.violated(1, format!("partition {partition}: {told}"));
    }
    let known = i64::try_from(waiting).unwrap_or(i64::MAX) + rows.settled_at_cut;
    let off = cut.seq - known;
    if off != 0 {
        let seq = cut.seq;
        let told = format!("{seq} accepted, {known} of them known (off by {off})");
        report.violated(off, format!("partition {partition}: {told}"));
    }
    off == 0
}

/// Each order's request id is remembered: whoever asks again gets the same answer and not another unit.
fn check_claims(
    partition: Partition,
    claims: &[IdempotencyCut],
    rows: &AuditRows,
    report: &mut Report,
) {
    let (mut orders, mut remembered, mut off, mut forgotten) = (0, 0, 0, 0);
    for bucket in claims {
        let of_ledger = rows.claims_at_cut.get(&bucket.since_ms).copied().unwrap_or(0);
        let in_bucket = of_ledger + bucket.waiting;
        if bucket.is_kept {
            orders += in_bucket;
            remembered += bucket.remembered;
            off += (in_bucket - bucket.remembered).abs();
        } else {
            forgotten += in_bucket;
        }
    }
    if off != 0 {
        report.violated(
            off,
            format!(
                "partition {partition}: {orders} orders with a request id, {remembered} request \
                 ids remembered (off by {off})"
            ),
        );
    }
    if forgotten > 0 {
        report.notes.push(format!(
            "partition {partition}: the request ids of {forgotten} orders within idempotency_window_ms are not \
             remembered: they were taken under a shorter window, and `yoink rebuild` restores them"
        ));
    }
}

fn check_product(product: &ProductId, redis: ProductCut, ledger: LedgerUnits, report: &mut Report) {
    // By how much each is off; 0 holds.
    let mut require = |off: i64, what: String| {
        if off != 0 {
            report.violated(off, format!("product {product}: {what}"));
        }
    };
    let somewhere = redis.available + redis.in_orders + redis.in_dead + ledger.confirmed_at_cut;
    let off = redis.supply - somewhere;
    require(
        off,
        format!(
            "supply {} is not available {} + in orders {} + in dead {} + confirmed {} (off by {off})",
            redis.supply, redis.available, redis.in_orders, redis.in_dead, ledger.confirmed_at_cut,
        ),
    );
    require(redis.available.min(0), format!("{} units available", redis.available));
    require(
        (redis.supply - ledger.supply).max(0),
        format!("Redis knows {} units, only {} were granted", redis.supply, ledger.supply),
    );
    require(
        (ledger.confirmed - ledger.supply).max(0),
        format!("{} units sold of {}", ledger.confirmed, ledger.supply),
    );
    require(
        ledger.sold - ledger.confirmed,
        format!("counted {} sold, stored {}", ledger.sold, ledger.confirmed),
    );
    if redis.supply < ledger.supply {
        let untold = ledger.supply - redis.supply;
        report.unknown.push(format!("product {product}: Redis was not told of {untold} units yet"));
    }
    if ledger.over_limit > 0 {
        let users = ledger.over_limit;
        report.notes.push(format!(
            "product {product}: {users} users hold more than its limit allows today: \
             it was lowered, or set after they bought"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report_of(redis: ProductCut, ledger: LedgerUnits) -> Report {
        let mut report = Report::default();
        check_product(&"shoe".parse().unwrap(), redis, ledger, &mut report);
        report
    }

    fn verdict_of(redis: ProductCut, ledger: LedgerUnits) -> Vec<String> {
        report_of(redis, ledger).violations
    }

    const REDIS: ProductCut = ProductCut { available: 5, supply: 10, in_orders: 2, in_dead: 1 };
    const LEDGER: LedgerUnits =
        LedgerUnits { supply: 10, sold: 2, confirmed: 2, confirmed_at_cut: 2, over_limit: 0 };

    #[test]
    fn a_whole_product_holds_and_one_unit_off_does_not() {
        assert!(verdict_of(REDIS, LEDGER).is_empty());
        for wrong in [
            ProductCut { available: 6, ..REDIS },
            ProductCut { available: 4, ..REDIS },
            ProductCut { in_dead: 0, ..REDIS },
            ProductCut { in_orders: 3, ..REDIS },
            ProductCut { available: -1, in_orders: 8, ..REDIS },
        ] {
            assert_eq!(verdict_of(wrong, LEDGER).len(), 1, "{wrong:?}");
        }
        assert_eq!(verdict_of(REDIS, LedgerUnits { sold: 3, ..LEDGER }).len(), 1);
        assert_eq!(verdict_of(REDIS, LedgerUnits { supply: 9, ..LEDGER }).len(), 1);
    }

    #[test]
    fn a_grant_that_redis_was_not_told_of_is_neither_well_nor_a_violation() {
        let report = report_of(REDIS, LedgerUnits { supply: 20, ..LEDGER });
        assert_eq!(report.verdict(), Verdict::Unknown);
    }

    #[test]
    fn a_limit_that_was_lowered_later_is_no_fault() {
        let report = report_of(REDIS, LedgerUnits { over_limit: 1, ..LEDGER });
        assert_eq!((report.verdict(), report.notes.len()), (Verdict::Holds, 1));
    }

    #[test]
    fn a_forgotten_request_id_is_named_and_an_absent_earlier_bucket_is_a_note() {
        let partition =
            crate::domain::PartitionCount::try_from(8).unwrap().get_partition(3).unwrap();
        let bucket = |since_ms, is_kept, remembered, waiting| IdempotencyCut {
            since_ms,
            is_kept,
            remembered,
            waiting,
        };
        let rows = AuditRows { claims_at_cut: [(0, 5), (10, 2)].into(), ..AuditRows::default() };
        let check = |claims: &[IdempotencyCut]| {
            let mut report = Report::default();
            check_claims(partition, claims, &rows, &mut report);
            (report.error_units, report.notes.len())
        };
        assert_eq!(check(&[bucket(0, true, 6, 1), bucket(10, true, 2, 0)]), (0, 0));
        assert_eq!(check(&[bucket(0, false, 0, 0), bucket(10, true, 2, 0)]), (0, 1));
        // One too many in a bucket hides none too few in another.
        assert_eq!(check(&[bucket(0, true, 4, 0), bucket(10, true, 3, 0)]), (2, 0));
    }

    #[test]
    fn what_is_unknown_is_never_called_well() {
        let unknown = Report { unknown: vec!["x".into()], ..Report::default() };
        assert_eq!(unknown.verdict(), Verdict::Unknown);
        let both = Report { violations: vec!["y".into()], ..unknown };
        assert_eq!(both.verdict(), Verdict::Violated);
        assert_eq!(Report::default().verdict(), Verdict::Holds);
    }
}
