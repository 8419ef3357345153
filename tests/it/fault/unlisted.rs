//! Postgres refuses with a SQLSTATE that this program does not classify: a trigger that raises P0001.

use futures_util::future::join_all;
use redis::AsyncCommands as _;
use yoink::{app::Role, worker::Consumer};

use crate::harness::{Service, TestEnv, eventually, get, product};

/// Raises P0001 for the orders of which this is true.
async fn refuse(env: &TestEnv, condition: &str) {
    let trigger = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON reservations
             FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse()"
    );
    env.sql().await.batch_execute(&trigger).await.unwrap();
}

async fn refuse_nothing(env: &TestEnv) {
    env.sql().await.batch_execute("DROP TRIGGER refuse ON reservations").await.unwrap();
}

async fn confirmed(env: &TestEnv) -> i64 {
    env.count("SELECT count(*) FROM reservations WHERE state = 'confirmed'").await
}

/// So many failures were counted with this code.
async fn failures(service: &Service) -> u64 {
    let metrics = get(service.http, "/metrics").await;
    let counted = metrics.lines().filter(|line| {
        line.starts_with("yoink_ledger_unlisted_errors_total{") && line.contains("\"P0001\"")
    });
    counted.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn order_refused_by_a_trigger_is_kept_and_its_neighbours_are_stored() {
    let env = TestEnv::new().await;
    // One failure caused by an order would be enough to move it to dead.
    let settings = [("deliveries_max", "1")];
    let api = env.serve(Role::Api, &settings).await;
    api.create(product("shoe", 100)).await;
    refuse(&env, "NEW.user_id = 'mallory'").await;
    let users: Vec<String> = (0..20).map(|n| format!("user-{n}")).collect();
    let mut buys: Vec<_> = users.iter().map(|user| api.buy("shoe", user, "r")).collect();
    buys.insert(10, api.buy("shoe", "mallory", "r"));
    let answers: Vec<_> = join_all(buys).await.into_iter().map(Result::unwrap).collect();
    let kept = &answers[10].reservation_id;

    let worker = env.serve(Role::Worker, &settings).await;
    eventually("the neighbours are stored", async || (confirmed(&env).await == 20).then_some(()))
        .await;
    let ready = eventually("readiness names it", async || {
        let ready = get(worker.http, "/readyz").await;
        ready.contains("SQLSTATE P0001").then_some(ready)
    })
    .await;
    assert!(ready.contains("1 orders are kept and tried again"), "{ready}");
    assert!(ready.starts_with("HTTP/1.1 200"), "everything else is stored: {ready}");
    assert!(!ready.contains("Postgres cannot do this now"), "{ready}");
    // It is retried without a limit, and later orders are stored.
    let before = failures(&worker).await;
    eventually("it is tried again", async || (failures(&worker).await > before).then_some(()))
        .await;
    api.buy("shoe", "late", "r").await.unwrap();
    eventually("later orders are stored", async || (confirmed(&env).await == 21).then_some(()))
        .await;
    let state = api.reservation(kept).await.unwrap().state();
    assert_eq!(state.as_str_name(), "RESERVATION_STATE_ACCEPTED", "neither stored nor voided");
    let report = env.audit().await;
    assert_eq!((report.products[0].in_orders, report.products[0].in_dead), (1, 0));

    refuse_nothing(&env).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (22, 78));
    eventually("readiness no longer shows it", async || {
        (!get(worker.http, "/readyz").await.contains("P0001")).then_some(())
    })
    .await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_refusing_every_order_pauses_consumption_with_bounded_work() {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 1000)).await;
    let users: Vec<String> = (0..400).map(|n| format!("user-{n}")).collect();
    let buys = join_all(users.iter().map(|user| api.buy("shoe", user, "r"))).await;
    assert!(buys.iter().all(Result::is_ok));
    refuse(&env, "true").await;
    // One step at a time: exactly so many transactions are tried.
    let app = env.app(&[("deliveries_max", "1")]).await;
    let partition = app.stores().deployment.partitions.of(&"shoe".parse().unwrap());
    let reader = app.stores().reader(partition).await.unwrap();
    let context = app.worker_context.clone();
    let mut consumer = Consumer::new(context, partition, reader).without_waiting();
    let metrics = &app.stores().metrics;
    let tried = || {
        let text = metrics.encode().unwrap();
        let line = text.lines().find(|line| {
            line.starts_with("yoink_ledger_unlisted_errors_total{") && line.contains("\"P0001\"")
        });
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
    };
    for step in 1..=3 {
        let pause = consumer.run_once().await.unwrap_err();
        assert!(pause.reason.to_string().contains("SQLSTATE P0001"), "{}", pause.reason);
        assert_eq!(tried(), step * 32);
    }
    assert_eq!(confirmed(&env).await, 0);

    refuse_nothing(&env).await;
    drop((consumer, app));
    let worker = env.serve(Role::Worker, &[("takeover_idle_ms", "1000")]).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (400, 600));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_orders_in_front_do_not_delay_the_orders_behind_them() {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 1000)).await;
    refuse(&env, "NEW.user_id LIKE 'bad-%'").await;
    for n in 0..60 {
        api.buy("shoe", &format!("bad-{n}"), "r").await.unwrap();
    }
    for n in 0..5 {
        api.buy("shoe", &format!("good-{n}"), "r").await.unwrap();
    }
    let worker = env.serve(Role::Worker, &[]).await;
    eventually("they are stored", async || (confirmed(&env).await == 5).then_some(())).await;
    refuse_nothing(&env).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].in_dead), (65, 0));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_waits_for_a_refused_order_and_reports_why() {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 10)).await;
    refuse(&env, "NEW.user_id = 'mallory'").await;
    let kept = api.buy("shoe", "mallory", "r").await.unwrap();
    // Closed before a worker runs: only a rebuild tries to store the order.
    let number = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let meta = format!("{}:{{{number}}}:meta", env.prefix);
    let _: i64 = env.cli().await.hset(meta, "status", "closed").await.unwrap();
    let worker = env.serve(Role::Worker, &[]).await;
    let ready = eventually("readiness shows the reason", async || {
        let ready = get(worker.http, "/readyz").await;
        ready.contains("not rebuilt").then_some(ready)
    })
    .await;
    assert!(ready.contains("SQLSTATE P0001"), "{ready}");
    assert!(failures(&worker).await > 0, "it is counted, and so there is an alert");
    assert_eq!(confirmed(&env).await, 0);

    refuse_nothing(&env).await;
    let again =
        eventually("it sells again", async || api.buy("shoe", "mallory", "r").await.ok()).await;
    assert_eq!((again.duplicate, again.reservation_id), (true, kept.reservation_id));
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
    worker.stop().await;
    api.stop().await;
}
