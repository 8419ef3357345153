//! Dead entries without a worker: bought, and moved to dead by the test.

use yoink::{domain::ReservationId, stream::Rejection};

use super::{Service, TestEnv};

/// Buys a unit for each user and moves the orders to dead, in this order; nothing stores or releases them.
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
        let rejection = Rejection {
            entry_id: id.entry_id(),
            reservation_id: Some(*id),
            reason: "buried by hand".to_owned(),
            sqlstate: sqlstate.map(str::to_owned),
        };
        assert!(stores.streams.move_to_dead(partition, &rejection).await.unwrap());
    }
    ids
}
