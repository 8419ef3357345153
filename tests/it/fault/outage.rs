//! A store is down for a time.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::block_in_place;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    grpc::pb::{
        ListProductsRequest, ListReservationsRequest, ReserveUnitRequest,
        inventory_service_client::InventoryServiceClient,
    },
    worker::Consumer,
};

use crate::harness::{Binary, TestEnv, eventually, get, product, reason};

#[tokio::test(flavor = "multi_thread")]
async fn postgres_outage_moves_nothing_to_dead_and_stores_everything_afterwards() {
    let mut env = TestEnv::with_own_postgres().await;
    let settings = [("takeover_idle_ms", "200"), ("deliveries_max", "2")];
    let first = env.serve(Role::All, &settings).await;
    // Second consumers repeatedly take over what the first cannot store, as if both workers owned every partition.
    let second = env.app(&settings).await;
    let (stop, consumers) = (CancellationToken::new(), TaskTracker::new());
    for partition in second.stores().deployment.partitions.all() {
        let reader = second.stores().reader(partition).await.unwrap();
        let consumer = Consumer::new(second.worker_context.clone(), partition, reader);
        consumers.spawn(consumer.run(stop.clone()));
    }
    first.create(product("shoe", 100)).await;
    let before = first.buy("shoe", "early", "r").await.unwrap();
    env.assert_audit_holds().await;

    env.postgres.as_mut().unwrap().stop();
    let mut ids = vec![before.reservation_id];
    for n in 0..40 {
        let bought = first.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
        ids.push(bought.reservation_id);
    }
    let request = ListProductsRequest::default();
    let listed = first.buyers().list_products(request).await.unwrap().into_inner();
    assert_eq!(listed.products[0].stock, Some(59), "the last catalogue, with live stock");
    let request = ListReservationsRequest { product_id: "shoe".to_owned(), ..Default::default() };
    let status = first.admin().list_reservations(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "LEDGER_UNAVAILABLE")
    );

    // Longer than all retries of a poison order, and with takeovers: entries must change their consumer.
    let mut cli = env.cli().await;
    let partition = 2u16; // Found below, among the two.
    let mut seen = std::collections::HashSet::new();
    eventually("entries have changed their consumer", async || {
        for partition in 0..partition {
            let key = format!("{}:{{{partition}}}:orders", env.prefix);
            let mut pending = redis::cmd("XPENDING");
            pending.arg(&key).arg("ledger").arg("-").arg("+").arg(100);
            let pending: Vec<(String, String, u64, u64)> =
                pending.query_async(&mut cli).await.unwrap();
            for (id, consumer, _, deliveries) in pending {
                assert_eq!(deliveries, 1, "{id}: an outage counts no delivery");
                seen.insert(consumer);
            }
        }
        (seen.len() >= 2).then_some(())
    })
    .await;
    let state = first.reservation(&ids[5]).await.unwrap().state();
    assert_eq!(state.as_str_name(), "RESERVATION_STATE_ACCEPTED");

    env.postgres.as_mut().unwrap().restart().unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 41);
    assert_eq!(env.count("SELECT count(*) FROM reservations WHERE state = 'voided'").await, 0);
    stop.cancel();
    consumers.close();
    consumers.wait().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_schema_pauses_consumption_and_loses_no_order() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("deliveries_max", "1")]).await;
    service.create(product("shoe", 10)).await;
    let sql = env.sql().await;
    sql.batch_execute("ALTER TABLE reservations RENAME COLUMN user_id TO uid").await.unwrap();
    let bought = service.buy("shoe", "ann", "r").await.unwrap();
    eventually("readiness shows the reason", async || {
        let status = get(service.http, "/readyz").await;
        (status.starts_with("HTTP/1.1 503") && status.contains("schema")).then_some(())
    })
    .await;
    sql.batch_execute("ALTER TABLE reservations RENAME COLUMN uid TO user_id").await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 1);
    let state = service.reservation(&bought.reservation_id).await.unwrap().state();
    assert_eq!(state.as_str_name(), "RESERVATION_STATE_CONFIRMED");
    eventually("it is ready again", async || {
        get(service.http, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_down_is_unavailable_and_states_whether_the_call_was_applied() {
    let mut env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::Api, &[("concurrency_max_calls", "1")]).await;
    service.create(product("shoe", 10)).await;
    let applied = |status: &tonic::Status| {
        assert_eq!(
            (status.code(), reason(status).as_str()),
            (Code::Unavailable, "REDIS_UNAVAILABLE")
        );
        assert!(status.get_details_retry_info().is_some());
        status.get_details_error_info().unwrap().metadata["applied"].clone()
    };
    // Two calls for one permit: when one is refused, the other is in flight, and Redis ends before it answers.
    env.redis.as_ref().unwrap().pause();
    let calls = ["ann", "bob"].map(|user| Box::pin(service.buy("shoe", user, "r")));
    let (refused, _, mut under_way) = futures_util::future::select_all(calls).await;
    assert_eq!(reason(&refused.unwrap_err()), "OVERLOADED");
    block_in_place(|| env.redis.as_mut().unwrap().kill());
    let status = under_way.remove(0).await.unwrap_err();
    assert_eq!(applied(&status), "maybe", "it may have been read");
    // Once the end of the connection is known, nothing is sent.
    eventually("nothing can have been taken", async || {
        let status = service.buy("shoe", "cid", "r").await.unwrap_err();
        (applied(&status) == "no").then_some(())
    })
    .await;
    for n in 0..5 {
        let status = service.buy("shoe", &format!("late-{n}"), "r").await.unwrap_err();
        assert_eq!(applied(&status), "no", "there is no connection to send it on");
    }
    block_in_place(|| env.redis.as_mut().unwrap().restart().unwrap());
    let worker = env.serve(Role::Worker, &[]).await;
    let bought = eventually("it sells again", async || service.buy("shoe", "dan", "r").await.ok());
    let bought = bought.await;
    let report = env.assert_audit_holds().await;
    let sold = 10 - bought.remaining;
    assert_eq!(report.products[0].confirmed, sold);
    assert!(sold <= 2, "only the one in progress may have been taken");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_redis_leaves_the_outcome_unknown_and_a_retry_resolves_it() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let redis = env.redis.as_ref().unwrap();
    redis.pause();
    let status = service.buy("shoe", "ann", "r").await.unwrap_err();
    assert_eq!(reason(&status), "REDIS_UNAVAILABLE");
    assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "maybe");
    redis.resume();
    let bought =
        eventually("Redis answers again", async || service.buy("shoe", "ann", "r").await.ok())
            .await;
    assert_eq!(bought.remaining, 9, "one effect, whichever of the calls had it");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_out_of_memory_refuses_whole_calls() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 100)).await;
    let first = service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    let maxmemory = async |bytes: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(bytes);
        let () = set.query_async(&mut env.cli().await).await.unwrap();
    };
    maxmemory("1").await;
    // Alone, and many in one call of the script.
    for buyers in [1, 60] {
        let users: Vec<String> = (0..buyers).map(|n| format!("full-{n}")).collect();
        for answer in join_all(users.iter().map(|user| service.buy("shoe", user, "r"))).await {
            let status = answer.unwrap_err();
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::Unavailable, "REDIS_UNAVAILABLE")
            );
            assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "no");
        }
    }
    // A buyer of an earlier call gets the same answer: nothing needs to be written for it.
    let again = service.buy("shoe", "ann", "r").await.unwrap();
    assert_eq!((again.duplicate, again.reservation_id), (true, first.reservation_id));
    let report = env.audit().await;
    assert_eq!(report.products[0].stock, 99);
    maxmemory("0").await;
    for n in 0..60 {
        let bought = service.buy("shoe", &format!("full-{n}"), "r").await.unwrap();
        assert!(!bought.duplicate, "nothing of the refused call is left");
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (61, 39));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_metrics_never_contain_user_ids_even_from_postgres_error_details() {
    let env = TestEnv::new().await;
    let beside = env.serve(Role::Api, &[]).await;
    beside.create(product("shoe", 10)).await;
    let everything = [("log_filter", "trace"), ("metrics_products", "shoe")];
    let mut api = Binary::serve_as("api", &env, &everything, None);
    let mut buyers = InventoryServiceClient::new(api.channel().await);
    let sql = env.sql().await;
    sql.batch_execute("ALTER TABLE reservations ADD COLUMN note text NOT NULL").await.unwrap();
    let request = ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: "secret-buyer".to_owned(),
        request_id: "secret-request".to_owned(),
        ..Default::default()
    };
    eventually("the unit is sold", async || {
        buyers.clone().reserve_unit(request.clone()).await.ok()
    })
    .await;
    let wrong = ReserveUnitRequest { user_id: "secret buyer".to_owned(), ..request };
    assert_eq!(buyers.reserve_unit(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    let mut worker = Binary::serve(&env, &everything, None);
    worker.channel().await;
    // It pauses and compensates nothing, because the schema is the cause.
    eventually("it reports the reason", async || {
        worker.log().contains("its schema, role or database is wrong").then_some(())
    })
    .await;
    drop(buyers);
    for mut process in [api, worker] {
        let page = get(process.http_address().unwrap(), "/metrics").await;
        assert!(page.contains("yoink_"), "{page}");
        process.signal(nix::sys::signal::Signal::SIGTERM);
        process.ended().await;
        let log = process.log();
        assert!(log.contains("TRACE"), "{log}");
        let named = log.lines().chain(page.lines()).find(|line| line.contains("secret"));
        assert_eq!(named, None);
    }
    assert_eq!(env.audit().await.products[0].in_orders, 1);
    sql.batch_execute("ALTER TABLE reservations DROP COLUMN note").await.unwrap();
    let next = env.serve(Role::Worker, &[("takeover_idle_ms", "300")]).await;
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 1);
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_deadline_leaves_the_outcome_unknown_and_the_reservation_finishes() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let redis = env.redis.as_ref().unwrap();
    redis.pause();
    let request = ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        request_id: "r".to_owned(),
        ..Default::default()
    };
    // Long enough to be sent on a busy machine, shorter than the two seconds after which Redis counts as down.
    let status = service.reserve_within(Duration::from_millis(1500), request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
    );
    assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "maybe");
    redis.resume();
    // It was sent, so it is finished without its caller.
    eventually("the order is stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == 1).then_some(())
    })
    .await;
    let again = service.buy("shoe", "ann", "r").await.unwrap();
    assert!(again.duplicate);
    env.assert_audit_holds().await;
}
