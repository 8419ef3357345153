//! The network between the service and its stores: answers that are lost, links that are slow or cut.

use std::time::Duration;

use futures_util::future::join_all;
use tonic::Code;
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    grpc::pb::{RestockRequest, RestockResponse},
};

use crate::harness::{
    BuyerLoad, Proxy, Service, TestEnv, eventually, get, product, reason, shared,
};

async fn postgres_proxy() -> Proxy {
    tokio::task::spawn_blocking(shared).await.unwrap();
    Proxy::postgres(shared().postgres.port()).await
}

async fn restock(service: &Service, units: i64) -> Result<RestockResponse, tonic::Status> {
    let request = RestockRequest {
        product_id: "shoe".to_owned(),
        units,
        request_id: "grant".to_owned(),
        ..RestockRequest::default()
    };
    Ok(service.admin().restock(request).await?.into_inner())
}

/// No order of these can be stored.
async fn poison(env: &TestEnv) {
    let sql = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id NOT LIKE 'mallory%')";
    env.sql().await.batch_execute(sql).await.unwrap();
}

async fn voided(service: &Service, id: &str) {
    eventually("the order is voided", async || {
        let state = service.reservation(id).await.ok()?.state();
        (state.as_str_name() == "RESERVATION_STATE_VOIDED").then_some(())
    })
    .await;
}

