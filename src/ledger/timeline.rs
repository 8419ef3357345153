//! Detects lost commits: an asynchronous failover or a restore from a backup loses some.

use tokio_postgres::{
    error::SqlState,
    types::{ToSql, Type},
};

use super::{
    Ledger, LedgerError,
    covered::decided_in_ranges,
    pool::{from_count, to_bigint},
};
use crate::domain::{Epoch, Partition};

/// The timeline of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timeline {
    /// A primary on this timeline, as eight hexadecimal digits. A promotion begins another one.
    On(String),
    /// A standby, whose timeline is not read.
    Standby,
    /// This server does not show its timeline.
    Refused,
}

impl Ledger {
    /// The timeline of the ledger, from its write-ahead log.
    pub async fn timeline(&self) -> Result<Timeline, LedgerError> {
        self.with("timeline", async move |client| {
            let sql = "SELECT CASE WHEN NOT pg_is_in_recovery()
                              THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END";
            let refused = [
                SqlState::INSUFFICIENT_PRIVILEGE,
                SqlState::UNDEFINED_FUNCTION,
                SqlState::FEATURE_NOT_SUPPORTED,
            ];
            match client.query_one(sql, &[]).await {
                Ok(row) => {
                    Ok(row.get::<_, Option<String>>(0).map_or(Timeline::Standby, Timeline::On))
                }
                Err(error) if error.code().is_some_and(|code| refused.contains(code)) => {
                    Ok(Timeline::Refused)
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Whether this is a standby, which may be behind its primary.
    pub async fn is_standby(&self) -> Result<bool, LedgerError> {
        self.with("is_standby", async move |client| {
            let row = client.query_typed_one("SELECT pg_is_in_recovery()", &[]).await?;
            Ok(row.try_get(0)?)
        })
        .await
    }

    /// The partitions whose confirmed order of the given epoch and seq is not in the ledger. None on a
    /// standby, which may be behind its primary.
    pub async fn without_order(
        &self,
        orders: &[(Partition, Epoch, u64)],
    ) -> Result<Vec<Partition>, LedgerError> {
        if orders.is_empty() {
            return Ok(Vec::new());
        }
        let partitions: Vec<i32> = orders.iter().map(|(p, ..)| i32::from(p.number())).collect();
        let epochs: Vec<i64> = orders.iter().map(|(_, epoch, _)| i64::from(epoch.0)).collect();
        let seqs: Vec<i64> = orders.iter().map(|(.., seq)| to_bigint(*seq)).collect();
        let missing = self.with("missing_orders", async move |client| {
            // The index reservations_seq_once answers it. A subquery, because a join may be planned over the
            // whole table if the statistics say that it is empty.
            let sql = "SELECT o.partition
                         FROM unnest($1::int[], $2::bigint[], $3::bigint[]) o (partition, epoch, seq)
                        WHERE NOT pg_is_in_recovery() AND (
                              SELECT r.seq FROM reservations r
                               WHERE r.state = 'confirmed' AND r.partition = o.partition
                                 AND r.epoch = o.epoch AND r.seq = o.seq LIMIT 1) IS NULL";
            let args: [(&(dyn ToSql + Sync), Type); 3] = [
                (&partitions, Type::INT4_ARRAY),
                (&epochs, Type::INT8_ARRAY),
                (&seqs, Type::INT8_ARRAY),
            ];
            let rows = client.query_typed(sql, &args).await?;
            Ok(rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>())
        });
        let missing = missing.await?;
        let is_missing = |partition: &Partition| missing.contains(&i32::from(partition.number()));
        Ok(orders.iter().map(|(partition, ..)| *partition).filter(is_missing).collect())
    }

    /// How many seqs of an epoch have a row, confirmed or voided. What the checkpoint of the audit covers is not read.
    pub async fn decided_seqs(
        &self,
        partition: Partition,
        epoch: Epoch,
    ) -> Result<u64, LedgerError> {
        let covered = self.covered(partition).await?;
        let (number, epoch) = (i32::from(partition.number()), i64::from(epoch.0));
        let [a, b, c, d] = covered.other_rows();
        let others = self.with_maintenance("decided_seqs", async move |client| {
            let decided = decided_in_ranges("r.epoch, r.seq");
            let sql = format!("SELECT count(DISTINCT seq) FROM {decided} WHERE epoch = $6");
            let args: [&(dyn ToSql + Sync); 6] = [&a, &b, &c, &d, &number, &epoch];
            Ok(client.query_one(&sql, &args).await?.get::<_, i64>(0))
        });
        Ok(from_count(others.await? + covered.count_of(epoch)))
    }
}
