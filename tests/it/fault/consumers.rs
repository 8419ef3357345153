//! A consumer is deleted: its pending entries have no owner, and are taken over.

use nix::sys::signal::Signal;
use yoink::{app::Role, domain::Partition, worker::Consumer};

use crate::harness::{Binary, Service, TestEnv, eventually, product};

pub(super) async fn orders(env: &TestEnv) -> (Partition, String) {
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    (partition, format!("{}:{{{partition}}}:orders", env.prefix))
}

/// The pending entries: id, consumer, idle time and delivery count.
pub(super) async fn pending(env: &TestEnv, orders: &str) -> Vec<(String, String, u64, u64)> {
    let mut command = redis::cmd("XPENDING");
    command.arg(orders).arg("ledger").arg("-").arg("+").arg(10_000);
    command.query_async(&mut env.cli().await).await.unwrap()
}

/// Deletes a consumer as an operator would; returns how many entries it had pending.
async fn delete(env: &TestEnv, orders: &str, consumer: &str) -> u64 {
    let mut command = redis::cmd("XGROUP");
    command.arg("DELCONSUMER").arg(orders).arg("ledger").arg(consumer);
    command.query_async(&mut env.cli().await).await.unwrap()
}

async fn sell(service: &Service, users: std::ops::Range<u32>) {
    for n in users {
        service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_a_deleted_consumer_are_taken_over_and_stored_once() {
    let env = TestEnv::new().await;
    // Idle entries are of no interest here: nothing becomes idle.
    let settings = [("takeover_idle_ms", "600000")];
    let (gone, other) = (env.app(&settings).await, env.app(&settings).await);
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 100)).await;
    sell(&api, 0..30).await;
    let (partition, key) = orders(&env).await;
    let streams = &gone.stores().streams;
    let mut reader = gone.stores().reader(partition).await.unwrap();
    let held = streams.read_new(&mut reader, partition, "gone", (10, 0)).await.unwrap();
    let kept = streams.read_new(&mut reader, partition, "alive", (10, 0)).await.unwrap();
    assert_eq!((held.len(), kept.len()), (10, 10));
    assert_eq!(delete(&env, &key, "gone").await, 10);
    assert_eq!(pending(&env, &key).await.len(), 10, "no consumer has its entries");

    let mut scanned_to = String::new();
    let streams = &other.stores().streams;
    // A page is seven entries: all ten of the first consumer, then some of another consumer.
    let mut adopted = Vec::new();
    for (page, (taken, last)) in [(7, "1-7"), (3, "1-14"), (0, "")].into_iter().enumerate() {
        let more = streams.adopt(partition, "second", &mut scanned_to, 7).await.unwrap();
        assert_eq!((more.len(), scanned_to.as_str()), (taken, last), "page {page}");
        adopted.extend(more);
    }
    assert_eq!(adopted, held, "each once, with one delivery, and none of the others");
    assert!(streams.adopt(partition, "other", &mut scanned_to, 500).await.unwrap().is_empty());
    let pending = pending(&env, &key).await;
    assert_eq!(pending.len(), 20, "what was not delivered yet is left alone");
    for (n, (id, consumer, _, deliveries)) in pending.iter().enumerate() {
        assert_eq!(consumer, if n < 10 { "second" } else { "alive" }, "{id}");
        assert_eq!(*deliveries, 1, "{id}: an adoption counts no delivery");
    }
    // The deleted consumer resumes and stores its entries; so do the others.
    for late in [&held, &adopted, &kept] {
        let order = |pending: &yoink::stream::PendingEntry| {
            pending.entry.order(partition, &pending.entry.id).unwrap()
        };
        let late: Vec<_> = late.iter().map(order).collect();
        let epoch = gone.stores().stock.partitions().epoch(partition).unwrap();
        gone.stores()
            .ledger
            .store(partition, epoch, &late.iter().collect::<Vec<_>>())
            .await
            .unwrap();
    }
    let worker = env.serve(Role::Worker, &[("takeover_idle_ms", "200")]).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (30, 70));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn consumer_finds_unowned_entries_behind_more_pending_entries_than_one_scan() {
    let env = TestEnv::new().await;
    let settings = [("takeover_idle_ms", "600000")];
    let app = env.app(&settings).await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 2_000)).await;
    let users: Vec<String> = (0..1_220).map(|n| format!("user-{n}")).collect();
    let buys = users.iter().map(|user| api.buy("shoe", user, "r"));
    assert!(futures_util::future::join_all(buys).await.iter().all(Result::is_ok));
    let (partition, key) = orders(&env).await;
    let streams = &app.stores().streams;
    let mut reader = app.stores().reader(partition).await.unwrap();
    // More than two pages of entries with an owner, then the unowned ones.
    let alive = streams.read_new(&mut reader, partition, "alive", (1_200, 0)).await.unwrap();
    let unowned = streams.read_new(&mut reader, partition, "gone", (20, 0)).await.unwrap();
    assert_eq!((alive.len(), unowned.len()), (1_200, 20));
    assert_eq!(delete(&env, &key, "gone").await, 20);
    let other = env.app(&[("takeover_idle_ms", "100")]).await;
    let mut context = other.worker_context.clone();
    // It scans often, and takes over only unowned entries.
    context.settings.takeover_idle = std::time::Duration::from_millis(100);
    let reader = other.stores().reader(partition).await.unwrap();
    let mut consumer = Consumer::new(context, partition, reader).without_waiting();
    let mut worked = 0;
    eventually("all are stored", async || {
        worked += consumer.run_once().await.unwrap();
        (worked >= 1_220).then_some(())
    })
    .await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1_220, 780));
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_process_with_deleted_consumer_delays_orders_and_loses_none() {
    let env = TestEnv::with_own_postgres().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 1_000)).await;
    let (_, key) = orders(&env).await;
    let mut stalled = Binary::serve_as("worker", &env, &[], None);
    stalled.channel().await;
    // It reads them and cannot store them: another transaction holds a lock that it needs.
    let sql = env.sql().await;
    sql.batch_execute("BEGIN; LOCK TABLE reservations IN EXCLUSIVE MODE").await.unwrap();
    sell(&api, 0..20).await;
    let held = eventually("it holds some", async || {
        Some(pending(&env, &key).await).filter(|pending| !pending.is_empty())
    })
    .await;
    stalled.signal(Signal::SIGSTOP);
    let consumer = held[0].1.clone();
    let had = delete(&env, &key, &consumer).await;
    assert!(had > 0, "it held entries");
    assert!(pending(&env, &key).await.is_empty(), "no consumer has them");
    // Its transaction delays no other.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    sql.batch_execute(end).await.unwrap();
    sql.batch_execute("ROLLBACK").await.unwrap();

    // Other consumers store them long before any entry is idle enough to be taken over.
    let mut other = Binary::serve_as("worker", &env, &[("takeover_idle_ms", "20000")], None);
    other.channel().await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (20, 980));
    assert!(other.log().contains("were pending with no consumer"), "the alarm: {}", other.log());
    stalled.signal(Signal::SIGCONT);
    sell(&api, 20..40).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 40);
    for table in ["dead_actions", "reservations WHERE state = 'voided'"] {
        assert_eq!(env.count(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    for process in [&mut stalled, &mut other] {
        process.signal(Signal::SIGTERM);
        assert!(process.ended().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_a_paused_consumer_could_not_store_are_taken_over_at_once_when_it_ends() {
    let env = TestEnv::new().await;
    // Nothing becomes idle by itself.
    let settings = [("takeover_idle_ms", "3600000")];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 100)).await;
    let sql = env.sql().await;
    let refuse = "ALTER TABLE reservations ADD COLUMN note text NOT NULL DEFAULT '';
                  ALTER TABLE reservations ALTER COLUMN note DROP DEFAULT";
    sql.batch_execute(refuse).await.unwrap();
    sell(&service, 0..5).await;
    let (_, key) = orders(&env).await;
    eventually("entries are read and cannot be stored", async || {
        (!pending(&env, &key).await.is_empty()).then_some(())
    })
    .await;
    service.stop().await;
    let left = pending(&env, &key).await;
    assert!(!left.is_empty());
    for (id, _, idle_ms, deliveries) in left {
        assert!(idle_ms >= 3_600_000, "{id}: {idle_ms}");
        assert_eq!(deliveries, 1, "{id}: a takeover counts none");
    }
    sql.batch_execute("ALTER TABLE reservations DROP COLUMN note").await.unwrap();
    let service = env.serve(Role::All, &settings).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 5);
    service.stop().await;
}
