//! The ledger's part of an audit: what it holds, compared with the cut of one partition.

use std::collections::{BTreeMap, HashMap};

use deadpool_postgres::Transaction;
use tokio_postgres::{IsolationLevel, Row, types::ToSql};
use uuid::Uuid;

use super::{
    Ledger, LedgerError,
    checkpoint::{self, Blocked, Buckets, Checkpoint, CheckpointSums, HASH, RANGES_MAX},
    covered::{Covered, RowRanges, SeqRange, decided_in_ranges, rows_in_ranges},
    pool::timestamp,
    seqs::doubled,
};
use crate::domain::{Epoch, Partition, ProductId};

/// One product's units in the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerUnits {
    /// Units granted.
    pub supply: i64,
    /// Units sold, as counted on the product.
    pub sold: i64,
    /// Confirmed rows, all of them.
    pub confirmed: i64,
    /// Confirmed rows up to the cut that are in no stream.
    pub confirmed_at_cut: i64,
    /// Users with more confirmed units than the current limit allows; 0 if not all rows were read.
    pub over_limit: i64,
}

/// The rows of a partition, counted in one snapshot.
#[derive(Debug, Clone, Default)]
pub struct AuditRows {
    /// By product.
    pub products: HashMap<ProductId, LedgerUnits>,
    /// Seqs of the cut's epoch, up to its own, that have a row and are in no stream.
    pub decided_at_cut: i64,
    /// Confirmed rows up to the cut that are in no stream and have a request id, by the start of its bucket in
    /// milliseconds since 1970.
    pub request_ids_at_cut: HashMap<i64, i64>,
    /// The sums of the rows that the checkpoint covers, if they were read.
    pub covered: Option<CheckpointSums>,
    /// Seqs with more than one row, with their epochs; at most 20.
    pub doubled: Vec<(i64, i64)>,
}

/// A cut of one partition, as far as the ledger is asked about it.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the types describe the others")]
pub struct AuditCut {
    pub partition: Partition,
    pub epoch: Epoch,
    /// Accepts in this epoch.
    pub seq: i64,
    /// The reservations in its streams. They may have rows as well.
    pub ids: Vec<Uuid>,
    /// The seqs of the cut's epoch among them.
    pub seqs: Vec<i64>,
    /// The buckets of request ids.
    pub buckets: Buckets,
}

/// What an audit reads of the ledger.
#[derive(Debug, Clone, Copy)]
pub struct AuditRead<'a> {
    /// Read before the cut. What it covers is not read.
    pub checkpoint: Option<&'a Checkpoint>,
    /// Reads what the checkpoint covers as well.
    pub in_full: bool,
    /// What to write, if the rows are right.
    pub keep: Option<Keep<'a>>,
}

/// What an audit writes that found nothing wrong.
#[derive(Debug, Clone, Copy)]
pub struct Keep<'a> {
    /// The checkpoint that is replaced.
    pub replaces: Option<&'a Checkpoint>,
    /// Writes a new one if at least this many rows are not covered.
    pub cover_from: i64,
}

impl AuditCut {
    /// The partition and the epoch, as the ledger stores them.
    pub(super) fn partition_and_epoch(&self) -> (i32, i64) {
        (self.partition.number().into(), self.epoch.0.into())
    }

    /// Whether a checkpoint covers only orders that were accepted up to this cut.
    pub fn includes(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.sums.covered.ends_by(self.epoch.0.into(), self.seq)
    }
}

