//! The record of what was done to dead entries: who, what and why.
//!
//! Must never: say of something that it was done which was not, or miss something that was.

use tokio_postgres::GenericClient;

use super::{Ledger, LedgerError, pool::milliseconds};
use crate::domain::ReservationId;

/// Most records of one reservation that are read: the newest.
const MAX_READ: i64 = 1000;

/// Who does something to a dead entry, and why.
#[derive(Debug, Clone)]
pub struct DeadAction {
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// What was done to a dead entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Voided it; its unit is to go back.
    Release,
    /// Gave back the unit of an order that was voided before.
    Finish,
    /// Stored it.
    Retry,
    /// Tried to store it, and the ledger refused it again.
    Refused,
    /// Removed it, since its order is stored.
    Discard,
    /// Began to finish or to discard it, and never learned whether that was done.
    Unknown,
}

impl Action {
    /// The word in the record.
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

/// A line of the record whose outcome is not known yet.
#[derive(Debug)]
pub struct OpenRecord {
    id: ReservationId,
    number: i64,
}

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedAction {
    /// When, in milliseconds since 1970, by the clock of Postgres.
    pub at_ms: i64,
    /// Who.
    pub actor: String,
    /// What: a word of [`Action`].
    pub action: String,
    /// Why.
    pub reason: String,
}

/// Writes one line, inside whatever transaction the caller is in; returns its number.
pub(super) async fn write(
    client: &impl GenericClient,
    id: ReservationId,
    deed: Action,
    action: &DeadAction,
) -> Result<i64, LedgerError> {
    // A dead entry's own reason may be anything, and Postgres takes no NUL.
    let reason = action.reason.replace('\0', " ");
    let sql = "INSERT INTO dead_actions (actor, action, reservation_id, reason)
               VALUES ($1, $2, $3, $4) RETURNING id";
    let row =
        client.query_one(sql, &[&action.actor, &deed.as_str(), &id.to_uuid(), &reason]).await?;
    Ok(row.try_get(0)?)
}

impl Ledger {
    /// Records what was tried and changed nothing.
    ///
    /// # Errors
    ///
    /// When Postgres does not do it.
    pub async fn record(
        &self,
        id: ReservationId,
        deed: Action,
        action: &DeadAction,
    ) -> Result<(), LedgerError> {
        self.with("record_dead_action", |client| async move {
            write(&**client, id, deed, action).await.map(drop)
        })
        .await
    }

    /// Records that something is done beside the ledger, before it is: that nobody knows its outcome. So
    /// whatever becomes of the answer, of the caller or of this process, nothing is done without a record.
    ///
    /// # Errors
    ///
    /// When Postgres does not do it; then nothing may be done.
    pub async fn begin_record(
        &self,
        id: ReservationId,
        action: &DeadAction,
    ) -> Result<OpenRecord, LedgerError> {
        self.with("begin_dead_action", |client| async move {
            let number = write(&**client, id, Action::Unknown, action).await?;
            Ok(OpenRecord { id, number })
        })
        .await
    }

    /// Ends a record: with what was done, or (`None`) without a trace, since nothing was.
    ///
    /// # Errors
    ///
    /// When Postgres does not do it; then it stays open.
    pub async fn end_record(
        &self,
        record: OpenRecord,
        done: Option<Action>,
    ) -> Result<(), LedgerError> {
        let id = record.id.to_uuid();
        self.with("end_dead_action", |client| async move {
            match done {
                Some(deed) => {
                    let sql = "UPDATE dead_actions SET action = $3
                                WHERE reservation_id = $1 AND id = $2";
                    client.execute(sql, &[&id, &record.number, &deed.as_str()]).await?
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

    /// What was done to a dead entry, oldest first.
    ///
    /// # Errors
    ///
    /// When Postgres does not answer.
    pub async fn dead_actions(
        &self,
        id: ReservationId,
    ) -> Result<Vec<RecordedAction>, LedgerError> {
        self.with("list_dead_actions", |client| async move {
            let sql = "SELECT at, actor, action, reason FROM dead_actions
                        WHERE reservation_id = $1 ORDER BY at DESC LIMIT $2";
            let rows = client.query(sql, &[&id.to_uuid(), &MAX_READ]).await?;
            let recorded = rows.iter().rev().map(|row| {
                Ok(RecordedAction {
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
