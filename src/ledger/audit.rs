//! The ledger's part of an audit: what it holds, compared with a cut of one partition's stream.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use tokio_postgres::IsolationLevel;
use uuid::Uuid;

use super::{Ledger, LedgerError, pool::timestamp};
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
    /// Users with more confirmed units than the current limit allows.
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
    /// When the first bucket of request ids begins, in milliseconds since 1970.
    pub since_ms: i64,
    /// How wide each bucket is.
    pub width_ms: i64,
}

impl AuditCut {
    /// The partition and the epoch, as the ledger stores them.
    fn partition_and_epoch(&self) -> (i32, i64) {
        (self.partition.number().into(), self.epoch.0.into())
    }
}

impl Ledger {
    /// Reads a partition in one snapshot, leaving out rows beyond the cut and those in the streams.
    pub async fn audit_rows(&self, cut: &AuditCut) -> Result<AuditRows, LedgerError> {
        self.with_maintenance("audit_rows", async move |mut client| {
            let tx = client
                .build_transaction()
                .isolation_level(IsolationLevel::RepeatableRead)
                .read_only(true)
                .start()
                .await?;
            let mut rows = AuditRows { products: products(&tx, cut).await?, ..Default::default() };
            let (partition, epoch) = cut.partition_and_epoch();
            // By state: each has an index of its own.
            let sql = "SELECT count(DISTINCT seq) FROM (
                       SELECT seq FROM reservations
                        WHERE state = 'confirmed' AND partition = $1 AND epoch = $2 AND seq <= $3
                       UNION ALL
                       SELECT seq FROM reservations
                        WHERE state = 'voided' AND partition = $1 AND epoch = $2 AND seq <= $3
                   ) decided WHERE seq <> ALL($4)";
            let row = tx.query_one(sql, &[&partition, &epoch, &cut.seq, &cut.seqs]).await?;
            rows.decided_at_cut = row.get(0);
            let sql =
                "SELECT round(extract(epoch FROM reserved_at) * 1000)::bigint / $6 * $6, count(*)
                     FROM reservations
                    WHERE partition = $1 AND state = 'confirmed' AND request_id IS NOT NULL
                      AND (epoch < $2 OR (epoch = $2 AND seq <= $3))
                      AND reservation_id <> ALL($4) AND reserved_at >= $5
                    GROUP BY 1";
            let since = timestamp(cut.since_ms);
            let counted = tx
                .query(sql, &[&partition, &epoch, &cut.seq, &cut.ids, &since, &cut.width_ms])
                .await?;
            rows.request_ids_at_cut = counted.iter().map(|row| (row.get(0), row.get(1))).collect();
            Ok(rows)
        })
        .await
    }

    /// The lowest seqs of the cut, at most 20, that have no row in the ledger and are in no stream.
    pub async fn missing_seqs(&self, cut: &AuditCut) -> Result<Vec<i64>, LedgerError> {
        // A difference of sets, because a join may be planned as a nested loop over the whole table if the
        // statistics say that it is empty.
        let sql = "SELECT n FROM generate_series(1, $3::bigint) n WHERE n <> ALL($4)
                   EXCEPT SELECT seq FROM reservations WHERE partition = $1 AND epoch = $2
                    ORDER BY n LIMIT 20";
        let (partition, epoch) = cut.partition_and_epoch();
        self.with_maintenance("missing_seqs", async move |client| {
            let rows = client.query(sql, &[&partition, &epoch, &cut.seq, &cut.seqs]).await?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        })
        .await
    }
}

fn id(text: &str) -> Result<ProductId, LedgerError> {
    text.parse().map_err(|_| LedgerError::InvalidData("products.product_id"))
}

/// The products of the partition, and their rows.
async fn products(
    tx: &Transaction<'_>,
    cut: &AuditCut,
) -> Result<HashMap<ProductId, LedgerUnits>, LedgerError> {
    let (partition, epoch) = cut.partition_and_epoch();
    let sql = "SELECT product_id, supply, sold,
                      (SELECT count(*) FROM (
                          SELECT FROM reservations r
                           WHERE r.product_id = p.product_id AND p.per_user_limit IS NOT NULL
                           GROUP BY r.user_id HAVING sum(units) > p.per_user_limit) over_limit)
                 FROM products p WHERE partition = $1";
    let mut products = HashMap::<ProductId, LedgerUnits>::new();
    for row in tx.query(sql, &[&partition]).await? {
        let units = products.entry(id(row.get(0))?).or_default();
        (units.supply, units.sold, units.over_limit) = (row.get(1), row.get(2), row.get(3));
    }
    let sql = "SELECT product_id, sum(units)::bigint,
                      coalesce(sum(units) FILTER (
                          WHERE (epoch < $2 OR (epoch = $2 AND seq <= $3))
                            AND reservation_id <> ALL($4)), 0)::bigint
                 FROM reservations WHERE partition = $1 AND state = 'confirmed'
                GROUP BY product_id";
    for row in tx.query(sql, &[&partition, &epoch, &cut.seq, &cut.ids]).await? {
        let units = products.entry(id(row.get(0))?).or_default();
        (units.confirmed, units.confirmed_at_cut) = (row.get(1), row.get(2));
    }
    Ok(products)
}
