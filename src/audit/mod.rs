//! The audit: nothing is lost, nothing is sold twice, every unit is in exactly one place.
//!
//! For each partition one script reads Redis at one moment, the cut. Then the ledger is read, without what is beyond
//! the cut and what is in the streams. So it may run under traffic. Rows that do not change any more are summed up once,
//! in a checkpoint (`docs/decisions/0036-audit-checkpoints.md`).
//!
//! Must never: report *holds* for something that it could not read.

mod checkpoint;
mod checks;
mod periodic;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use self::{
    checkpoint::{check_accepted, check_checkpoint, comparisons_of_round, is_due},
    checks::{check_doubled, check_product, check_request_ids, check_seqs, waiting_seqs},
};
use crate::{
    domain::{IdempotencyWindow, Lost, Partition, ProductId},
    ledger::{AuditCut, AuditRead, AuditRows, Buckets, Checkpoint, Covered, Keep, Ledger},
    stream::{Cut, ProductCut, Streams},
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
#[expect(missing_docs, reason = "the terms of the glossary")]
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
    /// The partitions that could be read.
    pub audited: Vec<Partition>,
    /// Partitions whose checkpoint cannot cover more rows, and why.
    pub blocked: Vec<String>,
    /// The time for comparing checkpoints with their rows because they had not been compared for long.
    pub comparing: Duration,
}

impl Report {
    fn violated(&mut self, difference: i64, what: String) {
        self.differences += difference.unsigned_abs();
        self.violations.push(what);
    }

    /// Adds what was found in one partition.
    fn add(&mut self, found: Self) {
        let Self { products, violations, differences, unknown, notes, lost, .. } = found;
        self.audited.extend(found.audited);
        self.blocked.extend(found.blocked);
        self.comparing += found.comparing;
        self.products.extend(products);
        self.violations.extend(violations);
        self.differences += differences;
        self.unknown.extend(unknown);
        self.notes.extend(notes);
        self.lost.extend(lost);
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

/// How much an audit reads, and whether it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Reads the rows that no checkpoint covers, and the others if something is wrong.
    New,
    /// Reads all rows, and compares the checkpoints with them.
    Full,
    /// As `New`, or as `Full` for a partition whose checkpoint was not compared for a long time; keeps new checkpoints.
    Worker,
}

/// A checkpoint is written once this many rows are not covered. Reading them takes about 50 ms.
const COVER_FROM: i64 = 10_000;

/// Makes audits; clones make one at a time.
#[derive(Clone)]
pub struct Auditor {
    streams: Streams,
    ledger: Ledger,
    idempotency_window_ms: u64,
    cover_from: i64,
    /// Held by the audit in progress: each may read the whole ledger. When the last round of a worker began.
    lock: Arc<Mutex<Option<Instant>>>,
}

impl Auditor {
    /// An auditor of these stores; request ids are remembered for that many milliseconds.
    pub fn new(streams: Streams, ledger: Ledger, idempotency_window_ms: u64) -> Self {
        let (cover_from, lock) = (COVER_FROM, Arc::default());
        Self { streams, ledger, idempotency_window_ms, cover_from, lock }
    }

    /// Writes a checkpoint once this many rows are not covered, for tests.
    #[must_use]
    pub fn covering_from(mut self, rows: i64) -> Self {
        self.cover_from = rows;
        self
    }

    /// Audits every partition, after any audit of a clone that is in progress. Of the ledger it reads the rows that no
    /// checkpoint covers, and all rows of a partition in which something is wrong. Changes nothing. Never fails: what
    /// cannot be read is reported as unknown. When the future is dropped, Postgres ends the query as well.
    pub async fn audit(&self) -> Report {
        self.audit_partitions(Mode::New).await
    }

    /// As [`Auditor::audit`], but reads all rows, and compares each checkpoint with the rows that it covers.
    pub async fn audit_in_full(&self) -> Report {
        self.audit_partitions(Mode::Full).await
    }

