//! Seqs without a row, and seqs with more than one.
//!
//! Must never: read all rows of a partition for a seq that has one.

use deadpool_postgres::Transaction;

use super::{AuditCut, Ledger, LedgerError};
use crate::domain::Partition;

/// Seqs with a voided row and another row, whether a checkpoint covers them or not; at most 20, with their epochs. Two rows
/// that are not voided are refused by the unique index. It looks at the voided rows, of which there are few, because the
/// other row of a seq is found by its index.
pub(super) async fn doubled(
    tx: &Transaction<'_>,
    partition: Partition,
) -> Result<Vec<(i64, i64)>, LedgerError> {
    let sql = "SELECT epoch, seq
                 FROM (SELECT epoch, seq, count(*) AS rows FROM reservations
                        WHERE state = 'voided' AND partition = $1 GROUP BY epoch, seq) AS voided
                WHERE rows > 1
                   OR EXISTS (SELECT FROM reservations r
                               WHERE r.state = 'confirmed' AND r.partition = $1
                                 AND r.epoch = voided.epoch AND r.seq = voided.seq)
                ORDER BY epoch, seq LIMIT 20";
    let rows = tx.query(sql, &[&i32::from(partition.number())]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

impl Ledger {
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
