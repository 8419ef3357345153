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

/// The time buckets by which request ids are counted.
#[derive(Debug, Clone, Copy)]
pub struct IdBuckets {
    /// When the first one begins, in milliseconds since 1970.
    pub since_ms: i64,
    /// How wide each is.
    pub width_ms: i64,
}

/// The entries in the streams at the cut. They may have rows as well.
#[derive(Debug, Clone, Copy)]
pub struct InStreams<'a> {
    /// All reservation ids.
    pub ids: &'a [Uuid],
    /// The seqs of the cut's epoch among them.
    pub seqs: &'a [i64],
}

impl Ledger {
    /// Reads a partition in one snapshot, leaving out rows beyond `seq` of `epoch` and those in the streams.
    /// Request ids are counted by buckets.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer.
    pub async fn audit_rows(
        &self,
        partition: Partition,
        (epoch, seq): (Epoch, i64),
        streams: InStreams<'_>,
        buckets: IdBuckets,
    ) -> Result<AuditRows, LedgerError> {
        self.with_long("audit_rows", async move |mut client| {
            let tx = client
                .build_transaction()
                .isolation_level(IsolationLevel::RepeatableRead)
                .read_only(true)
                .start()
                .await?;
            let number = i32::from(partition.number());
            let mut rows =
                AuditRows { products: products(&tx, number).await?, ..AuditRows::default() };
            count_rows(&tx, number, (epoch, seq), streams.ids, &mut rows).await?;
            // By state: each has an index of its own.
            let sql = "SELECT count(DISTINCT seq) FROM (
                       SELECT seq FROM reservations
                        WHERE state = 'confirmed' AND partition = $1 AND epoch = $2 AND seq <= $3
                       UNION ALL
                       SELECT seq FROM reservations
                        WHERE state = 'voided' AND partition = $1 AND epoch = $2 AND seq <= $3
                   ) decided WHERE seq <> ALL($4)";
            let epoch = i64::from(epoch.0);
            let row = tx.query_one(sql, &[&number, &epoch, &seq, &streams.seqs]).await?;
            rows.decided_at_cut = row.get(0);
            let sql =
                "SELECT round(extract(epoch FROM reserved_at) * 1000)::bigint / $6 * $6, count(*)
                     FROM reservations
                    WHERE partition = $1 AND state = 'confirmed' AND request_id IS NOT NULL
                      AND (epoch < $2 OR (epoch = $2 AND seq <= $3))
                      AND reservation_id <> ALL($4) AND reserved_at >= $5
                    GROUP BY 1";
            let (since, width_ms) = (timestamp(buckets.since_ms), buckets.width_ms);
            let counted =
                tx.query(sql, &[&number, &epoch, &seq, &streams.ids, &since, &width_ms]).await?;
            rows.request_ids_at_cut = counted.iter().map(|row| (row.get(0), row.get(1))).collect();
            Ok(rows)
        })
        .await
    }

    /// The lowest seqs, at most 20, of those from 1 to `seq` that have no row in the ledger and are not `waiting`.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer.
    pub async fn missing_seqs(
        &self,
        partition: Partition,
        (epoch, seq): (Epoch, i64),
        waiting: &[i64],
    ) -> Result<Vec<i64>, LedgerError> {
        // A difference of sets, because a join may be planned as a nested loop over the whole table if the
        // statistics say that it is empty.
        let sql = "SELECT n FROM generate_series(1, $3::bigint) n WHERE n <> ALL($4)
                   EXCEPT SELECT seq FROM reservations WHERE partition = $1 AND epoch = $2
                    ORDER BY n LIMIT 20";
        let (number, epoch) = (i32::from(partition.number()), i64::from(epoch.0));
        self.with_long("missing_seqs", async move |client| {
            let rows = client.query(sql, &[&number, &epoch, &seq, &waiting]).await?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        })
        .await
    }
}

fn id(text: &str) -> Result<ProductId, LedgerError> {
    text.parse().map_err(|_| LedgerError::unreadable("products.product_id"))
}

async fn products(
    tx: &Transaction<'_>,
    partition: i32,
) -> Result<HashMap<ProductId, LedgerUnits>, LedgerError> {
    let sql = "SELECT product_id, supply, sold,
                      (SELECT count(*) FROM (
                          SELECT FROM reservations r
                           WHERE r.product_id = p.product_id AND p.per_user_limit IS NOT NULL
                           GROUP BY r.user_id HAVING sum(units) > p.per_user_limit) over_limit)
                 FROM products p WHERE partition = $1";
    let rows = tx.query(sql, &[&partition]).await?;
    rows.iter()
        .map(|row| {
            let units = LedgerUnits {
                supply: row.get(1),
                sold: row.get(2),
                over_limit: row.get(3),
                ..LedgerUnits::default()
            };
            Ok((id(row.get(0))?, units))
        })
        .collect()
}

async fn count_rows(
    tx: &Transaction<'_>,
    partition: i32,
    (epoch, seq): (Epoch, i64),
    in_streams: &[Uuid],
    rows: &mut AuditRows,
) -> Result<(), LedgerError> {
    let sql = "SELECT product_id, sum(units)::bigint,
                      coalesce(sum(units) FILTER (
                          WHERE (epoch < $2 OR (epoch = $2 AND seq <= $3))
                            AND reservation_id <> ALL($4)), 0)::bigint
                 FROM reservations WHERE partition = $1 AND state = 'confirmed'
                GROUP BY product_id";
    let epoch = i64::from(epoch.0);
    for row in tx.query(sql, &[&partition, &epoch, &seq, &in_streams]).await? {
        let units = rows.products.entry(id(row.get(0))?).or_default();
        units.confirmed = row.get(1);
        units.confirmed_at_cut = row.get(2);
    }
    Ok(())
}
