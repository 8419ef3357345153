//! Voids an order, before its unit is given back (R5). A void has the primary key of the order: an order is
//! stored or voided, never both.

use super::{
    ActionBy, Ledger, LedgerError, RecordedAction, actions,
    pool::{timestamp, to_bigint},
    store::lock_gate,
};
use crate::domain::{Epoch, Partition, ReservationId};

/// An order to void.
#[derive(Debug, Clone)]
pub struct VoidRequest {
    /// Its id.
    pub id: ReservationId,
    /// When its unit was taken, in milliseconds since 1970.
    pub reserved_at_ms: i64,
    /// Why it is voided.
    pub reason: String,
    /// The stream entry as it was, for a later investigation.
    pub entry: Vec<u8>,
}

/// What the ledger holds afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoidOutcome {
    /// The reservation is voided, by this call.
    Voided,
    /// It had been voided before.
    VoidedBefore,
    /// The order had been stored: its unit is sold and must not go back.
    Confirmed,
}

impl Ledger {
    /// Voids an order under the partition's current epoch; the same transaction records who did it.
    /// After an error the order may be voided nevertheless; a repeated call reports the outcome.
    pub async fn void(
        &self,
        partition: Partition,
        epoch: Epoch,
        void: &VoidRequest,
        by: &ActionBy,
    ) -> Result<VoidOutcome, LedgerError> {
        self.with("void_order", async move |mut client| {
            let tx = client.transaction().await?;
            lock_gate(&tx, partition, epoch).await?;
            let id = void.id.to_uuid();
            // No text of an entry may prevent its void: Postgres accepts no NUL.
            let void_reason = void.reason.replace('\0', " ");
            let inserted = tx
                .execute(
                    // The primary key does not include rows that were archived; reading the table does.
                    "INSERT INTO reservations (reservation_id, state, partition, epoch, seq,
                                               reserved_at, void_reason, entry)
                     SELECT $1::uuid, 'voided', $2::int, $3::bigint, $4::bigint, $5::timestamptz, $6::text,
                            $7::bytea
                      WHERE NOT EXISTS (SELECT FROM reservations WHERE reservation_id = $1)
                         ON CONFLICT (reservation_id) DO NOTHING",
                    &[
                        &id,
                        &i32::from(partition.number()),
                        &i64::from(void.id.epoch().0),
                        &to_bigint(void.id.seq()),
                        &timestamp(void.reserved_at_ms),
                        &void_reason,
                        &void.entry,
                    ],
                )
                .await?;
            let row = tx
                .query_one("SELECT state FROM reservations WHERE reservation_id = $1", &[&id])
                .await?;
            let outcome = match row.get::<_, &str>(0) {
                "voided" if inserted == 1 => VoidOutcome::Voided,
                "voided" => VoidOutcome::VoidedBefore,
                _ => VoidOutcome::Confirmed,
            };
            if outcome == VoidOutcome::Voided {
                actions::write(&*tx, void.id, RecordedAction::Release, by).await?;
            }
            tx.commit().await?;
            Ok(outcome)
        })
        .await
    }
}