impl Ledger {
    /// Reads a partition in one snapshot, leaving out rows beyond the cut and those in the streams. `check` gets the rows,
    /// and returns whether they are right. Then the same transaction writes what is to be kept: on a server that lost a row
    /// in a failover, no checkpoint covers it. Returns why it could not be kept.
    pub async fn audit_rows(
        &self,
        cut: &AuditCut,
        read: AuditRead<'_>,
        check: &mut (dyn FnMut(&AuditRows) -> bool + Send),
    ) -> Result<Option<Blocked>, LedgerError> {
        self.with_maintenance("audit_rows", async move |mut client| {
            let tx = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
            // Otherwise as the database says: it may be set to read only.
            let tx = if read.keep.is_none() { tx.read_only(true) } else { tx };
            let tx = tx.start().await?;
            let kept = read.checkpoint.map(|checkpoint| &checkpoint.sums);
            let covered = kept.map(|sums| sums.covered.clone()).unwrap_or_default();
            let reader = Reader { tx: &tx, cut };
            let all_rows = read.in_full || covered.is_empty();
            let mut rows =
                AuditRows { products: reader.products(all_rows).await?, ..Default::default() };
            let other_rows = covered.other_rows();
            let others = reader.totals(&other_rows).await?;
            rows.add(&others);
            match kept {
                Some(_) if read.in_full => {
                    let covered_rows = covered.rows();
                    let totals = reader.totals(&covered_rows).await?;
                    rows.add(&totals);
                    rows.covered = Some(reader.sums_of_covered(&covered_rows, totals).await?);
                }
                Some(kept) => rows.add_checkpoint(kept, cut),
                None => {}
            }
            rows.doubled = doubled(&tx, cut.partition).await?;
            let holds = check(&rows);
            let Some(keep) = read.keep.filter(|_| holds) else { return Ok(None) };
            let verified = read.checkpoint.filter(|_| rows.covered.is_some());
            let before = rows.covered.as_ref().or(kept);
            let kept = reader.keep(keep, verified, before, (&other_rows, &others)).await;
            let kept = match kept {
                Ok(blocked) => tx.commit().await.map(|()| blocked).map_err(LedgerError::from),
                error => error,
            };
            Ok(match kept {
                Ok(blocked) => blocked,
                // Another worker has replaced the checkpoint, or the next audit writes it.
                Err(LedgerError::Transient { .. }) => None,
                // The audit itself is done. A Postgres before version 14 has no function for the checksum.
                Err(error) => Some(Blocked::Refused(error)),
            })
        })
        .await
    }
}

/// A row up to the cut ($6 epoch, $7 seq) whose order is in no stream ($8 ids).
const AT_CUT: &str = "(epoch < $6 OR (epoch = $6 AND seq <= $7)) AND reservation_id <> ALL($8)";

/// What a set of rows comes to: all of them, and those up to the cut that are in no stream.
#[derive(Default)]
struct Totals {
    units: BTreeMap<ProductId, (i64, i64)>,
    request_ids: BTreeMap<i64, i64>,
    /// Seqs of the cut's epoch.
    decided_at_cut: i64,
    rows: i64,
}

impl AuditRows {
    fn add(&mut self, totals: &Totals) {
        for (product, (all, at_cut)) in &totals.units {
            let units = self.products.entry(product.clone()).or_default();
            units.confirmed += all;
            units.confirmed_at_cut += at_cut;
        }
        for (bucket, count) in &totals.request_ids {
            *self.request_ids_at_cut.entry(*bucket).or_default() += count;
        }
        self.decided_at_cut += totals.decided_at_cut;
    }

    /// Every row that is covered is up to the cut and in no stream.
    fn add_checkpoint(&mut self, sums: &CheckpointSums, cut: &AuditCut) {
        self.add(&Totals {
            units: sums.units.iter().map(|(id, units)| (id.clone(), (*units, *units))).collect(),
            request_ids: sums.request_ids.clone(),
            decided_at_cut: sums.covered.count_of(cut.epoch.0.into()),
            rows: 0,
        });
    }
}

fn id(text: &str) -> Result<ProductId, LedgerError> {
    text.parse().map_err(|_| LedgerError::InvalidData("products.product_id"))
}

/// Reads for one cut, in one snapshot.
struct Reader<'a> {
    tx: &'a Transaction<'a>,
    cut: &'a AuditCut,
}

