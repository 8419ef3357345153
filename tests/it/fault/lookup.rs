//! What `GetReservation` answers while the streams are not to be believed.

use tokio::task::block_in_place;
use yoink::app::Role;

use super::lost::{back_up, restore};
use crate::harness::{Service, Yard, eventually, product, reason, run_yoink};

/// The state of a reservation, or why there is none.
async fn state(service: &Service, id: &str) -> String {
    match service.reservation(id).await {
        Ok(found) => found.state().as_str_name().replace("RESERVATION_STATE_", ""),
        Err(status) => reason(&status),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_redis_is_not_believed_of_orders_that_were_stored_voided_or_lost() {
    let mut yard = Yard::with_own_redis().await;
    let api = yard.serve(Role::Api, &[]).await;
    api.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    yard.sql().await.batch_execute(poison).await.unwrap();
    let stored = api.buy("shoe", "ann", "r").await.unwrap().reservation_id;
    let voided = api.buy("shoe", "mallory", "r").await.unwrap().reservation_id;
    assert_eq!(state(&api, &stored).await, "ACCEPTED");
    // Both are still in the streams in this copy.
    let copy = block_in_place(|| back_up(&yard));
    let settings = [("max_deliveries", "1"), ("recovery", "manual")];
    let worker = yard.serve(Role::Worker, &settings).await;
    yard.assert_audit_holds().await;
    worker.stop().await;
    let lost = api.buy("shoe", "bob", "r").await.unwrap().reservation_id;
    assert_eq!(state(&api, &lost).await, "ACCEPTED");

    block_in_place(|| restore(&mut yard, copy));
    let seen = eventually("Redis answers again", async || {
        let seen = state(&api, &lost).await;
        (seen != "REDIS_UNAVAILABLE").then_some(seen)
    });
    assert_eq!(seen.await, "LOST_OR_UNKNOWN");
    assert_eq!(state(&api, &stored).await, "CONFIRMED");
    assert_eq!(state(&api, &voided).await, "VOIDED");

    let rebuilt = block_in_place(|| run_yoink(&yard, &["rebuild"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    for (id, expected) in [(&stored, "CONFIRMED"), (&voided, "VOIDED"), (&lost, "LOST_OR_UNKNOWN")]
    {
        assert_eq!(state(&api, id).await, expected);
    }
    let report = yard.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].available), (1, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_order_is_found_in_its_stream_and_an_id_that_was_never_given_is_not() {
    let yard = Yard::new().await;
    let settings = [("max_deliveries", "1"), ("replay", "manual")];
    let service = yard.serve(Role::All, &settings).await;
    service.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    yard.sql().await.batch_execute(poison).await.unwrap();
    let dead = service.buy("shoe", "mallory", "r").await.unwrap().reservation_id;
    eventually("it is dead", async || (yard.audit().await.products[0].in_dead == 1).then_some(()))
        .await;
    assert_eq!(state(&service, &dead).await, "ACCEPTED");
    let id: yoink::domain::ReservationId = dead.parse().unwrap();
    let guessed =
        yoink::domain::ReservationId::new(id.partition(), id.epoch(), id.seq(), id.random() ^ 1);
    assert_eq!(state(&service, &guessed.unwrap().to_string()).await, "RESERVATION_NOT_FOUND");
    let release = yoink::grpc::pb::ReplayDeadEntriesRequest { all: true, ..Default::default() };
    service.admin().replay_dead_entries(release).await.unwrap();
    assert_eq!(state(&service, &dead).await, "VOIDED");
    yard.assert_audit_holds().await;
}