/// The hash by which Redis knows a script.
fn hash(body: &str) -> String {
    let fence = include_str!("../../../lua/fence.lua");
    redis::Script::new(&format!("{fence}\n{body}")).get_hash().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn reservation_with_lost_reply_happens_once_and_a_retry_gets_its_answer() {
    let env = TestEnv::with_own_redis().await;
    let proxy = Proxy::redis(env.redis.as_ref().unwrap().port()).await;
    let service = env.serve(Role::All, &[("redis_url", &proxy.redis_url())]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "early", "r").await.unwrap();
    let reserve = hash(include_str!("../../../lua/reserve.lua"));
    let lost = proxy.lose_reply(&[&reserve, "ann"]);
    let status = service.buy("shoe", "ann", "r").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "REDIS_UNAVAILABLE"));
    assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "maybe");
    let reply = lost.reply().await;
    assert!(reply.contains("accepted 2 8 "), "the script took a unit: {reply}");
    let again = eventually("she is answered", async || service.buy("shoe", "ann", "r").await.ok());
    let again = again.await;
    assert_eq!((again.duplicate, again.remaining), (true, 8));
    assert_eq!(service.buy("shoe", "ann", "r").await.unwrap().reservation_id, again.reservation_id);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn settlement_with_lost_reply_is_repeated_without_effect() {
    let env = TestEnv::new().await;
    let proxy = Proxy::redis(shared().redis.port()).await;
    let service = env.serve(Role::All, &[("redis_url", &proxy.redis_url())]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "early", "r").await.unwrap();
    env.assert_audit_holds().await;
    let lost = proxy.lose_reply(&[&hash(include_str!("../../../lua/settle.lua"))]);
    service.buy("shoe", "ann", "r").await.unwrap();
    assert!(lost.reply().await.contains("ok\r\n$1\r\n1\r\n"), "the entry was removed");
    let later =
        eventually("it continues to sell", async || service.buy("shoe", "bob", "r").await.ok())
            .await;
    assert_eq!(later.remaining, 7);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (3, 7));
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn move_to_dead_or_release_with_lost_reply_happens_once() {
    let env = TestEnv::new().await;
    let proxy = Proxy::redis(shared().redis.port()).await;
    let settings = [("redis_url", proxy.redis_url()), ("deliveries_max", "1".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 10)).await;
    poison(&env).await;
    // The scripts are known to Redis by then, so a call whose answer is lost below has run.
    let first = service.buy("shoe", "mallory-0", "r").await.unwrap();
    voided(&service, &first.reservation_id).await;
    env.assert_audit_holds().await;
    for (script, word) in [
        (include_str!("../../../lua/move_to_dead.lua"), "moved"),
        (include_str!("../../../lua/release.lua"), "released"),
    ] {
        let lost = proxy.lose_reply(&[&hash(script)]);
        let user = format!("mallory-{word}");
        let bought = service.buy("shoe", &user, "r").await.unwrap();
        assert_eq!(bought.remaining, 9, "{word}");
        let reply = lost.reply().await;
        assert!(reply.contains(word), "{reply}");
        voided(&service, &bought.reservation_id).await;
        let report = env.assert_audit_holds().await;
        assert_eq!((report.products[0].confirmed, report.products[0].stock), (0, 10), "{word}");
    }
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 3);
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn grant_with_lost_reply_in_redis_or_postgres_adds_once() {
    let env = TestEnv::new().await;
    let proxy = Proxy::redis(shared().redis.port()).await;
    let ledger = postgres_proxy().await;
    let (redis_url, postgres_url) = (proxy.redis_url(), ledger.postgres_url(&env.database));
    let settings = [("redis_url", redis_url.as_str()), ("postgres_url", postgres_url.as_str())];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 10)).await;
    let committed = ledger.lose_reply(&["grant", "supply_changes"]);
    let applied = proxy.lose_reply(&[&hash(include_str!("../../../lua/set_supply.lua"))]);
    let status = restock(&service, 5).await.unwrap_err();
    assert_eq!(reason(&status), "LEDGER_UNAVAILABLE");
    assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "maybe");
    let reply = committed.reply().await;
    assert!(reply.contains("COMMIT"), "{reply}");
    // Applied when any of the processes reads the ledger, or by the call below.
    let again = eventually("the grant is answered", async || restock(&service, 5).await.ok()).await;
    assert_eq!((again.supply, again.duplicate), (15, true));
    assert!(applied.reply().await.contains("ok\r\n$1\r\n1\r\n"), "Redis ran the script");
    eventually("it sells", async || service.buy("shoe", "ann", "r").await.ok()).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].supply, report.products[0].stock), (15, 14));
    assert_eq!(env.count("SELECT count(*) FROM supply_changes").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_voids_and_products_with_lost_commit_reply_are_stored_once() {
    let env = TestEnv::new().await;
    let ledger = postgres_proxy().await;
    let url = ledger.postgres_url(&env.database);
    let service = env.serve(Role::All, &[("postgres_url", &url), ("deliveries_max", "1")]).await;

    let lost = ledger.lose_reply(&["INSERT INTO supply_changes", "boot"]);
    let created = tokio::join!(service.try_create(product("boot", 7)), lost.reply());
    assert_eq!(reason(&created.0.unwrap_err()), "LEDGER_UNAVAILABLE");
    assert!(created.1.contains("COMMIT"), "{}", created.1);
    eventually("it is created", async || service.try_create(product("boot", 7)).await.ok()).await;
    assert_eq!(env.count("SELECT count(*) FROM supply_changes").await, 1);

    let lost = ledger.lose_reply(&["INSERT INTO reservations", "ann"]);
    let bought = service.buy("boot", "ann", "r").await.unwrap();
    let reply = lost.reply().await;
    assert!(reply.contains("COMMIT"), "{reply}");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 6));
    assert_eq!(env.count("SELECT sold FROM products").await, 1);
    let state = service.reservation(&bought.reservation_id).await.unwrap().state();
    assert_eq!(state.as_str_name(), "RESERVATION_STATE_CONFIRMED");

    poison(&env).await;
    let lost = ledger.lose_reply(&["INSERT INTO dead_actions", "mallory"]);
    let bought = service.buy("boot", "mallory", "r").await.unwrap();
    let reply = lost.reply().await;
    assert!(reply.contains("COMMIT"), "{reply}");
    voided(&service, &bought.reservation_id).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 6));
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 2);
    let released = "SELECT count(*) FROM dead_actions WHERE action = 'release'";
    assert_eq!(env.count(released).await, 1);
}

