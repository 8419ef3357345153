//! The checkpoints of the audit: sums of rows that do not change any more, so that an audit reads only the others.

use std::{collections::BTreeMap, time::Duration};

use deadpool_postgres::Transaction;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

use super::{
    Ledger, LedgerError,
    covered::{Covered, SeqRange},
};
use crate::domain::{Partition, ProductId};

/// The most ranges of a checkpoint. A partition that would need more keeps the one that it has.
pub(super) const RANGES_MAX: usize = 10_000;

/// A hash of what a row says and what never changes of it, for the checksum of a checkpoint. Of the state it has only whether
/// the row is voided. Another text would make the checkpoints of running deployments wrong (decision 36).
pub(super) const HASH: &str =
    "hashtextextended(concat_ws('/', reservation_id, CASE WHEN state = 'voided' THEN 'voided' ELSE 'confirmed' END,
    coalesce(product_id, ''), coalesce(user_id, ''), units, coalesce(request_id, ''), partition, epoch, seq,
    round(extract(epoch FROM reserved_at) * 1000), void_reason, encode(entry, 'hex')), 0)";

/// Why the checkpoint of a partition cannot cover more rows: every audit reads them again.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each has its message")]
pub enum Blocked {
    #[error("their seqs have more than 10000 gaps")]
    Gaps,
    #[error("a seq is below 1")]
    NotNumbered,
    #[error("a seq has more than one row")]
    Doubled,
    #[error("Postgres refused the checkpoint")]
    Refused(#[source] LedgerError),
}

/// Sums of the rows that a checkpoint covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointSums {
    /// Which seqs these are; each has exactly one row.
    pub covered: Covered,
    /// Their confirmed units, by product.
    pub units: BTreeMap<ProductId, i64>,
    /// How many confirmed ones have a request id, by the start of the bucket in milliseconds since 1970.
    pub request_ids: BTreeMap<i64, i64>,
    /// The exclusive or of a hash of each row.
    pub checksum: i64,
}

/// The buckets of request ids in which an audit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    /// When the first one begins, in milliseconds since 1970.
    pub since_ms: i64,
    /// How wide each one is.
    pub width_ms: i64,
}

/// A stored checkpoint.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Its sums.
    pub sums: CheckpointSums,
    /// The buckets in which its request ids are counted. There may be later ones.
    pub buckets: Buckets,
    /// How long ago its sums were last computed from the rows and were equal; [`Duration::MAX`] if that is in the future,
    /// because the clock of Postgres was set back or it failed over.
    pub verified_ago: Duration,
    version: Uuid,
}

impl Checkpoint {
    /// Whether it counts request ids in these buckets.
    pub fn counts_in(&self, buckets: Buckets) -> bool {
        self.buckets.width_ms == buckets.width_ms && self.buckets.since_ms <= buckets.since_ms
    }
}

const SELECT: &str = "
    SELECT version, epochs, first_seqs, last_seqs, products, units, bucket_width_ms, since_ms, buckets, request_ids,
           checksum, extract(epoch FROM clock_timestamp() - verified_at)::float8
      FROM audit_checkpoints WHERE partition = $1";

