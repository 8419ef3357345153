//! Dead entries without a worker: bought, and moved to the dead stream by hand.

use yoink::{domain::ReservationId, stream::MoveToDead};

use super::{Service, TestEnv};

/// Selectors of dead entries, as requests carry them.
pub mod dead_entries {
    use yoink::grpc::pb::{DeadEntryFilter, DeadEntrySelector};

    /// All.
    pub fn all() -> Option<DeadEntrySelector> {
        Some(DeadEntrySelector { all: true, ..Default::default() })
    }

    /// All that match.
    pub fn matching(filter: DeadEntryFilter) -> Option<DeadEntrySelector> {
        Some(DeadEntrySelector { all: true, filter: Some(filter), ..Default::default() })
    }

    /// Those of these reservations.
    pub fn of(ids: impl IntoIterator<Item = impl ToString>) -> Option<DeadEntrySelector> {
        let reservation_ids = ids.into_iter().map(|id| id.to_string()).collect();
        Some(DeadEntrySelector { reservation_ids, ..Default::default() })
    }
}

/// Buys a unit for each user and moves the orders to the dead stream, in this order; nothing stores or releases them.
pub async fn move_to_dead(
    env: &TestEnv,
    service: &Service,
    (product, sqlstate): (&str, Option<&str>),
    users: impl IntoIterator<Item = String>,
) -> Vec<ReservationId> {
    let stores = env.stores().await;
    let partition = stores.deployment.partitions.of(&product.parse().unwrap());
    let buys = users.into_iter().map(|user| async move {
        let bought = service.buy(product, &user, "r").await.unwrap();
        bought.reservation_id.parse::<ReservationId>().unwrap()
    });
    let ids = futures_util::future::join_all(buys).await;
    for id in &ids {
        let request = MoveToDead {
            entry_id: id.entry_id(),
            reservation_id: Some(*id),
            reason: "moved by hand".to_owned(),
            sqlstate: sqlstate.map(str::to_owned),
        };
        assert!(stores.streams.move_to_dead(partition, &request).await.unwrap());
    }
    ids
}
