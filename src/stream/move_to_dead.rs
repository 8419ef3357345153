//! `lua/move_to_dead.lua`: an order that had all its deliveries moves to `dead`.

use super::Streams;
use crate::{
    domain::{Partition, ReservationId},
    redis::{Applied, FenceError, GROUP},
};

/// Why an order is given up on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Its id in `orders`.
    pub entry_id: String,
    /// The reservation.
    pub reservation_id: Option<ReservationId>,
    /// In words.
    pub reason: String,
    /// What Postgres calls it.
    pub sqlstate: Option<String>,
}

impl Streams {
    /// Buries an order if it is still in `orders`; returns whether it was.
    ///
    /// # Errors
    ///
    /// As [`crate::redis::Partitions::run`]; repeat it.
    pub async fn move_to_dead(
        &self,
        partition: Partition,
        rejection: &Rejection,
    ) -> Result<bool, FenceError> {
        let keys = self.partitions.keys();
        let keys = [
            keys.meta(partition),
            keys.orders(partition),
            keys.dead(partition),
            keys.dead_index(partition),
        ];
        let named =
            rejection.reservation_id.map_or(rejection.entry_id.clone(), |id| id.to_string());
        let sqlstate = rejection.sqlstate.as_deref().unwrap_or_default();
        let args = [GROUP, &rejection.entry_id, &named, &rejection.reason, sqlstate];
        let answer =
            self.partitions.run(partition, &self.scripts.move_to_dead, &keys, &args).await?;
        match answer.as_slice() {
            [status, _] if status == "moved" => Ok(true),
            [status] if status == "gone" => Ok(false),
            [status, said] if status == "not_applied" => {
                let code =
                    (redis::ErrorKind::Extension, "Redis refused the rejection", said.clone());
                Err(FenceError::Unavailable { applied: Applied::No, source: code.into() })
            }
            _ => Err(FenceError::Malformed(answer)),
        }
    }
}