/// Seconds, which are negative for a time in the future.
fn time_ago(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn checkpoint(row: &Row) -> Result<Checkpoint, LedgerError> {
    let column = |index| row.try_get::<_, Vec<i64>>(index);
    let seqs = column(2)?.into_iter().zip(column(3)?);
    let ranges = column(1)?.into_iter().zip(seqs);
    let ranges = ranges.map(|(epoch, (first, last))| SeqRange { epoch, first, last });
    let products = row.try_get::<_, Vec<&str>>(4)?.into_iter().zip(column(5)?);
    let units = products.map(|(product, units)| {
        let product = product.parse();
        Ok((product.map_err(|_| LedgerError::InvalidData("audit_checkpoints.products"))?, units))
    });
    let sums = CheckpointSums {
        covered: Covered::new(ranges.collect()),
        units: units.collect::<Result<_, LedgerError>>()?,
        request_ids: column(8)?.into_iter().zip(column(9)?).collect(),
        checksum: row.try_get(10)?,
    };
    Ok(Checkpoint {
        sums,
        buckets: Buckets { since_ms: row.try_get(7)?, width_ms: row.try_get(6)? },
        verified_ago: time_ago(row.try_get(11)?),
        version: row.try_get(0)?,
    })
}

impl Ledger {
    /// The checkpoint of a partition. An audit reads it before Redis: then Redis holds no entry of an order that is
    /// covered.
    pub async fn checkpoint(
        &self,
        partition: Partition,
    ) -> Result<Option<Checkpoint>, LedgerError> {
        self.with("audit_checkpoint", async move |client| {
            let number = i32::from(partition.number());
            let rows = client.query_typed(SELECT, &[(&number, Type::INT4)]).await?;
            rows.first().map(checkpoint).transpose()
        })
        .await
    }

    /// How long ago each checkpoint was verified, as [`Checkpoint::verified_ago`].
    pub async fn verified_ago(&self) -> Result<Vec<Duration>, LedgerError> {
        self.with("audit_checkpoint_ages", async move |client| {
            let sql = "SELECT extract(epoch FROM clock_timestamp() - verified_at)::float8
                         FROM audit_checkpoints";
            let rows = client.query_typed(sql, &[]).await?;
            rows.iter().map(|row| Ok(time_ago(row.try_get(0)?))).collect()
        })
        .await
    }

    /// What the checkpoint of a partition covers.
    pub(super) async fn covered(&self, partition: Partition) -> Result<Covered, LedgerError> {
        let checkpoint = self.checkpoint(partition).await?;
        Ok(checkpoint.map(|checkpoint| checkpoint.sums.covered).unwrap_or_default())
    }
}

const INSERT: &str = "
    INSERT INTO audit_checkpoints (partition, version, epochs, first_seqs, last_seqs, products, units, bucket_width_ms,
                                   since_ms, buckets, request_ids, checksum)
    SELECT $1, gen_random_uuid(), $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 WHERE $12 IS NULL
        ON CONFLICT (partition) DO NOTHING";

const UPDATE: &str = "
    UPDATE audit_checkpoints
       SET version = gen_random_uuid(), epochs = $2, first_seqs = $3, last_seqs = $4, products = $5, units = $6,
           bucket_width_ms = $7, since_ms = $8, buckets = $9, request_ids = $10, checksum = $11,
           saved_at = clock_timestamp()
     WHERE partition = $1 AND version = $12";

/// Stores a checkpoint in place of the one that was read before, unless another process has replaced that one.
pub(super) async fn save(
    tx: &Transaction<'_>,
    partition: Partition,
    before: Option<&Checkpoint>,
    sums: &CheckpointSums,
    buckets: Buckets,
) -> Result<(), LedgerError> {
    let number = i32::from(partition.number());
    let ranges = sums.covered.ranges();
    let epochs: Vec<i64> = ranges.iter().map(|range| range.epoch).collect();
    let first: Vec<i64> = ranges.iter().map(|range| range.first).collect();
    let last: Vec<i64> = ranges.iter().map(|range| range.last).collect();
    let products: Vec<&str> = sums.units.keys().map(ProductId::as_str).collect();
    let units: Vec<i64> = sums.units.values().copied().collect();
    let starts: Vec<i64> = sums.request_ids.keys().copied().collect();
    let request_ids: Vec<i64> = sums.request_ids.values().copied().collect();
    let before = before.map(|checkpoint| checkpoint.version);
    let args: [(&(dyn ToSql + Sync), Type); 12] = [
        (&number, Type::INT4),
        (&epochs, Type::INT8_ARRAY),
        (&first, Type::INT8_ARRAY),
        (&last, Type::INT8_ARRAY),
        (&products, Type::TEXT_ARRAY),
        (&units, Type::INT8_ARRAY),
        (&buckets.width_ms, Type::INT8),
        (&buckets.since_ms, Type::INT8),
        (&starts, Type::INT8_ARRAY),
        (&request_ids, Type::INT8_ARRAY),
        (&sums.checksum, Type::INT8),
        (&before, Type::UUID),
    ];
    tx.query_typed(if before.is_some() { UPDATE } else { INSERT }, &args).await?;
    Ok(())
}

/// Records that the sums of a checkpoint were computed from the rows and were equal, unless another process has replaced
/// it.
pub(super) async fn set_verified(
    tx: &Transaction<'_>,
    partition: Partition,
    checkpoint: &Checkpoint,
) -> Result<(), LedgerError> {
    let number = i32::from(partition.number());
    let sql = "UPDATE audit_checkpoints SET verified_at = clock_timestamp()
                WHERE partition = $1 AND version = $2";
    let args: [(&(dyn ToSql + Sync), Type); 2] =
        [(&number, Type::INT4), (&checkpoint.version, Type::UUID)];
    tx.query_typed(sql, &args).await?;
    Ok(())
}
