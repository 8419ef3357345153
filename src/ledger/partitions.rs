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
    /// How many partitions.
    pub partitions: PartitionCount,
}

/// Whether the database has the requested number of partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Established {
    /// It has.
    Matches(Deployment),
    /// It has another number of partitions.
    Differs(Deployment),
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

/// A row of `partitions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionRow {
    /// Which.
    pub partition: Partition,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its state.
    pub status: PartitionStatus,
}

impl Ledger {
    /// The deployment, if the database has been initialised; changes nothing.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer, or has no such table.
    pub async fn deployment(&self) -> Result<Option<Deployment>, LedgerError> {
        self.with("deployment", |mut client| async move {
            deployment(&client.transaction().await?).await
        })
        .await
    }

    /// The deployment; the first caller ever fixes its number of partitions.
    ///
    /// # Errors
    ///
    /// When Postgres does not do it.
    pub async fn establish(&self, wanted: PartitionCount) -> Result<Established, LedgerError> {
        self.with("establish", |mut client| async move {
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
            let found = found.ok_or(LedgerError::unreadable("deployment"))?;
            let same = found.partitions == wanted;
            Ok(if same { Established::Matches(found) } else { Established::Differs(found) })
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
        self.with("list_partitions", |client| async move {
            let sql = "SELECT partition, epoch, status FROM partitions ORDER BY partition";
            let rows = client.query(sql, &[]).await?;
            rows.iter()
                .map(|row| {
                    let number = u16::try_from(row.get::<_, i32>(0)).ok();
                    let partition = number
                        .and_then(|number| count.get_partition(number))
                        .ok_or(LedgerError::unreadable("partitions.partition"))?;
                    let status = match row.get::<_, &str>(2) {
                        "new" => PartitionStatus::New,
                        "open" => PartitionStatus::Open,
                        _ => PartitionStatus::Closed,
                    };
                    // Only this partition is closed after the last epoch: the others keep selling.
                    Ok(epoch(row.get(1)).map_or(
                        PartitionRow {
                            partition,
                            epoch: Epoch::MAX,
                            status: PartitionStatus::Closed,
                        },
                        |epoch| PartitionRow { partition, epoch, status },
                    ))
                })
                .collect()
        })
        .await
    }

    /// An epoch for one attempt at opening a new partition; `None` when the row has changed since it was read, or
    /// no epoch is left. It is committed before Redis is changed, so a late attempt has an epoch that the ledger
    /// no longer accepts.
    ///
    /// # Errors
    ///
    /// When Postgres does not do it.
    pub async fn begin_opening(&self, seen: PartitionRow) -> Result<Option<Epoch>, LedgerError> {
        self.with("begin_opening", |client| async move {
            let sql = "UPDATE partitions SET epoch = epoch + 1
                        WHERE partition = $1 AND epoch = $2 AND epoch < $3 AND status = 'new'
                    RETURNING epoch";
            let (partition, seen) = (i32::from(seen.partition.number()), i64::from(seen.epoch.0));
            let row = client.query_opt(sql, &[&partition, &seen, &i64::from(Epoch::MAX.0)]).await?;
            row.map(|row| epoch(row.get(0))).transpose()
        })
        .await
    }

    /// Ends an attempt after Redis has opened the partition; returns whether no other attempt has begun since.
    /// Nothing is sold before this has committed.
    ///
    /// # Errors
    ///
    /// When Postgres does not do it; then the partition is still new, or open.
    pub async fn opened(&self, partition: Partition, epoch: Epoch) -> Result<bool, LedgerError> {
        self.mark_open(partition, epoch, "new").await
    }

    /// Marks a partition open if it has this epoch and this state.
    pub(super) async fn mark_open(
        &self,
        partition: Partition,
        epoch: Epoch,
        status: &'static str,
    ) -> Result<bool, LedgerError> {
        self.with("open_partition", |client| async move {
            let sql = "UPDATE partitions SET status = 'open', opened = epoch
                        WHERE partition = $1 AND epoch = $2 AND status = $3";
            let (partition, epoch) = (i32::from(partition.number()), i64::from(epoch.0));
            Ok(client.execute(sql, &[&partition, &epoch, &status]).await? == 1)
        })
        .await
    }
}

async fn deployment(tx: &Transaction<'_>) -> Result<Option<Deployment>, LedgerError> {
    let row = tx.query_opt("SELECT id, partitions FROM deployment", &[]).await?;
    let deployment = row.map(|row| {
        let count = u32::try_from(row.get::<_, i32>(1)).ok();
        let count = count.and_then(|count| PartitionCount::try_from(count).ok());
        let partitions = count.ok_or(LedgerError::unreadable("deployment.partitions"))?;
        Ok(Deployment { id: row.get(0), partitions })
    });
    deployment.transpose()
}

pub(super) fn epoch(value: i64) -> Result<Epoch, LedgerError> {
    let epoch = u32::try_from(value).ok().map(Epoch).filter(|epoch| *epoch <= Epoch::MAX);
    epoch.ok_or(LedgerError::unreadable("partitions.epoch"))
}
