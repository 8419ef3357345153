//! Reads reservations.

use futures_util::{Stream, StreamExt as _};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};
use uuid::Uuid;

use super::{Ledger, LedgerError, pool::milliseconds};
use crate::domain::{ProductId, Reservation, ReservationId, ReservationState, UserId};

/// The result of looking a reservation up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookedUp {
    /// Found.
    Reservation(Reservation),
    /// Another reservation has its partition, epoch and seq: this id was never issued.
    NeverIssued,
    /// Not found.
    Nothing,
}

/// One stored reservation, for a CSV file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of `reservations`")]
pub struct ExportRow {
    pub reservation_id: Uuid,
    pub state: String,
    pub product_id: Option<String>,
    pub user_id: Option<String>,
    pub units: Option<i32>,
    pub request_id: Option<String>,
    pub reserved_at_ms: i64,
    pub recorded_at_ms: i64,
    pub void_reason: Option<String>,
}

const COLUMNS: &str =
    "reservation_id, state, product_id, user_id, reserved_at, recorded_at, void_reason, request_id";

fn reservation(row: &Row) -> Result<Reservation, LedgerError> {
    let id = ReservationId::from_uuid(row.try_get(0)?)
        .map_err(|_| LedgerError::InvalidData("reservations.reservation_id"))?;
    let recorded_at_ms = milliseconds(row.try_get(5)?);
    let text = |column| row.try_get::<_, Option<&str>>(column);
    let state = match row.try_get::<_, &str>(1)? {
        "confirmed" => ReservationState::Confirmed { recorded_at_ms },
        _ => {
            let reason = text(6)?.unwrap_or_default().to_owned();
            ReservationState::Voided { recorded_at_ms, reason }
        }
    };
    let product_and_user = match (text(2)?, text(3)?) {
        (Some(product), Some(user)) => Some((
            product.parse().map_err(|_| LedgerError::InvalidData("reservations.product_id"))?,
            user.parse().map_err(|_| LedgerError::InvalidData("reservations.user_id"))?,
        )),
        (Some(_) | None, Some(_) | None) => None,
    };
    let request = text(7)?.map(str::parse).transpose();
    let request = request.map_err(|_| LedgerError::InvalidData("reservations.request_id"))?;
    let reserved_at_ms = milliseconds(row.try_get(4)?);
    Ok(Reservation { id, state, product_and_user, request, reserved_at_ms })
}

impl Ledger {
    /// One reservation, or whether another one has its seq, by a range of the primary key.
    pub async fn look_up(&self, id: ReservationId) -> Result<LookedUp, LedgerError> {
        let (first, last) = id.range_of_seq();
        self.with("look_up_reservation", async move |client| {
            let sql = format!(
                "SELECT {COLUMNS} FROM reservations WHERE reservation_id BETWEEN $1 AND $2"
            );
            let args: [(&(dyn ToSql + Sync), Type); 2] =
                [(&first, Type::UUID), (&last, Type::UUID)];
            let rows = client.query_typed(&sql, &args).await?;
            let mut looked_up = LookedUp::Nothing;
            for row in &rows {
                let found = reservation(row)?;
                if found.id == id {
                    return Ok(LookedUp::Reservation(found));
                }
                looked_up = LookedUp::NeverIssued;
            }
            Ok(looked_up)
        })
        .await
    }

    /// Those of these reservations that are decided: with the reason if voided, with `None` if confirmed.
    pub async fn decided(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, Option<String>)>, LedgerError> {
        self.with("decided_reservations", async move |client| {
            let sql = "SELECT reservation_id, CASE state WHEN 'confirmed' THEN NULL
                                              ELSE coalesce(void_reason, '') END
                         FROM reservations WHERE reservation_id = ANY($1)";
            let rows = client.query_typed(sql, &[(&ids, Type::UUID_ARRAY)]).await?;
            Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
        })
        .await
    }

    /// At most `limit` stored reservations of a product, of a user, or of both, ordered by id, after `after`.
    pub async fn list(
        &self,
        product: Option<&ProductId>,
        user: Option<&UserId>,
        after: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Reservation>, LedgerError> {
        let (product, user) = (product.map(ProductId::as_str), user.map(UserId::as_str));
        let after = after.unwrap_or(Uuid::nil());
        self.with("list_reservations", async move |client| {
            // Planned with these values, so that a condition on NULL is left out and the indexes are used.
            let sql = format!(
                "SELECT {COLUMNS} FROM reservations
                  WHERE reservation_id > $1 AND ($2::text IS NULL OR product_id = $2)
                    AND ($3::text IS NULL OR user_id = $3)
                  ORDER BY reservation_id LIMIT $4"
            );
            let args: [(&(dyn ToSql + Sync), Type); 4] = [
                (&after, Type::UUID),
                (&product, Type::TEXT),
                (&user, Type::TEXT),
                (&limit, Type::INT8),
            ];
            let rows = client.query_typed(&sql, &args).await?;
            rows.iter().map(reservation).collect()
        })
        .await
    }

    /// Every reservation, ordered by id, in one snapshot.
    pub async fn export(
        &self,
    ) -> Result<impl Stream<Item = Result<ExportRow, LedgerError>>, LedgerError> {
        let sql =
            "SELECT reservation_id, state, product_id, user_id, units, request_id, reserved_at,
                          recorded_at, void_reason FROM reservations ORDER BY reservation_id";
        let rows = self.rows("export_reservations", sql, &[]).await?;
        Ok(rows.map(|row| {
            let row = row?;
            Ok(ExportRow {
                reservation_id: row.try_get(0)?,
                state: row.try_get(1)?,
                product_id: row.try_get(2)?,
                user_id: row.try_get(3)?,
                units: row.try_get(4)?,
                request_id: row.try_get(5)?,
                reserved_at_ms: milliseconds(row.try_get(6)?),
                recorded_at_ms: milliseconds(row.try_get(7)?),
                void_reason: row.try_get(8)?,
            })
        }))
    }
}
