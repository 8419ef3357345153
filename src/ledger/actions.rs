//! The record of what was done to dead entries: who, what and why.
//!
//! Must never: be written for something that was not done.

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
pub enum Deed {
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
}

impl Deed {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Finish => "finish",
            Self::Retry => "retry",
            Self::Refused => "refused",
            Self::Discard => "discard",
        }
    }
}

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedAction {
    /// When, in milliseconds since 1970, by the clock of Postgres.
    pub at_ms: i64,
    /// Who.
    pub actor: String,
    /// What: a word of [`Deed`].
    pub action: String,
    /// Why.
    pub reason: String,
}

/// Writes one line, inside whatever transaction the caller is in.
pub(super) async fn write(
    client: &impl GenericClient,
    id: ReservationId,
    deed: Deed,
    action: &DeadAction,
) -> Result<(), LedgerError> {
    // A dead entry's own reason may be anything, and Postgres takes no NUL.
    let reason = action.reason.replace('\0', " ");
    let sql = "INSERT INTO dead_actions (actor, action, reservation_id, reason)
               VALUES ($1, $2, $3, $4)";
    client.execute(sql, &[&action.actor, &deed.as_str(), &id.to_uuid(), &reason]).await?;
    Ok(())
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
        deed: Deed,
        action: &DeadAction,
    ) -> Result<(), LedgerError> {
        self.with(|client| async move { write(&**client, id, deed, action).await }).await
    }

    /// Records what `doing` does beside the ledger, if it says that it did it. The record is written before
    /// and committed after: nothing is done while nobody could record it, and whoever came too late leaves
    /// no record. A crash in between leaves none either; the void, or the stored order, tells who decided.
    ///
    /// # Errors
    ///
    /// When Postgres does not do it, or `doing` fails.
    pub async fn record_if<E: From<LedgerError>>(
        &self,
        (id, deed): (ReservationId, Deed),
        action: &DeadAction,
        doing: impl Future<Output = Result<bool, E>>,
    ) -> Result<bool, E> {
        let recorded = self.with(|mut client| async move {
            let tx = client.transaction().await?;
            write(&*tx, id, deed, action).await?;
            let done = doing.await;
            if matches!(done, Ok(true)) {
                tx.commit().await?;
            }
            Ok(done)
        });
        recorded.await?
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
        self.with(|client| async move {
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
