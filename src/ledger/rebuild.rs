//! The ledger's part of a rebuild: the lock, and the rows from which Redis is filled.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};

use super::{
    Ledger, LedgerError, PartitionRow, catalogue,
    pool::{milliseconds, timestamp},
};
use crate::domain::{
    Bought, Epoch, IdempotencyRecord, Partition, ProductId, ProductWithSold, ReservationId,
};
use deadpool_postgres::ClientWrapper;
use tokio_postgres::error::SqlState;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// Held while partitions are opened or one is rebuilt, so that two processes do not undo each other's work. It is
/// an optimization: correctness depends on the epoch alone (R7).
pub struct LockGuard {
    /// An open transaction holds the lock; closing its connection releases it.
    _held: AbortOnDropHandle<()>,
}

/// How often that transaction is used. Postgres ends it after 30 s without use, which releases the lock of a process
/// that stalls or whose machine has failed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

impl LockGuard {
    fn hold(connection: ClientWrapper) -> Self {
        let held = async move {
            loop {
                tokio::time::sleep(KEEP_ALIVE).await;
                if connection.batch_execute("").await.is_err() {
                    return;
                }
            }
        };
        Self { _held: AbortOnDropHandle::new(TaskTracker::new().spawn(held)) }
    }
}

/// The first key of the advisory locks of this program.
const REBUILD: i32 = 7069;
const OPENING: i32 = 7070;

/// A partition that was closed for a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedForRebuild {
    /// The rebuild's own epoch.
    pub epoch: Epoch,
    /// The last one in which it was open.
    pub last_open: Epoch,
}

impl Ledger {
    /// The lock for rebuilding a partition; `None` while another process holds it.
    pub async fn lock_rebuild(
        &self,
        partition: Partition,
    ) -> Result<Option<LockGuard>, LedgerError> {
        self.with_detached("lock_rebuild", async move |connection| {
            let key = i32::from(partition.number());
            connection.batch_execute("BEGIN").await?;
            let sql = "SELECT pg_try_advisory_xact_lock($1, $2)";
            let ours: bool = connection.query_one(sql, &[&REBUILD, &key]).await?.try_get(0)?;
            Ok(ours.then(|| LockGuard::hold(connection)))
        })
        .await
    }