    /// As [`Auditor::audit`]. Where nothing is wrong, it writes the checkpoints from which the next audit continues. It
    /// reads some partitions in full whose checkpoints were not compared with their rows for 12 hours.
    pub async fn audit_and_cover(&self) -> Report {
        self.audit_partitions(Mode::Worker).await
    }

    async fn audit_partitions(&self, mode: Mode) -> Report {
        let mut last_round = self.lock.lock().await;
        let mut report = Report::default();
        let mut comparisons = 0;
        if mode == Mode::Worker {
            let now = Instant::now();
            let round = last_round.replace(now).map(|last| now.saturating_duration_since(last));
            // A ledger that cannot be read is reported for each partition.
            let ages = self.ledger.verified_ago().await.unwrap_or_default();
            comparisons = comparisons_of_round(&ages, round.unwrap_or_default());
        }
        for partition in self.streams.partitions().count().all() {
            // On the heap: the state of the future is large.
            let audited = self.audit_partition(partition, mode, &mut comparisons, &mut report);
            match Box::pin(audited).await {
                Ok(()) => report.audited.push(partition),
                Err(error) => report.unknown.push(format!("partition {partition}: {error:#}")),
            }
        }
        report.products.sort_by(|a, b| a.product.cmp(&b.product));
        report
    }

    /// Audits a partition; `comparisons` is how many checkpoints may still be compared with their rows in this round.
    async fn audit_partition(
        &self,
        partition: Partition,
        mode: Mode,
        comparisons: &mut usize,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        // Before Redis is read: then no order that it covers has an entry there.
        let checkpoint = self.ledger.checkpoint(partition).await?;
        let checkpoint = checkpoint.as_ref();
        let is_due = *comparisons > 0 && checkpoint.is_some_and(|kept| is_due(kept.verified_ago));
        // From the ledger alone: a loss is reported also while Redis cannot be read.
        let covered = checkpoint.filter(|_| mode != Mode::Full);
        let covered = covered.map(|kept| kept.sums.covered.clone()).unwrap_or_default();
        let lost = self.ledger.lost_of_ended(partition, &covered).await?;
        let place = report.lost.len();
        report.lost.extend(lost);
        let cut = self.streams.cut(partition, self.idempotency_window_ms).await?;
        let at_cut = self.at_cut(partition, &cut);
        let violations = report.violations.len();
        let is_accepted = checkpoint.is_none_or(|kept| check_accepted(&at_cut, kept, report));
        let kept = checkpoint.filter(|_| is_accepted);
        let keep = Keep { replaces: checkpoint, cover_from: self.cover_from };
        let keep = Some(keep).filter(|_| mode == Mode::Worker && is_accepted);
        // Request ids in other buckets are only counted by reading all rows. They show whether the checkpoint is right before
        // another one replaces it.
        let in_full =
            mode == Mode::Full || kept.is_some_and(|kept| !kept.counts_in(at_cut.buckets));
        // A comparison with all rows that is due does not replace that of the new ones: it may fail where there are too many.
        let is_later = is_due && !in_full;
        let read = AuditRead { checkpoint: kept, in_full, keep: keep.filter(|_| !is_later) };
        let mut found = self.compare(&cut, &at_cut, read).await?;
        // All rows show whether they are wrong or the checkpoint is.
        let is_in_doubt = kept.is_some() && !in_full && !found.violations.is_empty();
        if is_later || is_in_doubt {
            let started = Instant::now();
            let read = AuditRead { checkpoint: kept, in_full: true, keep };
            *comparisons -= usize::from(is_later);
            let all = self.compare(&cut, &at_cut, read).await;
            // The pause after a round does not grow by a comparison that is due, unless it is repeated in each round.
            let repeats =
                is_in_doubt || all.as_ref().map_or(true, |all| !all.violations.is_empty());
            let comparing = if repeats { Duration::ZERO } else { started.elapsed() };
            match all {
                Ok(all) => found = all,
                Err(error) => {
                    if is_later && !is_in_doubt {
                        // The new rows are covered nevertheless.
                        let read = AuditRead { checkpoint: kept, in_full: false, keep };
                        found = self.compare(&cut, &at_cut, read).await?;
                    }
                    found.unknown.push(format!(
                        "partition {partition}: all its rows could not be compared: {error:#}"
                    ));
                }
            }
            found.comparing = comparing;
        }
        report.add(found);
        if report.violations.len() > violations && !covered.is_empty() {
            // A checkpoint that may be wrong does not say what was lost.
            let lost = self.ledger.lost_of_ended(partition, &Covered::default()).await?;
            report.lost.truncate(place);
            report.lost.extend(lost);
        }
        Ok(())
    }