impl Reader<'_> {
    /// Runs a statement whose first arguments are the ranges, the partition, and the epoch and the seq of the cut.
    async fn query(
        &self,
        sql: &str,
        ranges: &RowRanges,
        more: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, LedgerError> {
        let (partition, epoch) = self.cut.partition_and_epoch();
        let [a, b, c, d] = ranges;
        let first: [&(dyn ToSql + Sync); 7] = [a, b, c, d, &partition, &epoch, &self.cut.seq];
        let args: Vec<_> = first.into_iter().chain(more.iter().copied()).collect();
        Ok(self.tx.query(sql, &args).await?)
    }

    /// The products of the partition, without their rows. Users over the limit are counted if `all_rows`.
    async fn products(
        &self,
        all_rows: bool,
    ) -> Result<HashMap<ProductId, LedgerUnits>, LedgerError> {
        let (partition, _) = self.cut.partition_and_epoch();
        let sql = "SELECT product_id, supply, sold, CASE WHEN $2 THEN
                          (SELECT count(*) FROM (
                              SELECT FROM reservations r
                               WHERE r.product_id = p.product_id AND p.per_user_limit IS NOT NULL
                               GROUP BY r.user_id HAVING sum(units) > p.per_user_limit) over_limit)
                          ELSE 0 END
                     FROM products p WHERE partition = $1";
        let mut products = HashMap::<ProductId, LedgerUnits>::new();
        for row in self.tx.query(sql, &[&partition, &all_rows]).await? {
            let units = products.entry(id(row.get(0))?).or_default();
            (units.supply, units.sold, units.over_limit) = (row.get(1), row.get(2), row.get(3));
        }
        Ok(products)
    }

    async fn totals(&self, ranges: &RowRanges) -> Result<Totals, LedgerError> {
        let AuditCut { ids, seqs, buckets, .. } = self.cut;
        let mut totals = Totals::default();
        let columns = "r.product_id, r.units, r.epoch, r.seq, r.reservation_id";
        let confirmed = rows_in_ranges(columns, "confirmed");
        let sql = format!(
            "SELECT product_id, sum(units)::bigint,
                    coalesce(sum(units) FILTER (WHERE {AT_CUT}), 0)::bigint
               FROM {confirmed} AS confirmed GROUP BY product_id"
        );
        for row in self.query(&sql, ranges, &[ids]).await? {
            totals.units.insert(id(row.get(0))?, (row.get(1), row.get(2)));
        }
        let columns = "r.request_id, r.reserved_at, r.epoch, r.seq, r.reservation_id";
        let confirmed = rows_in_ranges(columns, "confirmed");
        let sql = format!(
            "SELECT round(extract(epoch FROM reserved_at) * 1000)::bigint / $10 * $10, count(*)
               FROM {confirmed} AS confirmed
              WHERE request_id IS NOT NULL AND {AT_CUT} AND reserved_at >= $9
              GROUP BY 1"
        );
        let since = timestamp(buckets.since_ms);
        for row in self.query(&sql, ranges, &[ids, &since, &buckets.width_ms]).await? {
            totals.request_ids.insert(row.get(0), row.get(1));
        }
        let decided = decided_in_ranges("r.epoch, r.seq");
        let sql = format!(
            "SELECT count(DISTINCT seq) FILTER (WHERE epoch = $6 AND seq <= $7 AND seq <> ALL($8)),
                    count(*)
               FROM {decided}"
        );
        for row in self.query(&sql, ranges, &[seqs]).await? {
            (totals.decided_at_cut, totals.rows) = (row.get(0), row.get(1));
        }
        Ok(totals)
    }

    /// The ranges of seqs that have a row which is up to the cut and in no stream, at most one more than a checkpoint
    /// may have; how many rows they have; and the checksum of these rows.
    async fn ranges(
        &self,
        ranges: &RowRanges,
        in_streams: &[Uuid],
    ) -> Result<(Vec<SeqRange>, i64, i64), LedgerError> {
        let columns = "r.reservation_id, r.state, r.product_id, r.user_id, r.units, r.request_id, r.partition, r.epoch,
                       r.seq, r.reserved_at, r.void_reason, r.entry";
        let decided = decided_in_ranges(columns);
        // In a range, the seq and its place grow alike. A seq with two rows begins another range. OFFSET keeps the inner
        // query apart, so that hashes are sorted and not whole rows.
        let sql = format!(
            "SELECT epoch, min(seq), max(seq), count(*), bit_xor(hash)
               FROM (SELECT epoch, seq, hash,
                            seq - row_number() OVER (PARTITION BY epoch ORDER BY seq) AS before_range
                       FROM (SELECT epoch, seq, {HASH} AS hash
                               FROM {decided} WHERE {AT_CUT} OFFSET 0) AS hashed) AS numbered
              GROUP BY epoch, before_range ORDER BY 1, 2 LIMIT {}",
            RANGES_MAX + 1
        );
        let (mut found, mut rows, mut checksum) = (Vec::new(), 0, 0);
        for row in self.query(&sql, ranges, &[&in_streams]).await? {
            let (epoch, first, last): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            found.push(SeqRange { epoch, first, last });
            rows += row.get::<_, i64>(3);
            checksum ^= row.get::<_, i64>(4);
        }
        Ok((found, rows, checksum))
    }

    /// The sums of the rows that the checkpoint covers, whether or not their orders are in the streams.
    async fn sums_of_covered(
        &self,
        ranges: &RowRanges,
        mut totals: Totals,
    ) -> Result<CheckpointSums, LedgerError> {
        if totals.units.values().any(|(all, at_cut)| all != at_cut) {
            let cut = AuditCut { ids: Vec::new(), seqs: Vec::new(), ..self.cut.clone() };
            totals = Reader { tx: self.tx, cut: &cut }.totals(ranges).await?;
        }
        let (found, _, checksum) = self.ranges(ranges, &[]).await?;
        let units = totals.units.into_iter().map(|(product, (all, _))| (product, all));
        Ok(CheckpointSums {
            covered: Covered::new(found),
            units: units.collect(),
            request_ids: totals.request_ids,
            checksum,
        })
    }

    /// Records that a checkpoint was verified, and writes the next one if enough rows are not covered, or if `before` was
    /// counted in other buckets than it. Returns why no checkpoint can cover these rows.
    async fn keep(
        &self,
        keep: Keep<'_>,
        verified: Option<&Checkpoint>,
        before: Option<&CheckpointSums>,
        (ranges, others): (&RowRanges, &Totals),
    ) -> Result<Option<Blocked>, LedgerError> {
        let AuditCut { partition, buckets, .. } = *self.cut;
        if let Some(checkpoint) = verified {
            checkpoint::set_verified(self.tx, partition, checkpoint).await?;
        }
        let has_other_buckets = keep.replaces.is_some_and(|replaced| !replaced.counts_in(buckets));
        if others.rows < keep.cover_from && !has_other_buckets {
            return Ok(None);
        }
        let before = before.cloned().unwrap_or_default();
        let (next, blocked) = match self.next_checkpoint(before.clone(), ranges, others).await? {
            Ok(next) => (next, None),
            Err(blocked) if has_other_buckets => (before, Some(blocked)),
            Err(blocked) => return Ok(Some(blocked)),
        };
        checkpoint::save(self.tx, partition, keep.replaces, &next, buckets).await?;
        Ok(blocked)
    }

    /// The sums of a checkpoint that covers these rows in addition.
    async fn next_checkpoint(
        &self,
        mut sums: CheckpointSums,
        ranges: &RowRanges,
        totals: &Totals,
    ) -> Result<Result<CheckpointSums, Blocked>, LedgerError> {
        let (found, rows, checksum) = self.ranges(ranges, &self.cut.ids).await?;
        let is_numbered_from_1 = found.iter().all(|range| range.first >= 1);
        let too_many = found.len() > RANGES_MAX;
        let found = Covered::new(found);
        let before = sums.covered.count();
        sums.covered = sums.covered.with(&found);
        let is_once = found.count() == rows && sums.covered.count() == before + rows;
        if too_many || sums.covered.ranges().len() > RANGES_MAX {
            return Ok(Err(Blocked::Gaps));
        }
        if !is_numbered_from_1 {
            return Ok(Err(Blocked::NotNumbered));
        }
        if !is_once {
            return Ok(Err(Blocked::Doubled));
        }
        sums.checksum ^= checksum;
        for (product, (_, at_cut)) in totals.units.iter().filter(|(_, (_, at_cut))| *at_cut != 0) {
            *sums.units.entry(product.clone()).or_default() += at_cut;
        }
        sums.request_ids.retain(|bucket, _| *bucket >= self.cut.buckets.since_ms);
        for (bucket, count) in &totals.request_ids {
            *sums.request_ids.entry(*bucket).or_default() += count;
        }
        Ok(Ok(sums))
    }
}
