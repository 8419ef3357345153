//! The answers of `GetReservation` while the streams are out of date.

use tokio::task::block_in_place;
use yoink::app::Role;

use super::lost::{back_up, restore};
use crate::harness::{Service, TestEnv, dead_entries, eventually, product, reason, run_yoink};

/// The state of a reservation, or the reason of the error.
async fn state(service: &Service, id: &str) -> String {
    match service.reservation(id).await {
        Ok(found) => found.state().as_str_name().replace("RESERVATION_STATE_", ""),
        Err(status) => reason(&status),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_on_an_older_redis_use_only_the_ledger() {
    let mut env = TestEnv::with_own_redis().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let stored = api.buy("shoe", "ann", "r").await.unwrap().reservation_id;
    let voided = api.buy("shoe", "mallory", "r").await.unwrap().reservation_id;
    assert_eq!(state(&api, &stored).await, "ACCEPTED");
    // Both are still in the streams in this copy.
    let copy = block_in_place(|| back_up(&env));
    let settings = [("deliveries_max", "1"), ("recovery", "manual")];
    let worker = env.serve(Role::Worker, &settings).await;
    env.assert_audit_holds().await;
    worker.stop().await;
    let lost = api.buy("shoe", "bob", "r").await.unwrap().reservation_id;
    assert_eq!(state(&api, &lost).await, "ACCEPTED");

    block_in_place(|| restore(&mut env, copy));
    let seen = eventually("Redis answers again", async || {
        let seen = state(&api, &lost).await;
        (seen != "REDIS_UNAVAILABLE").then_some(seen)
    });
    assert_eq!(seen.await, "LOST_OR_UNKNOWN");
    assert_eq!(state(&api, &stored).await, "CONFIRMED");
    assert_eq!(state(&api, &voided).await, "VOIDED");

    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    for (id, expected) in [(&stored, "CONFIRMED"), (&voided, "VOIDED"), (&lost, "LOST_OR_UNKNOWN")]
    {
        assert_eq!(state(&api, id).await, expected);
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn lookup_finds_a_dead_order_and_not_an_id_that_was_never_issued() {
    let env = TestEnv::new().await;
    let settings = [("deliveries_max", "1"), ("dead_letter_release", "manual")];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let dead = service.buy("shoe", "mallory", "r").await.unwrap().reservation_id;
    eventually("it is dead", async || (env.audit().await.products[0].in_dead == 1).then_some(()))
        .await;
    assert_eq!(state(&service, &dead).await, "ACCEPTED");
    let id: yoink::domain::ReservationId = dead.parse().unwrap();
    let guessed =
        yoink::domain::ReservationId::new(id.partition(), id.epoch(), id.seq(), id.random() ^ 1);
    assert_eq!(state(&service, &guessed.unwrap().to_string()).await, "RESERVATION_NOT_FOUND");
    let release = yoink::grpc::pb::ReleaseDeadEntriesRequest {
        selector: dead_entries::all(),
        ..Default::default()
    };
    service.admin().release_dead_entries(release).await.unwrap();
    assert_eq!(state(&service, &dead).await, "VOIDED");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lookup_does_not_find_a_waiting_order_by_a_guessed_id() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let waiting = service.buy("shoe", "ann", "r").await.unwrap().reservation_id;
    assert_eq!(state(&service, &waiting).await, "ACCEPTED");
    let id: yoink::domain::ReservationId = waiting.parse().unwrap();
    let guessed =
        yoink::domain::ReservationId::new(id.partition(), id.epoch(), id.seq(), id.random() ^ 1);
    assert_eq!(state(&service, &guessed.unwrap().to_string()).await, "RESERVATION_NOT_FOUND");
    env.serve(Role::Worker, &[]).await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_lost_by_the_ledger_is_lost_or_unknown_before_any_fence() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let lost = service.buy("shoe", "ann", "r").await.unwrap().reservation_id;
    service.buy("shoe", "bob", "r").await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8));
    // Only the highest seq is checked, so nothing is fenced and this process trusts both stores.
    let sql = env.sql().await;
    let lose = "CREATE TABLE lost AS SELECT * FROM reservations WHERE user_id = 'ann';
                DELETE FROM reservations WHERE user_id = 'ann'";
    sql.batch_execute(lose).await.unwrap();
    assert_eq!(state(&service, &lost).await, "LOST_OR_UNKNOWN");
    let id: yoink::domain::ReservationId = lost.parse().unwrap();
    // The first order of an epoch has seq 1, and 3 was not given yet.
    for never_given in [0, 3] {
        let guessed =
            yoink::domain::ReservationId::new(id.partition(), id.epoch(), never_given, id.random());
        assert_eq!(state(&service, &guessed.unwrap().to_string()).await, "RESERVATION_NOT_FOUND");
    }
    let found = "INSERT INTO reservations SELECT * FROM lost; DROP TABLE lost";
    sql.batch_execute(found).await.unwrap();
    assert_eq!(state(&service, &lost).await, "CONFIRMED");
    let guessed =
        yoink::domain::ReservationId::new(id.partition(), id.epoch(), id.seq(), id.random() ^ 1);
    assert_eq!(state(&service, &guessed.unwrap().to_string()).await, "RESERVATION_NOT_FOUND");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_an_older_redis_are_hidden_until_the_rebuild() {
    let mut env = TestEnv::with_own_redis().await;
    let settings =
        [("deliveries_max", "1"), ("dead_letter_release", "manual"), ("recovery", "manual")];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let dead = service.buy("shoe", "mallory", "r").await.unwrap().reservation_id;
    eventually("it is dead", async || (env.audit().await.products[0].in_dead == 1).then_some(()))
        .await;
    let listed = block_in_place(|| run_yoink(&env, &["dead", "list"]));
    assert!(String::from_utf8_lossy(&listed.stdout).contains(&dead));
    // The entry is still in the stream in this copy.
    let copy = block_in_place(|| back_up(&env));
    let release = yoink::grpc::pb::ReleaseDeadEntriesRequest {
        selector: dead_entries::all(),
        ..Default::default()
    };
    service.admin().release_dead_entries(release).await.unwrap();
    assert_eq!(state(&service, &dead).await, "VOIDED");

    block_in_place(|| restore(&mut env, copy));
    for asked in [String::new(), dead.clone()] {
        let request = || yoink::grpc::pb::ListDeadEntriesRequest {
            reservation_id: asked.clone(),
            ..Default::default()
        };
        let refused = eventually("Redis answers again", async || {
            let listed = service.admin().list_dead_entries(request()).await;
            let refused = reason(&listed.unwrap_err());
            (refused != "REDIS_UNAVAILABLE").then_some(refused)
        });
        assert_eq!(refused.await, "RECOVERING", "{asked:?}");
    }
    let listed = block_in_place(|| run_yoink(&env, &["dead", "list"]));
    let (printed, message) =
        (String::from_utf8_lossy(&listed.stdout), String::from_utf8_lossy(&listed.stderr));
    assert_eq!(listed.status.code(), Some(2), "{printed} {message}");
    assert!(!printed.contains(&dead), "{printed}");
    assert!(message.contains("run `yoink rebuild`"), "{message}");
    // What the ledger holds is shown.
    let shown = block_in_place(|| run_yoink(&env, &["dead", "show", &dead]));
    let printed = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success() && printed.contains("state = voided"), "{printed}");

    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    let listed = block_in_place(|| run_yoink(&env, &["dead", "list"]));
    assert!(listed.status.success());
    assert!(!String::from_utf8_lossy(&listed.stdout).contains(&dead));
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (0, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_with_invalid_utf8_is_listed() {
    let env = TestEnv::new().await;
    let settings = [("deliveries_max", "1"), ("dead_letter_release", "manual")];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 10)).await;
    let mut add = redis::cmd("XADD");
    add.arg(format!("{}:{{0}}:dead", env.prefix)).arg("*");
    let _: String =
        add.arg("p").arg(&b"sh\xffoe"[..]).query_async(&mut env.cli().await).await.unwrap();
    let request = yoink::grpc::pb::ListDeadEntriesRequest::default();
    let listed = service.admin().list_dead_entries(request).await.unwrap().into_inner();
    assert_eq!(listed.entries[0].product_id, "sh\u{fffd}oe");
}
