//! The sale itself: far more buyers than units, at the same moment.

use std::collections::HashSet;

use futures_util::future::join_all;
use tonic_types::StatusExt as _;
use yoink::app::Role;

use crate::harness::{TestEnv, eventually, product, reason};

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_buyers_of_100_units_create_exactly_100_orders() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 100)).await;
    let users: Vec<String> = (0..2000).map(|n| format!("user-{n}")).collect();
    let answers = join_all(users.iter().map(|user| service.buy("shoe", user, "r"))).await;

    let (accepted, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    let accepted: HashSet<String> =
        accepted.into_iter().map(|a| a.unwrap().reservation_id).collect();
    assert_eq!(accepted.len(), 100, "every accepted buyer has a reservation of its own");
    assert_eq!(refused.len(), 1900);
    assert!(refused.iter().all(|answer| reason(answer.as_ref().unwrap_err()) == "SOLD_OUT"));

    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (0, 100));
    let sql = env.sql().await;
    let rows = sql.query("SELECT reservation_id::text FROM reservations", &[]).await.unwrap();
    let rows: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(rows, accepted, "exactly the accepted orders are stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_order_can_be_looked_up_until_and_after_it_is_confirmed() {
    let env = TestEnv::new().await;
    // No worker yet: the order stays in the stream.
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 10)).await;
    let bought = api.buy("shoe", "ann", "r1").await.unwrap();
    assert_eq!((bought.remaining, bought.duplicate), (9, false));
    let accepted = api.reservation(&bought.reservation_id).await.unwrap();
    assert_eq!(accepted.state().as_str_name(), "RESERVATION_STATE_ACCEPTED");
    assert_eq!((accepted.product_id.as_str(), accepted.user_id.as_str()), ("shoe", "ann"));
    assert_eq!(accepted.reserved_at, bought.reserved_at);
    assert_eq!(accepted.recorded_at, None);

    let worker = env.serve(Role::Worker, &[]).await;
    let confirmed = eventually("the order is confirmed", async || {
        let found = api.reservation(&bought.reservation_id).await.unwrap();
        (found.state().as_str_name() == "RESERVATION_STATE_CONFIRMED").then_some(found)
    })
    .await;
    assert_eq!(confirmed.reserved_at, bought.reserved_at);
    assert!(confirmed.recorded_at.is_some());
    env.assert_audit_holds().await;
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_the_work() {
    let env = TestEnv::new().await;
    let services = join_all((0..3).map(|_| env.serve(Role::All, &[]))).await;
    services[0].create(product("shoe", 300)).await;
    let buys = (0..900).map(|n| {
        let service = &services[n % 3];
        async move { service.buy("shoe", &format!("user-{n}"), "r").await.is_ok() }
    });
    let accepted = join_all(buys).await.into_iter().filter(|accepted| *accepted).count();
    assert_eq!(accepted, 300);
    env.assert_audit_holds().await;
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 300);
    for service in services {
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_backlog_refuses_before_a_unit_is_taken() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[("backlog_max_entries", "5")]).await;
    service.create(product("shoe", 100)).await;
    for n in 0..5 {
        service.buy("shoe", &format!("user-{n}"), "").await.unwrap();
    }
    assert_eq!(service.refusal("shoe", "late", "").await, "BACKLOG_FULL");
    let report = env.audit().await;
    assert_eq!((report.products[0].stock, report.products[0].in_orders), (95, 5));
    eventually("the refusal reports that nothing drains", async || {
        let status = service.buy("shoe", "late", "").await.unwrap_err();
        let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
        (wait == std::time::Duration::from_secs(30)).then_some(())
    })
    .await;
    let worker = env.serve(Role::Worker, &[]).await;
    eventually("the backlog is below its limit again", async || {
        service.buy("shoe", "late", "").await.ok()
    })
    .await;
    env.assert_audit_holds().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_and_postgres_contain_the_documented_data() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r1").await.unwrap();
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let mut cli = env.cli().await;
    let pattern = format!("{}:{{{partition}}}:*", env.prefix);
    let mut keys: Vec<String> =
        redis::cmd("KEYS").arg(pattern).query_async(&mut cli).await.unwrap();
    keys.sort();
    let names: Vec<&str> = keys.iter().map(|key| key.split("}:").nth(1).unwrap()).collect();
    assert_eq!(names[0], "catalogue");
    assert!(names[1].starts_with("idempotency:"));
    assert_eq!(names[2..], ["meta", "orders", "stock", "supply"]);
    let orders = format!("{}:{{{partition}}}:orders", env.prefix);
    let groups: redis::streams::StreamInfoGroupsReply =
        redis::cmd("XINFO").arg("GROUPS").arg(&orders).query_async(&mut cli).await.unwrap();
    assert_eq!(groups.groups[0].name, "ledger");
    let entries: redis::streams::StreamRangeReply =
        redis::cmd("XRANGE").arg(&orders).arg("-").arg("+").query_async(&mut cli).await.unwrap();
    assert_eq!(entries.ids[0].id, "1-1", "<epoch>-<seq>");
    for table in ["deployment", "partitions", "products", "reservations", "supply_changes"] {
        let sql =
            format!("SELECT count(*) FROM information_schema.tables WHERE table_name = '{table}'");
        assert_eq!(env.count(&sql).await, 1, "{table}");
    }
    let worker = env.serve(Role::Worker, &[]).await;
    env.assert_audit_holds().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn units_near_two_to_the_53_are_counted_exactly() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let most = yoink::domain::UNITS_MAX;
    service.try_create(product("shoe", most)).await.expect("Redis gets the whole supply");
    for n in 1..=3 {
        let bought = service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
        assert_eq!(bought.remaining, most - n);
        let again = service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
        assert_eq!((again.duplicate, again.remaining), (true, most - n));
        assert_eq!(again.reserved_at, bought.reserved_at);
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (most - 3, 3));
}
