//! Redis restarted or lost data: nothing is sold until its partitions are rebuilt from the ledger.

use futures_util::future::join_all;
use tokio::task::block_in_place;
use tonic::Code;
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    grpc::pb::{GetProductRequest, ListProductsRequest},
};

use crate::harness::{BuyerLoad, Service, TestEnv, eventually, get, product, reason, run_yoink};

async fn stock_of(service: &Service, id: &str) -> Option<i64> {
    let request = GetProductRequest { product_id: id.to_owned() };
    service.buyers().get_product(request).await.unwrap().into_inner().product.unwrap().stock
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_restart_fences_partition_until_rebuilt() {
    let mut env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[("recovery", "manual")]).await;
    service.create(product("shoe", 10)).await;
    let before = service.buy("shoe", "ann", "r1").await.unwrap();
    env.assert_audit_holds().await;

    env.redis.as_mut().unwrap().restart().unwrap();
    let status = eventually("Redis answers again", async || {
        let status = service.buy("shoe", "bob", "r1").await.unwrap_err();
        (reason(&status) == "RECOVERING").then_some(status)
    })
    .await;
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "no");
    assert!(status.get_details_retry_info().is_some());
    // Products are listed without stock, and nothing was seeded.
    let request = ListProductsRequest::default();
    let listed = service.buyers().list_products(request).await.unwrap().into_inner();
    assert_eq!(listed.products[0].stock, None);
    let state = service.reservation(&before.reservation_id).await.unwrap().state();
    assert_eq!(state.as_str_name(), "RESERVATION_STATE_CONFIRMED");
    assert_eq!(service.refusal("shoe", "bob", "").await, "RECOVERING", "it stays fenced");

    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    let again =
        eventually("it sells again", async || service.buy("shoe", "ann", "r1").await.ok()).await;
    assert!(again.duplicate, "the request id was restored from the ledger");
    assert_eq!(again.reservation_id, before.reservation_id);
    assert_eq!((again.reserved_at, again.remaining), (before.reserved_at, 9));
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_killed_under_load_loses_no_accepted_order() {
    let mut env = TestEnv::with_restarted_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 100_000)).await;
    let answers = BuyerLoad::new("buyer", 16, &["shoe"]).start(vec![service.channel()]);
    for round in 1..=3 {
        answers.sells(100).await;
        block_in_place(|| env.kill_redis());
        // Not before: what Redis answered just before it ended may still reach its buyer.
        let probe = async || service.buy("shoe", "probe", &format!("r{round}")).await.err();
        eventually("the service refuses", probe).await;
        block_in_place(|| env.restart_redis());
        eventually("it was rebuilt", async || {
            let epoch = env.count("SELECT max(epoch) FROM partitions").await;
            (epoch > round).then_some(())
        })
        .await;
        answers.sells(1).await;
    }
    let answers = answers.end().await;
    let accepted = answers.accepted();
    assert!(accepted >= 300);
    let account = answers.assert_all_answers_kept(&env, &service).await;
    assert!(account.confirmed >= accepted, "every accepted answer is kept");
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, i64::try_from(account.confirmed).unwrap());
    assert!(report.lost.is_empty(), "{:?}", report.lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_redis_is_rebuilt_from_the_ledger_without_overselling() {
    let env = TestEnv::with_restarted_redis().await;
    let service = env.serve(Role::All, &[]).await;
    let mut limited = product("hat", 10);
    limited.sale.per_user_limit = Some(1);
    service.create(limited).await;
    service.create(product("shoe", 5)).await;
    for n in 0..3 {
        service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
    }
    service.buy("hat", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    let () = redis::cmd("FLUSHALL").query_async(&mut env.cli().await).await.unwrap();
    eventually("the stock is there again", async || stock_of(&service, "shoe").await).await;
    assert_eq!(stock_of(&service, "shoe").await, Some(2));
    assert_eq!(
        service.refusal("hat", "ann", "other").await,
        "LIMIT_REACHED",
        "the limit came back"
    );
    let buys = join_all((0..50).map(|n| {
        let service = &service;
        async move { service.buy("shoe", &format!("late-{n}"), "r").await.is_ok() }
    }));
    assert_eq!(buys.await.into_iter().filter(|accepted| *accepted).count(), 2);
    let report = env.assert_audit_holds().await;
    let shoe = report.products.iter().find(|units| units.product.as_str() == "shoe").unwrap();
    assert_eq!((shoe.confirmed, shoe.stock), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_stores_or_voids_entries_waiting_in_the_streams() {
    let mut env = TestEnv::with_own_redis().await;
    let settings =
        [("deliveries_max", "1"), ("dead_letter_release", "manual"), ("recovery", "manual")];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id NOT LIKE 'bad%')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let dead = service.buy("shoe", "bad-1", "r").await.unwrap();
    eventually("it is dead", async || (env.audit().await.products[0].in_dead == 1).then_some(()))
        .await;
    service.stop().await;
    // Accepted, and not stored before Redis restarts; one of them can never be stored.
    let api = env.serve(Role::Api, &settings).await;
    let good = api.buy("shoe", "ann", "r").await.unwrap();
    let bad = api.buy("shoe", "bad-2", "r").await.unwrap();
    env.redis.as_mut().unwrap().restart().unwrap();
    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    let message = String::from_utf8_lossy(&rebuilt.stdout).into_owned();
    assert!(
        message.contains("1 orders from its streams were stored and 2 voided"),
        "all that waited: {message}"
    );
    for (id, state) in [
        (&good, "RESERVATION_STATE_CONFIRMED"),
        (&bad, "RESERVATION_STATE_VOIDED"),
        (&dead, "RESERVATION_STATE_VOIDED"),
    ] {
        let found = api.reservation(&id.reservation_id).await.unwrap();
        assert_eq!(found.state().as_str_name(), state);
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_of_another_deployment_is_never_changed() {
    let env = TestEnv::new().await;
    let ours = env.serve(Role::Api, &[]).await;
    ours.create(product("shoe", 10)).await;
    let bought = ours.buy("shoe", "ann", "r").await.unwrap();
    // Another database, initialised on another Redis, is pointed at the Redis of this one.
    let elsewhere = TestEnv::with_own_redis().await;
    elsewhere.serve(Role::Api, &[]).await.stop().await;
    let (redis, prefix) = (env.redis_url(), env.prefix.clone());
    let other_service =
        elsewhere.serve(Role::All, &[("redis_url", &redis), ("key_prefix", &prefix)]).await;
    assert_eq!(other_service.refusal("shoe", "bob", "").await, "RECOVERING");
    other_service.stop().await;
    let state = ours.reservation(&bought.reservation_id).await.unwrap().state();
    assert_eq!(state.as_str_name(), "RESERVATION_STATE_ACCEPTED", "no unit was taken");
    let worker = env.serve(Role::Worker, &[]).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fenced_partition_does_not_stop_sales_or_operators_of_another() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("recovery", "manual")]).await;
    let partitions = env.stores().await.deployment.partitions;
    let of = |number: u16| {
        let mut names = (0..).map(|n| format!("item-{n}"));
        names.find(|name| partitions.of(&name.parse().unwrap()).number() == number).unwrap()
    };
    let (fenced, open) = (of(0), of(1));
    for id in [&fenced, &open] {
        service.create(product(id, 10)).await;
    }
    let meta = format!("{}:{{0}}:meta", env.prefix);
    let () = redis::cmd("HSET")
        .arg(meta)
        .arg("status")
        .arg("closed")
        .query_async(&mut env.cli().await)
        .await
        .map(|_: i64| ())
        .unwrap();
    assert_eq!(service.refusal(&fenced, "ann", "").await, "RECOVERING");
    service.buy(&open, "ann", "").await.unwrap();
    let stop = async |id: &str| {
        let status = yoink::grpc::pb::ProductStatus::Stopped.into();
        let product_id = id.to_owned();
        let request =
            yoink::grpc::pb::UpdateProductRequest { product_id, status, ..Default::default() };
        service.admin().update_product(request).await
    };
    stop(&open).await.unwrap();
    assert_eq!(service.refusal(&open, "ann", "").await, "SALE_STOPPED");
    let status = stop(&fenced).await.unwrap_err();
    assert_eq!(
        reason(&status),
        "NOT_APPLIED_YET",
        "the status is reported where it is not applied"
    );
    let ready = eventually("readiness names it", async || {
        let ready = get(service.http, "/readyz").await;
        let line =
            "partition 0 is fenced: it is closed until it is rebuilt; run `yoink rebuild --partition 0`";
        ready.contains(line).then_some(ready)
    })
    .await;
    assert!(ready.starts_with("HTTP/1.1 200"), "the other partition sells");
    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stdout));
    eventually("the recorded stop is applied", async || {
        let refusal = service.buy(&fenced, "ann", "").await.unwrap_err();
        (reason(&refusal) == "SALE_STOPPED").then_some(())
    })
    .await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversold_partition_is_fenced_and_the_excess_is_voided() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 2)).await;
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let stock = format!("{}:{{{partition}}}:stock", env.prefix);
    let mut cli = env.cli().await;
    let mut forge = redis::cmd("HINCRBY");
    let _: i64 = forge.arg(stock).arg("shoe").arg(3).query_async(&mut cli).await.unwrap();
    let users: Vec<String> = (0..5).map(|n| format!("user-{n}")).collect();
    let buys = join_all(users.iter().map(|user| service.buy("shoe", user, "r"))).await;
    let accepted: Vec<String> = buys.into_iter().flatten().map(|b| b.reservation_id).collect();
    assert!(accepted.len() > 2, "Redis sells the units of the changed supply");
    // Redis showed the same before: only the ledger shows that it was rebuilt.
    let rebuilt = format!(
        "SELECT count(*) FROM partitions WHERE partition = {partition} AND epoch > 1 AND status = 'open'"
    );
    eventually("it is rebuilt", async || (env.count(&rebuilt).await == 1).then_some(())).await;
    eventually("it is sold out", async || {
        let refusal = service.buy("shoe", "late", "").await.unwrap_err();
        (reason(&refusal) == "SOLD_OUT").then_some(())
    })
    .await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 0));
    for id in &accepted {
        let state = service.reservation(id).await.unwrap().state();
        let ended = ["RESERVATION_STATE_CONFIRMED", "RESERVATION_STATE_VOIDED"];
        assert!(ended.contains(&state.as_str_name()), "each buyer gets the final state");
    }
}
