//! The deployment and the life of its partitions.

use std::future::Future;

use uuid::Uuid;

use super::{Ledger, LedgerError};
use crate::domain::{Epoch, Partition, PartitionCount};

/// What was fixed when the database was first initialised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deployment {
    /// Stands in the meta of every partition, too.
    pub id: Uuid,
    /// How many partitions.
    pub partitions: PartitionCount,
}

/// Whether the deployment is the one that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Establish {
    /// It is.
    Is(Deployment),
    /// It has another number of partitions.
    Other(Deployment),
}

/// Where a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionStatus {
    /// Never opened.
    New,
    /// Selling.
    Open,
    /// Under repair.
    Closed,
}

/// A row of `partitions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionRow {
    /// Which.
    pub partition: Partition,
    /// Its epoch.
    pub epoch: Epoch,
    /// Where it stands.
    pub status: PartitionStatus,
}

impl Ledger {
    /// The deployment; the first caller ever fixes its number of partitions.
    ///
    /// # Errors
    ///
    /// When Postgres does not do it.
    pub async fn establish(&self, wanted: PartitionCount) -> Result<Establish, LedgerError> {
        self.with(|mut client| async move {
            let count = i32::from(wanted.get());
            let tx = client.transaction().await?;
            tx.execute(
                "INSERT INTO deployment (partitions) VALUES ($1) ON CONFLICT DO NOTHING",
                &[&count],
            )
            .await?;
            let row = tx.query_one("SELECT id, partitions FROM deployment", &[]).await?;
            let found = u32::try_from(row.get::<_, i32>(1)).ok();
            let found = found.and_then(|found| PartitionCount::try_from(found).ok());
            let deployment = Deployment {
                id: row.get(0),
                partitions: found.ok_or(LedgerError::unreadable("deployment.partitions"))?,
            };
            if deployment.partitions != wanted {
                return Ok(Establish::Other(deployment));
            }
            tx.execute(
                "INSERT INTO partitions SELECT n, 1, 'new' FROM generate_series(0, $1 - 1) n
                 ON CONFLICT DO NOTHING",
                &[&count],
            )
            .await?;
            tx.commit().await?;
            Ok(Establish::Is(deployment))
        })
        .await
    }

    /// Every partition's row.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer.
    pub async fn partitions(
        &self,
        count: PartitionCount,
    ) -> Result<Vec<PartitionRow>, LedgerError> {
        self.with(|client| async move {
            let sql = "SELECT partition, epoch, status FROM partitions ORDER BY partition";
            let rows = client.query(sql, &[]).await?;
            rows.iter()
                .map(|row| {
                    let number = u16::try_from(row.get::<_, i32>(0)).ok();
                    Ok(PartitionRow {
                        partition: number
                            .and_then(|number| count.get_partition(number))
                            .ok_or(LedgerError::unreadable("partitions.partition"))?,
                        epoch: epoch(row.get(1))?,
                        status: match row.get::<_, &str>(2) {
                            "new" => PartitionStatus::New,
                            "open" => PartitionStatus::Open,
                            _ => PartitionStatus::Closed,
                        },
                    })
                })
                .collect()
        })
        .await
    }

    /// Opens a new partition: runs `open` while holding its row, then marks it open if `open` says so.
    /// Returns whether the partition was still new. Nobody sells from it before this has committed.
    ///
    /// # Errors
    ///
    /// When Postgres does not do it; then the partition is still new and it may be repeated.
    pub async fn open_partition<F>(
        &self,
        partition: Partition,
        open: impl FnOnce(Epoch) -> F,
    ) -> Result<bool, LedgerError>
    where
        F: Future<Output = bool>,
    {
        self.with(|mut client| async move {
            let number = i32::from(partition.number());
            let tx = client.transaction().await?;
            let sql =
                "SELECT epoch FROM partitions WHERE partition = $1 AND status = 'new' FOR UPDATE";
            let Some(row) = tx.query_opt(sql, &[&number]).await? else {
                return Ok(false);
            };
            if open(epoch(row.get(0))?).await {
                tx.execute(
                    "UPDATE partitions SET status = 'open' WHERE partition = $1",
                    &[&number],
                )
                .await?;
                tx.commit().await?;
            }
            Ok(true)
        })
        .await
    }
}

pub(super) fn epoch(value: i64) -> Result<Epoch, LedgerError> {
    u32::try_from(value).map(Epoch).map_err(|_| LedgerError::unreadable("partitions.epoch"))
}
