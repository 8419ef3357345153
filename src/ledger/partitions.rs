//! The deployment and the states of its partitions.

use deadpool_postgres::Transaction;
use uuid::Uuid;

use super::{Ledger, LedgerError};
use crate::domain::{Epoch, Partition, PartitionCount};

/// What was fixed when the database was first initialised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deployment {
    /// Also in the meta of every partition in Redis.
    pub id: Uuid,
    /// The number of partitions.
    pub partitions: PartitionCount,
}

/// The state of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionStatus {
    /// Never opened.
    New,
    /// Selling.
    Open,
    /// Closed until a rebuild opens it again.
    Closed,
}

impl PartitionStatus {
    /// The value of the column `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// A row of `partitions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of `partitions`")]
pub struct PartitionRow {
    pub partition: Partition,
    pub epoch: Epoch,
    pub status: PartitionStatus,
}

impl Ledger {
    /// The deployment, if the database has been initialised; changes nothing.
    pub async fn deployment(&self) -> Result<Option<Deployment>, LedgerError> {
        self.with("deployment", async move |mut client| {
            deployment(&client.transaction().await?).await
        })
        .await
    }

    /// The deployment. The first call of all creates it, and fixes its number of partitions.
    pub async fn create_deployment(
        &self,
        wanted: PartitionCount,
    ) -> Result<Deployment, LedgerError> {
        self.with("create_deployment", async move |mut client| {
            let tx = client.transaction().await?;
            let mut found = deployment(&tx).await?;
            if found.is_none() {
                let count = i32::from(wanted.get());
                tx.execute(
                    "INSERT INTO deployment (partitions) VALUES ($1) ON CONFLICT DO NOTHING",
                    &[&count],
                )
                .await?;
                tx.execute(
                    "INSERT INTO partitions
                     SELECT n, 0, 'new' FROM deployment, generate_series(0, partitions - 1) n
                         ON CONFLICT DO NOTHING",
                    &[],
                )
                .await?;
                found = deployment(&tx).await?;
                tx.commit().await?;
            }
            found.ok_or(LedgerError::InvalidData("deployment"))
        })
        .await
    }

    /// Every partition's row.
    pub async fn partitions(
        &self,
        count: PartitionCount,
    ) -> Result<Vec<PartitionRow>, LedgerError> {
        self.with("list_partitions", async move |client| {
            let sql = "SELECT partition, epoch, status FROM partitions ORDER BY partition";
            let rows = client.query(sql, &[]).await?;
            rows.iter()
                .map(|row| {
                    let number = u16::try_from(row.get::<_, i32>(0)).ok();
                    let partition = number
                        .and_then(|number| count.get_partition(number))
                        .ok_or(LedgerError::InvalidData("partitions.partition"))?;
                    let (epoch, status) = match (epoch(row.get(1)), row.get::<_, &str>(2)) {
                        (Ok(epoch), "new") => (epoch, PartitionStatus::New),
                        (Ok(epoch), "open") => (epoch, PartitionStatus::Open),
                        (Ok(epoch), _) => (epoch, PartitionStatus::Closed),
                        // Only this partition is closed after the last epoch: the others keep selling.
                        (Err(_), _) => (Epoch::MAX, PartitionStatus::Closed),
                    };
                    Ok(PartitionRow { partition, epoch, status })
                })
                .collect()
        })
        .await
    }

    /// An epoch for one attempt at opening a new partition; `None` when the row has changed since it was read, or
    /// no epoch is left. It is committed before Redis is changed, so a late attempt has an epoch that the ledger
    /// no longer accepts.
    pub async fn begin_opening(
        &self,
        row_before: PartitionRow,
    ) -> Result<Option<Epoch>, LedgerError> {
        self.with("begin_opening", async move |client| {
            let sql = "UPDATE partitions SET epoch = epoch + 1
                        WHERE partition = $1 AND epoch = $2 AND epoch < $3 AND status = 'new'
                    RETURNING epoch";
            let (partition, epoch_before) =
                (i32::from(row_before.partition.number()), i64::from(row_before.epoch.0));
            let row = client
                .query_opt(sql, &[&partition, &epoch_before, &i64::from(Epoch::MAX.0)])
                .await?;
            row.map(|row| epoch(row.get(0))).transpose()
        })
        .await
    }

    /// Ends an opening (`from` is `New`) or a rebuild (`Closed`) after Redis has opened the partition. Returns whether the
    /// partition had this state and still has the epoch of this attempt: no other one has begun since. Nothing is sold
    /// before this has committed.
    pub async fn set_open(
        &self,
        partition: Partition,
        epoch: Epoch,
        from: PartitionStatus,
    ) -> Result<bool, LedgerError> {
        self.with("open_partition", async move |client| {
            let sql = "UPDATE partitions SET status = 'open', opened = epoch
                        WHERE partition = $1 AND epoch = $2 AND status = $3";
            let (partition, epoch) = (i32::from(partition.number()), i64::from(epoch.0));
            Ok(client.execute(sql, &[&partition, &epoch, &from.as_str()]).await? == 1)
        })
        .await
    }
}

async fn deployment(tx: &Transaction<'_>) -> Result<Option<Deployment>, LedgerError> {
    let row = tx.query_opt("SELECT id, partitions FROM deployment", &[]).await?;
    let deployment = row.map(|row| {
        let count = u32::try_from(row.get::<_, i32>(1)).ok();
        let count = count.and_then(|count| PartitionCount::try_from(count).ok());
        let partitions = count.ok_or(LedgerError::InvalidData("deployment.partitions"))?;
        Ok(Deployment { id: row.get(0), partitions })
    });
    deployment.transpose()
}

pub(super) fn epoch(value: i64) -> Result<Epoch, LedgerError> {
    let epoch = u32::try_from(value).ok().map(Epoch).filter(|epoch| *epoch <= Epoch::MAX);
    epoch.ok_or(LedgerError::InvalidData("partitions.epoch"))
}
