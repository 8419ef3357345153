//! A consumer stalls longer than `takeover_idle_ms`, another settles its entries, and it resumes.

use nix::sys::signal::Signal;
use yoink::{
    app::Role,
    worker::{Consumer, Releaser},
};

use crate::harness::{Binary, TestEnv, eventually, product};

/// How many entries of both partitions are delivered and not settled.
async fn pending(env: &TestEnv) -> u64 {
    let (mut cli, mut pending) = (env.cli().await, 0);
    for partition in 0..2 {
        let key = format!("{}:{{{partition}}}:orders", env.prefix);
        let mut groups = redis::cmd("XINFO");
        let groups: redis::streams::StreamInfoGroupsReply =
            groups.arg("GROUPS").arg(key).query_async(&mut cli).await.unwrap();
        pending += u64::try_from(groups.groups[0].pending).unwrap();
    }
    pending
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_process_changes_nothing_when_it_resumes() {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 1000)).await;
    let settings = [("takeover_idle_ms", "300")];
    let mut stalled = Binary::serve_as("worker", &env, &settings, None);
    stalled.channel().await;
    // It reads orders and cannot store them: another transaction holds a lock that it needs.
    let sql = env.sql().await;
    sql.batch_execute("BEGIN; LOCK TABLE reservations IN EXCLUSIVE MODE").await.unwrap();
    for n in 0..100 {
        api.buy("shoe", &format!("user-{n}"), "").await.unwrap();
    }
    eventually("it holds some", async || (pending(&env).await > 0).then_some(())).await;
    stalled.signal(Signal::SIGSTOP);
    let held = pending(&env).await;
    assert!(held > 0, "it held nothing when it stalled");
    // Its transaction ends with its connection, as when it is cut off.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE backend_type = 'client backend' AND datname = current_database()
                 AND pid <> pg_backend_pid()";
    sql.batch_execute(end).await.unwrap();
    sql.batch_execute("ROLLBACK").await.unwrap();
    let other = env.serve(Role::Worker, &settings).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 100);
    stalled.signal(Signal::SIGCONT);
    // It works again, and what it held was settled once.
    other.stop().await;
    api.buy("shoe", "late", "").await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (101, 899));
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);
    stalled.signal(Signal::SIGTERM);
    assert!(stalled.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn late_commit_after_void_and_release_stores_nothing() {
    let env = TestEnv::new().await;
    // The test steps two consumers: the first reads and then stalls.
    let settings =
        [("takeover_idle_ms", "100"), ("deliveries_max", "1"), ("dead_letter_release", "manual")];
    let (slow, fast) = (env.app(&settings).await, env.app(&settings).await);
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 5)).await;
    let bought = api.buy("shoe", "ann", "r").await.unwrap();
    let partition = slow.stores().deployment.partitions.of(&"shoe".parse().unwrap());
    let streams = &slow.stores().streams;
    let mut reader = slow.stores().reader(partition).await.unwrap();
    let held = streams.read_new(&mut reader, partition, "slow", (10, 0)).await.unwrap();
    assert_eq!(held.len(), 1);

    // Meanwhile another process refuses the order, moves it to dead, voids and releases it.
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'ann')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let reader = fast.stores().reader(partition).await.unwrap();
    let context = fast.worker_context.clone();
    let mut consumer = Consumer::new(context, partition, reader).without_waiting();
    eventually("the other has taken it over", async || {
        (consumer.run_once().await.unwrap() == 1).then_some(())
    })
    .await;
    let mut releaser = Releaser::new(fast.worker_context.clone(), partition);
    assert_eq!(releaser.run_once().await.unwrap(), 1);
    env.sql().await.batch_execute("ALTER TABLE reservations DROP CONSTRAINT poison").await.unwrap();

    // The stalled consumer resumes and commits: the order stays void.
    let order = held[0].entry.order(partition, &held[0].entry.id).unwrap();
    let epoch = slow.stores().stock.partitions().epoch(partition).unwrap();
    let stored = slow.stores().ledger.store(partition, epoch, &[&order]).await.unwrap();
    assert_eq!((stored.inserted, stored.voided.len()), (0, 1), "the order stays void");
    let released = slow.stores().stock.release(
        partition,
        yoink::stock::ReleaseFrom::Orders,
        &held[0].entry.id,
    );
    assert_eq!(released.await.unwrap(), yoink::stock::ReleaseOutcome::AlreadyReleased);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (5, 0));
    let state = api.reservation(&bought.reservation_id).await.unwrap().state();
    assert_eq!(state.as_str_name(), "RESERVATION_STATE_VOIDED");
}