    /// The lock for opening new partitions, once no other process holds it; `None` if that takes longer than
    /// `lock_timeout`: another process stalls.
    pub async fn lock_opening(&self) -> Result<Option<LockGuard>, LedgerError> {
        self.with_detached("lock_opening", async move |connection| {
            connection.batch_execute("BEGIN").await?;
            let sql = "SELECT pg_advisory_xact_lock($1, 0)";
            match connection.execute(sql, &[&OPENING]).await {
                Ok(_) => Ok(Some(LockGuard::hold(connection))),
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// R7: closes a partition under a new epoch, above the one in the row and above `above`: a ledger that lost
    /// commits may have an older epoch than Redis, and ids are never reused. From now on the gate refuses
    /// transactions of the older epoch. `None` when another process was first, or no epoch is left. A new partition is
    /// closed as well: its caller knows that the ledger lost the commit that opened it.
    pub async fn close_partition(
        &self,
        row_before: PartitionRow,
        above: Epoch,
    ) -> Result<Option<ClosedForRebuild>, LedgerError> {
        self.with("close_partition", async move |client| {
            let (partition, epoch) =
                (i32::from(row_before.partition.number()), i64::from(row_before.epoch.0));
            // If it was closed then and is open now, another process has rebuilt it.
            let status = row_before.status.as_str();
            let (above, last) = (i64::from(above.0), i64::from(Epoch::MAX.0));
            let sql = "UPDATE partitions SET epoch = greatest(epoch, $4) + 1, status = 'closed'
                        WHERE partition = $1 AND epoch = $2 AND status = $3
                          AND greatest(epoch, $4) < $5
                    RETURNING epoch, opened";
            let row = client.query_opt(sql, &[&partition, &epoch, &status, &above, &last]).await?;
            let closed = row.map(|row| {
                let epoch = super::partitions::epoch;
                Ok(ClosedForRebuild { epoch: epoch(row.get(0))?, last_open: epoch(row.get(1))? })
            });
            closed.transpose()
        })
        .await
    }

    /// The last epoch in which a partition was open in the ledger.
    pub async fn last_open(&self, partition: Partition) -> Result<Epoch, LedgerError> {
        self.with("last_open", async move |client| {
            let sql = "SELECT opened FROM partitions WHERE partition = $1";
            let row = client.query_one(sql, &[&i32::from(partition.number())]).await?;
            super::partitions::epoch(row.get(0))
        })
        .await
    }

    /// Every product of a partition with its sold units.
    pub async fn products_with_sold(
        &self,
        partition: Partition,
    ) -> Result<Vec<ProductWithSold>, LedgerError> {
        self.with("products_with_sold", async move |client| {
            let columns = catalogue::COLUMNS;
            let sql = format!("SELECT {columns}, sold FROM products WHERE partition = $1");
            let rows = client.query(&sql, &[&i32::from(partition.number())]).await?;
            rows.iter()
                .map(|row| {
                    let product = catalogue::product(row)?;
                    Ok(ProductWithSold { product, sold: row.try_get("sold")? })
                })
                .collect()
        })
        .await
    }

    /// Streams the request ids of confirmed orders made since `since_ms`.
    pub async fn idempotency_records(
        &self,
        partition: Partition,
        since_ms: i64,
    ) -> Result<impl Stream<Item = Result<IdempotencyRecord, LedgerError>>, LedgerError> {
        let sql = "SELECT reservation_id, user_id, product_id, request_id, reserved_at
                     FROM reservations
                    WHERE partition = $1 AND state = 'confirmed' AND request_id IS NOT NULL
                      AND reserved_at >= $2 AND reservation_id BETWEEN $3 AND $4";
        // Reads only the partition's range of the primary key.
        let (first, last) = ReservationId::range_of(partition);
        let (number, since) = (i32::from(partition.number()), timestamp(since_ms));
        let rows = self.rows("idempotency_records", sql, &[&number, &since, &first, &last]).await?;
        Ok(rows.map(|row| {
            let row = row?;
            let id = ReservationId::from_uuid(row.try_get(0)?);
            Ok(IdempotencyRecord {
                id: id.map_err(|_| LedgerError::InvalidData("reservations.reservation_id"))?,
                user: row.try_get(1)?,
                product: row.try_get(2)?,
                request: row.try_get(3)?,
                reserved_at_ms: milliseconds(row.try_get(4)?),
            })
        }))
    }

    /// Streams how many units each user has of these products of a partition.
    pub async fn bought(
        &self,
        partition: Partition,
        products: &[&ProductId],
    ) -> Result<impl Stream<Item = Result<Bought, LedgerError>>, LedgerError> {
        // The products are given and not looked up for each row, which takes as long as all the rest.
        let sql = "SELECT user_id, product_id, sum(units)::bigint
                     FROM reservations
                    WHERE partition = $1 AND state = 'confirmed' AND product_id = ANY($2)
                    GROUP BY user_id, product_id";
        let bad = |_| LedgerError::InvalidData("reservations.user_id");
        let products: Vec<&str> = products.iter().map(|id| id.as_str()).collect();
        let number = i32::from(partition.number());
        let rows = self.rows("units_bought", sql, &[&number, &products]).await?;
        Ok(rows.map(move |row| {
            let row = row?;
            Ok(Bought {
                user: row.try_get::<_, &str>(0)?.parse().map_err(bad)?,
                product: row.try_get::<_, &str>(1)?.parse().map_err(bad)?,
                units: row.try_get(2)?,
            })
        }))
    }
}
