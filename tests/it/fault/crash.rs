//! The process dies between two effects; another process completes what it began, once.

use nix::sys::signal::Signal;
use yoink::app::Role;

use super::consumers;
use crate::harness::{Binary, TestEnv, eventually, product};

/// Runs the program into a crash point with one good and one poison order in progress, then lets another
/// process take over.
async fn crash_at(point: &str) -> yoink::audit::Report {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let good = api.buy("shoe", "ann", "r").await.unwrap();
    let bad = api.buy("shoe", "mallory", "r").await.unwrap();

    let settings = [("deliveries_max", "1"), ("takeover_idle_ms", "300")];
    let mut worker = Binary::serve(&env, &settings, Some(point));
    let status = worker.ended().await;
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{point}: {}", worker.log());

    let next = env.serve(Role::Worker, &settings).await;
    let state = async |id: &str| api.reservation(id).await.unwrap().state().as_str_name();
    eventually("both orders end", async || {
        let good = state(&good.reservation_id).await == "RESERVATION_STATE_CONFIRMED";
        let bad = state(&bad.reservation_id).await == "RESERVATION_STATE_VOIDED";
        (good && bad).then_some(())
    })
    .await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9), "{point}");
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 2, "{point}");
    next.stop().await;
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_after_the_read_has_one_outcome() {
    crash_at("after_read").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_between_commit_and_acknowledgement_has_one_outcome() {
    crash_at("after_commit").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_after_the_move_to_dead_has_one_outcome() {
    crash_at("after_move_to_dead").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_between_void_and_release_has_one_outcome() {
    crash_at("after_void").await;
}

/// Ends a worker at this point while it works through a backlog of three batches; then `stored` orders are in the ledger,
/// and `pending` entries were delivered and not acknowledged.
async fn crash_with_backlog(point: &str, stored: i64, pending: usize) {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 10_000)).await;
    let users: Vec<String> = (0..1_200).map(|n| format!("user-{n}")).collect();
    let buys = users.iter().map(|user| api.buy("shoe", user, "r"));
    let bought = futures_util::future::join_all(buys).await;
    assert!(bought.iter().all(Result::is_ok));
    // A worker does not read ahead when a takeover is due. The first one is made before the first read, the next one is due
    // 5 s later, and this worker ends within its first batch.
    let mut worker = Binary::serve(&env, &[("takeover_idle_ms", "60000")], Some(point));
    let status = worker.ended().await;
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{}", worker.log());
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, stored, "{point}");
    let (_, orders) = consumers::orders(&env).await;
    assert_eq!(consumers::pending(&env, &orders).await.len(), pending, "{point}");

    let next = env.serve(Role::Worker, &[("takeover_idle_ms", "300")]).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1_200, 8_800));
    assert_eq!(env.count("SELECT sold FROM products").await, 1_200);
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_with_a_batch_read_ahead_has_one_outcome() {
    crash_with_backlog("after_commit", 500, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_killed_before_it_settles_a_stored_batch_has_one_outcome() {
    crash_with_backlog("settle_deferred", 500, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_service_keeps_every_accepted_order() {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 100_000)).await;
    let settings = [("takeover_idle_ms", "300")];
    let mut accepted = 0;
    for round in 0..3 {
        let mut worker = Binary::serve(&env, &settings, None);
        worker.channel().await;
        let buys = (0..300).map(|n| {
            let api = &api;
            async move { api.buy("shoe", &format!("user-{round}-{n}"), "").await.is_ok() }
        });
        let answers = futures_util::future::join_all(buys).await;
        accepted += answers.into_iter().filter(|accepted| *accepted).count();
        worker.signal(Signal::SIGKILL);
        worker.ended().await;
    }
    let next = env.serve(Role::Worker, &settings).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, i64::try_from(accepted).unwrap());
    next.stop().await;
}

/// The crash points of a rebuild, in their order.
pub(super) const REBUILD_POINTS: [&str; 6] = [
    "rebuild_closed",
    "rebuild_begun",
    "rebuild_drained",
    "rebuild_filled",
    "rebuild_requests_resolved",
    "rebuild_opened",
];

/// Runs the program into a crash point of a rebuild, with one order in the stream, one stored and one
/// poison, then lets another process rebuild.
async fn crash_while_rebuilding(point: &str) {
    let mut env = TestEnv::with_own_redis().await;
    let first = env.serve(Role::All, &[]).await;
    first.create(product("shoe", 10)).await;
    let stored = first.buy("shoe", "early", "r").await.unwrap();
    env.assert_audit_holds().await;
    first.stop().await;
    let api = env.serve(Role::Api, &[]).await;
    let waiting = api.buy("shoe", "ann", "r").await.unwrap();
    let bad = api.buy("shoe", "mallory", "r").await.unwrap();
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    env.sql().await.batch_execute(poison).await.unwrap();
    env.restart_redis();

    let mut rebuilder = Binary::serve(&env, &[], Some(point));
    let status = rebuilder.ended().await;
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{point}: {}", rebuilder.log());
    let next = env.serve(Role::Worker, &[]).await;
    for (user, bought) in [("early", &stored), ("ann", &waiting)] {
        let again =
            eventually("it sells again", async || api.buy("shoe", user, "r").await.ok()).await;
        assert!(again.duplicate, "{point}: {user} keeps the answer");
        assert_eq!(again.reservation_id, bought.reservation_id, "{point}");
    }
    let state = api.reservation(&bad.reservation_id).await.unwrap().state();
    assert_eq!(state.as_str_name(), "RESERVATION_STATE_VOIDED", "{point}");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8), "{point}");
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn process_killed_between_any_two_rebuild_steps_has_one_outcome() {
    // On the heap: an array of futures of this size is copied until the stack of the test is full.
    let crashes = REBUILD_POINTS.iter().map(|point| Box::pin(crash_while_rebuilding(point)));
    futures_util::future::join_all(crashes).await;
}