/// How often a service has called `lua/reserve.lua`.
async fn calls(service: &Service) -> usize {
    let metrics = get(service.http, "/metrics").await;
    let counted = metrics.lines().filter_map(|line| {
        let ours = line.starts_with("db_client_operation_duration_seconds_count{")
            && line.contains("db_stored_procedure_name=\"reserve\"");
        ours.then(|| line.rsplit_once(' ')?.1.parse::<usize>().ok())?
    });
    counted.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_redis_link_batches_buyers_and_answers_expired_deadlines() {
    let env = TestEnv::new().await;
    let proxy = Proxy::redis(shared().redis.port()).await;
    let url = proxy.redis_url();
    let patient = [("redis_url", url.as_str()), ("concurrency_max_calls", "100")];
    let patient = env.serve(Role::All, &patient).await;
    let hurried = [("redis_url", url.as_str()), ("call_timeout_ms", "150")];
    let hurried = env.serve(Role::Api, &hurried).await;
    patient.create(product("shoe", 10_000)).await;
    eventually("both sell", async || hurried.buy("shoe", "first", "r").await.ok()).await;
    let delay = Duration::from_millis(200);
    proxy.delay(delay, delay);

    let users: Vec<String> = (0..600).map(|n| format!("user-{n}")).collect();
    let before = calls(&patient).await;
    let buys = join_all(users.iter().map(|user| patient.buy("shoe", user, "r"))).await;
    let (accepted, refused): (Vec<_>, Vec<_>) = buys.into_iter().partition(Result::is_ok);
    assert!(accepted.len() >= 100, "{}", accepted.len());
    assert!(!refused.is_empty(), "six times as many calls as permits, and each takes 400 ms");
    for status in refused.into_iter().map(Result::unwrap_err) {
        assert_eq!(reason(&status), "OVERLOADED", "refused, and not made to wait");
    }
    let calls = calls(&patient).await - before;
    assert!(calls * 10 < accepted.len(), "{calls} calls for {} buyers", accepted.len());

    let buys = join_all(users[..50].iter().map(|user| hurried.buy("shoe", user, "late"))).await;
    for status in buys.into_iter().map(Result::unwrap_err) {
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "maybe");
    }
    proxy.pass();
    for user in &users[..50] {
        let late = eventually("an answer", async || hurried.buy("shoe", user, "late").await.ok());
        let late = late.await.reservation_id;
        let again = patient.buy("shoe", user, "late").await.unwrap();
        assert_eq!((again.reservation_id, again.duplicate), (late, true));
    }
    let report = env.assert_audit_holds().await;
    let confirmed = usize::try_from(report.products[0].confirmed).unwrap();
    assert_eq!(confirmed, accepted.len() + 50 + 1, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_unreachable_or_silent_for_a_time_loses_no_accepted_order() {
    let env = TestEnv::new().await;
    let proxy = Proxy::redis(shared().redis.port()).await;
    let service = env.serve(Role::All, &[("redis_url", &proxy.redis_url())]).await;
    service.create(product("shoe", 100_000)).await;
    let load = BuyerLoad::new("buyer", 8, &["shoe"]).start(vec![service.channel()]);
    for _ in 0..3 {
        load.sells(100).await;
        let broken = proxy.broken();
        proxy.cut();
        eventually("its connections break", async || (proxy.broken() > broken).then_some(())).await;
        proxy.pass();
    }
    load.sells(100).await;
    proxy.freeze();
    eventually("outcomes are open", async || (load.open() > 0).then_some(())).await;
    proxy.pass();
    load.sells(100).await;
    let account = load.end().await.assert_all_answers_kept(&env, &service).await;
    assert!(account.confirmed >= 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_unreachable_or_silent_stops_no_sale_and_gets_every_order() {
    let env = TestEnv::new().await;
    let proxy = postgres_proxy().await;
    let url = proxy.postgres_url(&env.database);
    let service = env.serve(Role::All, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 100_000)).await;
    let load = BuyerLoad::new("buyer", 4, &["shoe"]).start(vec![service.channel()]);
    let stored = async || env.count("SELECT count(*) FROM reservations").await;
    for silent in [false, true] {
        load.sells(100).await;
        let broken = proxy.broken();
        if silent {
            proxy.freeze();
        } else {
            proxy.cut();
            eventually("it breaks", async || (proxy.broken() > broken).then_some(())).await;
        }
        // What was under way may still be committed; then nothing comes through any more.
        let before = eventually("while 50 are sold nothing is stored", async || {
            let before = stored().await;
            load.sells(50).await;
            (stored().await == before).then_some(before)
        })
        .await;
        load.sells(200).await;
        assert_eq!(stored().await, before, "the link carries something");
        // Frozen connections break in the end, as they would when the network gives up.
        proxy.cut();
        proxy.pass();
        eventually("orders are stored again", async || (stored().await > before).then_some(()))
            .await;
    }
    let account = load.end().await.assert_all_answers_kept(&env, &service).await;
    assert!(account.confirmed >= 600);
    assert_eq!(env.count("SELECT count(*) FROM reservations WHERE state = 'voided'").await, 0);
}