    fn at_cut(&self, partition: Partition, cut: &Cut) -> AuditCut {
        AuditCut {
            partition,
            epoch: cut.epoch,
            seq: cut.seq,
            ids: cut.in_streams.iter().map(|id| id.to_uuid()).collect(),
            seqs: waiting_seqs(cut),
            buckets: Buckets {
                since_ms: cut.idempotency.first().map_or(0, |bucket| bucket.since_ms),
                width_ms: IdempotencyWindow::new(self.idempotency_window_ms).width_ms(),
            },
        }
    }

    /// Compares the cut of a partition with its rows.
    async fn compare(
        &self,
        cut: &Cut,
        at_cut: &AuditCut,
        read: AuditRead<'_>,
    ) -> anyhow::Result<Report> {
        let mut report = Report::default();
        let mut is_complete = true;
        let mut check = |rows: &AuditRows| {
            is_complete = check_rows(cut, at_cut, (read.checkpoint, rows), &mut report);
            report.violations.is_empty()
        };
        let blocked = self.ledger.audit_rows(at_cut, read, &mut check).await?;
        if let Some(blocked) = blocked {
            let (partition, blocked) = (at_cut.partition, anyhow::Error::from(blocked));
            report.blocked.push(format!("partition {partition}: {blocked:#}"));
        }
        if !is_complete {
            for seq in self.ledger.missing_seqs(at_cut).await? {
                report.violations.push(format!(
                    "partition {}: order {}-{seq} was accepted and is in neither store",
                    at_cut.partition, cut.epoch
                ));
            }
        }
        Ok(report)
    }
}

/// Checks all that must hold for the rows of a partition. Returns whether each reservation that was accepted is in a store.
fn check_rows(
    cut: &Cut,
    at_cut: &AuditCut,
    (checkpoint, rows): (Option<&Checkpoint>, &AuditRows),
    report: &mut Report,
) -> bool {
    let partition = at_cut.partition;
    check_request_ids(partition, &cut.idempotency, rows, report);
    let is_complete = check_seqs(partition, cut, rows, report);
    check_doubled(partition, rows, report);
    let products: BTreeSet<&ProductId> = cut.products.keys().chain(rows.products.keys()).collect();
    for product in products {
        let redis = cut.products.get(product).copied().unwrap_or_default();
        let ledger = rows.products.get(product).copied().unwrap_or_default();
        check_product(product, redis, ledger, report);
        let ProductCut { supply, stock, in_orders, in_dead } = redis;
        let (product, confirmed) = (product.clone(), ledger.confirmed_at_cut);
        let units = ProductUnits { product, supply, stock, in_orders, in_dead, confirmed };
        report.products.push(units);
    }
    if let (Some(kept), Some(covered)) = (checkpoint, &rows.covered) {
        let buckets = at_cut.buckets;
        let since_ms = kept.counts_in(buckets).then_some(buckets.since_ms);
        check_checkpoint(partition, &kept.sums, covered, since_ms, report);
    }
    is_complete
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
