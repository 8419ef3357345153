//! `lua/move_to_dead.lua`: moves an order that cannot be stored to `dead`.

use super::Streams;
use crate::{
    domain::{Partition, ReservationId},
    redis::{Applied, FenceError, GROUP, script},
};

/// Why an order is moved to `dead`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Its id in `orders`.
    pub entry_id: String,
    /// The reservation.
    pub reservation_id: Option<ReservationId>,
    /// The reason, for operators.
    pub reason: String,
    /// The SQLSTATE of Postgres.
    pub sqlstate: Option<String>,
}

// Whether the order was still in `orders`; an error is the refusal of Redis.
script!(MOVE_TO_DEAD: Result<bool, String> = "move_to_dead", include_str!("../../lua/move_to_dead.lua"),
    [Meta, Orders, Dead, DeadIndex] {
    ["moved", _] => Ok(true),
    ["gone"] => Ok(false),
    ["not_applied", refusal] => Err(refusal.to_owned()),
});

impl Streams {
    /// Moves an order to `dead` if it is still in `orders`; returns whether it was.
    pub async fn move_to_dead(
        &self,
        partition: Partition,
        rejection: &Rejection,
    ) -> Result<bool, FenceError> {
        let Rejection { entry_id, reservation_id, reason, sqlstate } = rejection;
        let named = reservation_id.map_or_else(|| entry_id.clone(), |id| id.to_string());
        let args = [GROUP, entry_id, &named, reason, sqlstate.as_deref().unwrap_or_default()];
        let moved = self.partitions.run(partition, &MOVE_TO_DEAD, &args).await?;
        moved.map_err(|refusal| {
            let source =
                (redis::ErrorKind::Extension, "Redis refused to write the dead entry", refusal);
            FenceError::Unavailable { applied: Applied::No, source: source.into() }
        })
    }
}
