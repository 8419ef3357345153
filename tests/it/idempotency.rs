//! The same request id of the same user for the same product: the same answer and one effect.

use futures_util::future::join_all;
use redis::AsyncCommands as _;
use yoink::{
    app::Role,
    grpc::pb::{Ack, PlaceOrderRequest},
};

use crate::{
    bad_input::fields,
    harness::{TestEnv, eventually, product},
};

#[tokio::test(flavor = "multi_thread")]
async fn request_id_used_by_64_callers_takes_one_unit() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let answers = join_all((0..64).map(|_| service.buy("shoe", "ann", "once"))).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
    assert!(answers.iter().all(|answer| answer.reservation_id == answers[0].reservation_id));
    assert!(answers.iter().all(|answer| answer.reserved_at == answers[0].reserved_at));
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (9, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_of_the_last_sold_unit_is_a_duplicate_and_not_sold_out() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 1)).await;
    let first = service.buy("shoe", "ann", "r1").await.unwrap();
    assert_eq!(first.remaining, 0);
    assert_eq!(service.refusal("shoe", "bob", "r1").await, "SOLD_OUT");
    let again = service.buy("shoe", "ann", "r1").await;
    let again = again.expect("a repeated request gets its first answer");
    assert!(again.duplicate);
    assert_eq!(
        (again.reservation_id, again.reserved_at),
        (first.reservation_id, first.reserved_at)
    );
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_id_is_scoped_to_its_user_and_product() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.create(product("hat", 10)).await;
    let mut ids = Vec::new();
    for (item, user) in [("shoe", "ann"), ("shoe", "bob"), ("hat", "ann"), ("hat", "bob")] {
        let bought = service.buy(item, user, "r1").await.unwrap();
        assert!(!bought.duplicate);
        ids.push(bought.reservation_id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    // Without a request id each call takes a unit.
    assert!(!service.buy("shoe", "ann", "").await.unwrap().duplicate);
    assert!(!service.buy("shoe", "ann", "").await.unwrap().duplicate);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn require_request_id_refuses_reservations_without_one() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("require_request_id", "on")]).await;
    service.create(product("shoe", 5)).await;
    let status = service.buy("shoe", "ann", "").await.unwrap_err();
    assert_eq!(fields(&status), ["request_id"]);
    let order = || PlaceOrderRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        request_id: String::new(),
    };
    let status = service.storefront().place_order(order()).await.unwrap_err();
    assert_eq!(fields(&status), ["request_id"]);
    service.buy("shoe", "ann", "order-1").await.unwrap();
    let mut keyed = tonic::Request::new(order());
    keyed.metadata_mut().insert("idempotency-key", "order-2".parse().unwrap());
    service.storefront().place_order(keyed).await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (3, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_a_void_is_a_new_request() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("deliveries_max", "1")]).await;
    service.create(product("shoe", 3)).await;
    let sql = env.sql().await;
    sql.batch_execute("ALTER TABLE reservations ADD CONSTRAINT no_ann CHECK (user_id <> 'ann')")
        .await
        .unwrap();
    let first = service.buy("shoe", "ann", "r1").await.unwrap();
    eventually("the order is voided and its request id is no longer remembered", async || {
        let found = service.reservation(&first.reservation_id).await.unwrap();
        let voided = found.state().as_str_name() == "RESERVATION_STATE_VOIDED";
        let report = env.audit().await;
        (voided && report.products[0].stock == 3).then_some(())
    })
    .await;
    sql.batch_execute("ALTER TABLE reservations DROP CONSTRAINT no_ann").await.unwrap();
    let second = service.buy("shoe", "ann", "r1").await.unwrap();
    assert!(!second.duplicate);
    assert_ne!(second.reservation_id, first.reservation_id);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn request_id_in_a_key_of_the_old_layout_is_found_and_extended() {
    const BUCKET_MS: i64 = 43_200_000;
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let bought = service.buy("shoe", "ann", "r:1").await.unwrap();
    env.assert_audit_holds().await;
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let mut cli = env.cli().await;
    let base = format!("{}:{{{partition}}}:idempotency", env.prefix);
    let keys: Vec<String> = cli.keys(format!("{base}:*")).await.unwrap();
    let [key] = keys.as_slice() else { panic!("{keys:?}") };
    let remembered: String = cli.hget(key, "ann/shoe/r:1").await.unwrap();
    // As if it had been taken twelve hours before, by a program that kept each key until the one after it had ended.
    let bucket: i64 = key.rsplit(':').next().unwrap().parse().unwrap();
    let before = format!("{base}:{}", bucket - 1);
    let () = cli.del(key).await.unwrap();
    let () = cli.hset(&before, "ann/shoe/r:1", &remembered).await.unwrap();
    let () = cli.pexpire_at(&before, (bucket + 1) * BUCKET_MS).await.unwrap();
    let back = "UPDATE reservations SET reserved_at = reserved_at - interval '12 hours'";
    env.sql().await.batch_execute(back).await.unwrap();
    let again = service.buy("shoe", "ann", "r:1").await.unwrap();
    assert_eq!((again.duplicate, again.reservation_id), (true, bought.reservation_id));
    // One transaction, so that no time passes between the two: PEXPIRETIME came with Redis 7.0.
    let (left_ms, (seconds, micros)): (i64, (i64, i64)) = redis::pipe()
        .atomic()
        .cmd("PTTL")
        .arg(&before)
        .cmd("TIME")
        .query_async(&mut env.cli().await)
        .await
        .unwrap();
    let until = seconds * 1000 + micros / 1000 + left_ms;
    assert_eq!(until, (bucket + 6) * BUCKET_MS, "as long as the idempotency window requires");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ack_level_is_not_part_of_the_request_identity() {
    let env = TestEnv::with_durable_postgres().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let first = service.buy_with(("shoe", "ann", "r"), Ack::Memory).await.unwrap();
    let again = service.buy_with(("shoe", "ann", "r"), Ack::Ledger).await.unwrap();
    assert_eq!((again.duplicate, again.reservation_id), (true, first.reservation_id));
    env.assert_audit_holds().await;
}
