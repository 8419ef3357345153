//! The table `dead_actions`: who did what to a dead entry, and why.
//!
//! Must never: record an action that was not done, or miss one that was.

use tokio_postgres::GenericClient;

use super::{Ledger, LedgerError, pool::milliseconds};
use crate::domain::ReservationId;

/// The most records of one reservation that are read; older ones are left out.
const RECORDS_MAX: i64 = 1000;

/// Who acts on a dead entry, and why.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the type describes them")]
pub struct ActionBy {
    pub actor: String,
    pub reason: String,
}

/// An action on a dead entry, as it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordedAction {
    /// Voided the order; its unit is given back next.
    Release,
    /// Gave back the unit of an order that had been voided before.
    Finish,
    /// Stored the order.
    Retry,
    /// Tried to store the order, and the ledger refused it again.
    Refused,
    /// Removed the dead entry of an order that is stored.
    Discard,
    /// Began to finish or to discard, and the result in Redis is unknown.
    Unknown,
}

impl RecordedAction {
    /// The value of the column `action`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Finish => "finish",
            Self::Retry => "retry",
            Self::Refused => "refused",
            Self::Discard => "discard",
            Self::Unknown => "unknown",
        }
    }
}

/// A record whose action is not finished yet.
#[derive(Debug)]
pub struct UnfinishedRecord {
    id: ReservationId,
    number: i64,
}

/// One record, with the time by the clock of Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of `dead_actions`")]
pub struct ActionRecord {
    pub at_ms: i64,
    pub actor: String,
    pub action: String,
    pub reason: String,
}

/// Inserts a record in the caller's transaction; returns its number.
pub(super) async fn write(
    client: &impl GenericClient,
    id: ReservationId,
    action: RecordedAction,
    by: &ActionBy,
) -> Result<i64, LedgerError> {
    // The reason of a dead entry may be any text; Postgres accepts no NUL.
    let reason = by.reason.replace('\0', " ");
    let sql = "INSERT INTO dead_actions (actor, action, reservation_id, reason)
               VALUES ($1, $2, $3, $4) RETURNING id";
    let row = client.query_one(sql, &[&by.actor, &action.as_str(), &id.to_uuid(), &reason]).await?;
    Ok(row.try_get(0)?)
}

impl Ledger {
    /// Records an attempt that changed nothing.
    pub async fn record(
        &self,
        id: ReservationId,
        action: RecordedAction,
        by: &ActionBy,
    ) -> Result<(), LedgerError> {
        self.with("record_dead_action", async move |client| {
            write(&**client, id, action, by).await.map(drop)
        })
        .await
    }

    /// Records an action in Redis as `unknown` before it is done. If the answer of Redis, the caller or this
    /// process is lost, the record remains: nothing is done without one.
    /// After an error the action must not be done.
    pub async fn begin_record(
        &self,
        id: ReservationId,
        by: &ActionBy,
    ) -> Result<UnfinishedRecord, LedgerError> {
        self.with("begin_dead_action", async move |client| {
            let number = write(&**client, id, RecordedAction::Unknown, by).await?;
            Ok(UnfinishedRecord { id, number })
        })
        .await
    }

    /// Completes a record with the action that was done, or deletes it if nothing was done (`None`).
    /// After an error it stays `unknown`.
    pub async fn end_record(
        &self,
        record: UnfinishedRecord,
        done: Option<RecordedAction>,
    ) -> Result<(), LedgerError> {
        let id = record.id.to_uuid();
        self.with("end_dead_action", async move |client| {
            match done {
                Some(action) => {
                    let sql = "UPDATE dead_actions SET action = $3
                                WHERE reservation_id = $1 AND id = $2";
                    client.execute(sql, &[&id, &record.number, &action.as_str()]).await?
                }
                None => {
                    let sql = "DELETE FROM dead_actions WHERE reservation_id = $1 AND id = $2";
                    client.execute(sql, &[&id, &record.number]).await?
                }
            };
            Ok(())
        })
        .await
    }

    /// The records of a reservation, oldest first.
    pub async fn dead_actions(&self, id: ReservationId) -> Result<Vec<ActionRecord>, LedgerError> {
        self.with("list_dead_actions", async move |client| {
            let sql = "SELECT at, actor, action, reason FROM dead_actions
                        WHERE reservation_id = $1 ORDER BY at DESC LIMIT $2";
            let rows = client.query(sql, &[&id.to_uuid(), &RECORDS_MAX]).await?;
            let recorded = rows.iter().rev().map(|row| {
                Ok(ActionRecord {
                    at_ms: milliseconds(row.try_get(0)?),
                    actor: row.try_get(1)?,
                    action: row.try_get(2)?,
                    reason: row.try_get(3)?,
                })
            });
            recorded.collect()
        })
        .await
    }
}
