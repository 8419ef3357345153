//! Stores a batch of orders of one partition, exactly once each.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use tokio_postgres::types::{ToSql, Type};
use tracing::Span;
use uuid::Uuid;

use super::{
    ActionBy, Ledger, LedgerError, RecordedAction, actions,
    pool::{from_count, timestamp, to_bigint},
};
use crate::{
    domain::{Epoch, Order, Partition, ReservationId},
    telemetry,
};

/// The result of a batch that committed. An order that is in neither list is confirmed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// How many orders were stored now; the others had been decided before.
    pub inserted: usize,
    /// Orders that had been voided before: their units must go back (R6).
    pub voided: Vec<ReservationId>,
    /// Orders whose id the ledger has with other content; the caller must report them.
    pub mismatched: Vec<Mismatch>,
}

/// An id with two contents, and the column that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the type describes them")]
pub struct Mismatch {
    pub id: ReservationId,
    pub column: &'static str,
}

const GATE: &str = "SELECT 1 FROM partitions WHERE partition = $1 AND epoch = $2 FOR NO KEY UPDATE";

/// Locks the gate of a partition (R2): until the commit, no transaction of another epoch can lock it.
pub(super) async fn lock_gate(
    tx: &Transaction<'_>,
    partition: Partition,
    epoch: Epoch,
) -> Result<(), LedgerError> {
    let (number, epoch) = (i32::from(partition.number()), i64::from(epoch.0));
    let args: [(&(dyn ToSql + Sync), Type); 2] = [(&number, Type::INT4), (&epoch, Type::INT8)];
    let row = tx.query_typed_opt(GATE, &args).await?;
    row.map(drop).ok_or(LedgerError::EpochChanged)
}

impl Ledger {
    /// Stores orders of one partition under its current epoch, all or none of them. Repeating it, or
    /// racing another consumer with the same orders, changes nothing.
    /// # Errors
    /// `Rejected` when one of them cannot be stored: halve the batch. `EpochChanged` when the partition
    /// has another epoch now. Nothing was stored. If the reply to COMMIT was lost, running it again
    /// shows the outcome.
    pub async fn store(
        &self,
        partition: Partition,
        epoch: Epoch,
        orders: &[&Order],
    ) -> Result<Stored, LedgerError> {
        self.store_batch(partition, epoch, orders, End::Commit).await
    }

    /// Stores a dead order; the same transaction records who did it.
    pub async fn retry(
        &self,
        partition: Partition,
        epoch: Epoch,
        order: &Order,
        by: &ActionBy,
    ) -> Result<Stored, LedgerError> {
        self.store_batch(partition, epoch, &[order], End::Record(by)).await
    }

    /// What [`Ledger::store`] would do with an order: the same transaction, rolled back.
    pub async fn try_store(
        &self,
        partition: Partition,
        epoch: Epoch,
        order: &Order,
    ) -> Result<Stored, LedgerError> {
        self.store_batch(partition, epoch, &[order], End::RollBack).await
    }

    async fn store_batch(
        &self,
        partition: Partition,
        epoch: Epoch,
        orders: &[&Order],
        end: End<'_>,
    ) -> Result<Stored, LedgerError> {
        let spans = if matches!(end, End::RollBack) { Vec::new() } else { spans(orders) };
        let stored = self.with_prepared("store_orders", |mut client| async move {
            let tx = client.transaction().await?;
            lock_gate(&tx, partition, epoch).await?;
            let inserted = insert(&tx, partition, orders).await?;
            let mut stored = Stored { inserted, ..Stored::default() };
            if inserted < orders.len() {
                // The rows that were inserted now have the content of their orders.
                compare(&tx, orders, &mut stored).await?;
            }
            match end {
                End::RollBack => tx.rollback().await?,
                End::Commit => tx.commit().await?,
                End::Record(by) => {
                    // One order: nothing is recorded if it was decided before.
                    for order in orders.iter().take(inserted) {
                        actions::write(&*tx, order.id, RecordedAction::Retry, by).await?;
                    }
                    tx.commit().await?;
                }
            }
            Ok(stored)
        });
        let stored = stored.await;
        if let Err(error) = &stored {
            telemetry::record_failure(&spans, error.label());
        }
        stored
    }
}

/// A span for each traced order, which ends with the transaction.
fn spans(orders: &[&Order]) -> Vec<Span> {
    let traced = orders.iter().filter_map(|order| Some((order.traceparent.as_deref()?, order.id)));
    traced.map(|(trace, id)| telemetry::store_span(trace, id, orders.len())).collect()
}