#[tokio::test(flavor = "multi_thread")]
async fn voided_entry_still_in_orders_is_released_and_not_only_acknowledged() {
    let env = TestEnv::new().await;
    let app = env.app(&[("dead_letter_release", "manual")]).await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 5)).await;
    api.buy("shoe", "ann", "r").await.unwrap();
    let partition = app.stores().deployment.partitions.of(&"shoe".parse().unwrap());
    let entry = app.stores().streams.entry(partition, "1-1").await.unwrap().unwrap();
    let void = yoink::ledger::VoidRequest {
        id: entry.reservation_id(partition, "1-1").unwrap(),
        reserved_at_ms: 0,
        reason: "by hand".to_owned(),
        entry: entry.to_bytes(),
    };
    let by = yoink::ledger::ActionBy { actor: "test".to_owned(), reason: String::new() };
    let epoch = app.stores().stock.partitions().epoch(partition).unwrap();
    app.stores().ledger.void(partition, epoch, &void, &by).await.unwrap();
    let reader = app.stores().reader(partition).await.unwrap();
    let context = app.worker_context.clone();
    let mut consumer = Consumer::new(context, partition, reader).without_waiting();
    assert_eq!(consumer.run_once().await.unwrap(), 1);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (5, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_consumer_group_is_created_again_and_nothing_is_lost() {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 50)).await;
    for n in 0..20 {
        api.buy("shoe", &format!("user-{n}"), "").await.unwrap();
    }
    // Some of them are delivered and not stored.
    let stores = env.stores().await;
    let partition = stores.deployment.partitions.of(&"shoe".parse().unwrap());
    let mut reader = stores.reader(partition).await.unwrap();
    let held = stores.streams.read_new(&mut reader, partition, "gone", (8, 0)).await.unwrap();
    assert_eq!((held.len(), pending(&env).await), (8, 8));
    for partition in 0..2 {
        let key = format!("{}:{{{partition}}}:orders", env.prefix);
        let mut destroy = redis::cmd("XGROUP");
        destroy.arg("DESTROY").arg(key).arg("ledger");
        let destroyed: i64 = destroy.query_async(&mut env.cli().await).await.unwrap();
        assert_eq!(destroyed, 1);
    }
    let mut worker = Binary::serve_as("worker", &env, &[], None);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (20, 30));
    assert!(worker.log().contains("the consumer group was deleted"), "{}", worker.log());
    worker.signal(Signal::SIGTERM);
    assert!(worker.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn late_commit_after_a_rebuild_stores_nothing() {
    let env = TestEnv::with_own_redis().await;
    let app = env.app(&[]).await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 5)).await;
    api.buy("shoe", "ann", "r").await.unwrap();
    let partition = app.stores().deployment.partitions.of(&"shoe".parse().unwrap());
    let epoch = app.stores().stock.partitions().epoch(partition).unwrap();
    let mut reader = app.stores().reader(partition).await.unwrap();
    let streams = &app.stores().streams;
    let held = streams.read_new(&mut reader, partition, "slow", (10, 0)).await.unwrap();
    let order = held[0].entry.order(partition, &held[0].entry.id).unwrap();
    // Redis loses everything, and the rebuild has read what was sold: nothing.
    let () = redis::cmd("FLUSHALL").query_async(&mut env.cli().await).await.unwrap();
    let worker = env.serve(Role::Worker, &[]).await;
    eventually("it sells again", async || api.buy("shoe", "bob", "r").await.ok()).await;
    let late = app.stores().ledger.store(partition, epoch, &[&order]).await;
    let refused = matches!(late, Err(yoink::ledger::LedgerError::EpochChanged));
    assert!(refused, "a late commit stores nothing: {late:?}");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (4, 1));
    worker.stop().await;
}