/// How a transaction that has stored a batch ends.
#[derive(Clone, Copy)]
enum End<'a> {
    Commit,
    /// With a record of who stored what was dead.
    Record(&'a ActionBy),
    /// Nothing is kept.
    RollBack,
}

/// Returns how many rows it inserted, and not their ids: 500 rows of an answer cost Postgres and this program more than the
/// comparison of a batch in which an order was decided before, which is rare.
///
/// Products are found by an array of their ids and never by a join: after an import that was rolled back,
/// the statistics of Postgres may say that the table is empty, and a join is then planned as a nested loop
/// over all of it, which takes seconds per batch.
const INSERT: &str = "
    WITH inserted AS (
        INSERT INTO reservations
               (reservation_id, state, product_id, user_id, units, request_id,
                partition, epoch, seq, reserved_at)
        SELECT id, 'confirmed', product, buyer, 1, request, $1, epoch, seq, at
          FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
                      $8::timestamptz[]) AS o (id, product, buyer, request, epoch, seq, at)
            ON CONFLICT (reservation_id) DO NOTHING
        RETURNING product_id, units
    ), counts AS (
        SELECT product_id, sum(units) AS n FROM inserted GROUP BY product_id
    ), counted AS (
        UPDATE products
           SET sold = sold + ((SELECT jsonb_object_agg(product_id, n) FROM counts) ->> product_id)::bigint
         WHERE product_id = ANY (ARRAY (SELECT product_id FROM counts))
    )
    SELECT count(*) FROM inserted";

async fn insert(
    tx: &Transaction<'_>,
    partition: Partition,
    orders: &[&Order],
) -> Result<usize, LedgerError> {
    let ids: Vec<Uuid> = orders.iter().map(|o| o.id.to_uuid()).collect();
    let products: Vec<&str> = orders.iter().map(|o| o.product.as_str()).collect();
    let users: Vec<&str> = orders.iter().map(|o| o.user.as_str()).collect();
    let requests: Vec<Option<&str>> =
        orders.iter().map(|o| o.request.as_ref().map(|id| id.as_str())).collect();
    let epochs: Vec<i64> = orders.iter().map(|o| i64::from(o.id.epoch().0)).collect();
    let seqs: Vec<i64> = orders.iter().map(|o| to_bigint(o.id.seq())).collect();
    let times: Vec<_> = orders.iter().map(|o| timestamp(o.reserved_at_ms)).collect();
    // The only statement that is kept prepared: planning it takes longer than storing a few orders.
    let statement = tx.prepare_cached(INSERT).await?;
    let number = i32::from(partition.number());
    let args: [&(dyn ToSql + Sync); 8] =
        [&number, &ids, &products, &users, &requests, &epochs, &seqs, &times];
    let inserted = from_count(tx.query_one(&statement, &args).await?.get(0));
    Ok(usize::try_from(inserted).unwrap_or(usize::MAX))
}

const COMPARE: &str = "
    SELECT reservation_id, state, product_id, user_id, request_id
      FROM reservations WHERE reservation_id = ANY($1)";

async fn compare(
    tx: &Transaction<'_>,
    orders: &[&Order],
    stored: &mut Stored,
) -> Result<(), LedgerError> {
    let ids: Vec<Uuid> = orders.iter().map(|order| order.id.to_uuid()).collect();
    let rows = tx.query_typed(COMPARE, &[(&ids, Type::UUID_ARRAY)]).await?;
    let rows: HashMap<Uuid, _> = rows.iter().map(|row| (row.get::<_, Uuid>(0), row)).collect();
    for order in orders {
        let Some(row) = rows.get(&order.id.to_uuid()) else {
            stored.mismatched.push(Mismatch { id: order.id, column: "reservation_id" });
            continue;
        };
        if row.try_get::<_, &str>(1)? == "voided" {
            stored.voided.push(order.id);
            continue;
        }
        let request = order.request.as_ref().map(|id| id.as_str());
        let columns = [
            ("product_id", row.try_get(2)?, Some(order.product.as_str())),
            ("user_id", row.try_get(3)?, Some(order.user.as_str())),
            ("request_id", row.try_get::<_, Option<&str>>(4)?, request),
        ];
        if let Some((column, ..)) = columns.iter().find(|(_, has, wants)| has != wants) {
            stored.mismatched.push(Mismatch { id: order.id, column });
        }
    }
    Ok(())
}
