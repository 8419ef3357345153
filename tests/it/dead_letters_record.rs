//! The record of actions on dead entries: each action once, with actor and reason.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use yoink::{
    app::Role,
    domain::ReservationId,
    grpc::pb::{ReleaseDeadEntriesRequest, RetryDeadEntriesRequest},
    ledger::{ActionBy, VoidRequest},
};

use crate::harness::{Binary, Service, TestEnv, dead_entries, eventually, move_to_dead, product};

async fn release(service: &Service, id: ReservationId, actor: &str) -> (i32, i32) {
    let request = ReleaseDeadEntriesRequest {
        selector: dead_entries::of([id]),
        actor: actor.to_owned(),
        reason: format!("reason of {actor}"),
        ..Default::default()
    };
    let done = service.admin().release_dead_entries(request).await.unwrap().into_inner();
    (done.released, done.decided + done.not_found)
}

async fn retry(service: &Service, id: ReservationId, actor: &str) -> (i32, i32) {
    let request = RetryDeadEntriesRequest {
        selector: dead_entries::of([id]),
        actor: actor.to_owned(),
        reason: format!("reason of {actor}"),
        ..Default::default()
    };
    let done = service.admin().retry_dead_entries(request).await.unwrap().into_inner();
    (done.stored, done.refused)
}

/// `action actor`, oldest first; each must have its reason.
async fn record(env: &TestEnv, id: ReservationId) -> Vec<String> {
    let done = env.stores().await.ledger.dead_actions(id).await.unwrap();
    let reported = done.into_iter().map(|done| {
        assert_eq!(done.reason, format!("reason of {}", done.actor));
        assert!(done.at_ms > 0);
        format!("{} {}", done.action, done.actor)
    });
    reported.collect()
}

async fn three_dead(env: &TestEnv) -> (Service, Vec<ReservationId>) {
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let users = ["ann", "bob", "eve"].map(str::to_owned);
    let ids = move_to_dead(env, &service, ("shoe", Some("23514")), users).await;
    (service, ids)
}

/// A void by a process that then crashed.
async fn void(env: &TestEnv, id: ReservationId) {
    let stores = env.stores().await;
    let dead = stores.dead_letters.find(id).await.unwrap().unwrap();
    let by = ActionBy { actor: "dave".to_owned(), reason: "reason of dave".to_owned() };
    let void = VoidRequest { id, reserved_at_ms: 0, reason: "x".to_owned(), entry: vec![] };
    stores.ledger.void(dead.partition, id.epoch(), &void, &by).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_dead_letter_action_is_recorded_once() {
    let env = TestEnv::new().await;
    let (service, ids) = three_dead(&env).await;
    let [released, retried, stored] = ids[..] else { panic!("three") };

    assert_eq!(release(&service, released, "ann").await, (1, 0));
    assert_eq!(release(&service, released, "late").await, (0, 1), "it is gone");
    assert_eq!(record(&env, released).await, ["release ann"]);

    let sql = env.sql().await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'bob')";
    sql.batch_execute(poison).await.unwrap();
    assert_eq!(retry(&service, retried, "carl").await, (0, 1));
    sql.batch_execute("ALTER TABLE reservations DROP CONSTRAINT poison").await.unwrap();
    assert_eq!(retry(&service, retried, "dora").await, (1, 0));
    assert_eq!(retry(&service, retried, "late").await, (0, 0));
    assert_eq!(record(&env, retried).await, ["refused carl", "retry dora"]);

    // Stored by a consumer that had stalled; only its dead entry is left.
    let stores = env.stores().await;
    let dead = stores.dead_letters.find(stored).await.unwrap().unwrap();
    let order = dead.order().unwrap();
    stores.ledger.store(dead.partition, stored.epoch(), &[&order]).await.unwrap();
    assert_eq!(release(&service, stored, "erna").await, (0, 1));
    assert_eq!(record(&env, stored).await, ["discard erna"]);

    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (8, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn action_records_the_operator_that_finished_it_and_no_other() {
    let env = TestEnv::new().await;
    let (service, ids) = three_dead(&env).await;
    for id in &ids {
        void(&env, *id).await;
    }
    let service = &service;
    let actors = ["a", "b", "c", "d", "e", "f"];
    for id in &ids {
        let race = actors.map(|actor| async move {
            let (released, _) = release(service, *id, actor).await;
            (actor, released)
        });
        let done = futures_util::future::join_all(race).await;
        let by: Vec<&str> =
            done.iter().filter(|(_, released)| *released == 1).map(|(actor, _)| *actor).collect();
        assert_eq!(by.len(), 1, "{done:?}");
        let reported = ["release dave".to_owned(), format!("finish {}", by[0])];
        assert_eq!(record(&env, *id).await, reported);
    }
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].stock, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_of_a_voided_entry_gives_the_unit_back_and_reports_it() {
    let env = TestEnv::new().await;
    let (service, ids) = three_dead(&env).await;
    void(&env, ids[0]).await;
    let request = RetryDeadEntriesRequest {
        selector: dead_entries::all(),
        actor: "ann".to_owned(),
        reason: "reason of ann".to_owned(),
        ..Default::default()
    };
    let done = service.admin().retry_dead_entries(request).await.unwrap().into_inner();
    assert_eq!((done.released, done.stored, done.refused, done.decided), (1, 2, 0, 0));
    assert_eq!(record(&env, ids[0]).await, ["release dave", "finish ann"]);
    assert_eq!(record(&env, ids[1]).await, ["retry ann"]);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (8, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_action_finishes_while_it_cannot_be_recorded() {
    let env = TestEnv::new().await;
    let (service, ids) = three_dead(&env).await;
    void(&env, ids[0]).await;
    let sql = env.sql().await;
    sql.batch_execute("ALTER TABLE dead_actions RENAME TO hidden").await.unwrap();
    let request = ReleaseDeadEntriesRequest { selector: dead_entries::all(), ..Default::default() };
    let failed = service.admin().release_dead_entries(request).await;
    assert!(failed.is_err(), "{failed:?}");
    let report = env.audit().await;
    assert_eq!((report.products[0].stock, report.products[0].in_dead), (7, 3), "untouched");
    sql.batch_execute("ALTER TABLE hidden RENAME TO dead_actions").await.unwrap();
    for id in &ids {
        assert_eq!(release(&service, *id, "ann").await, (1, 0));
    }
    assert_eq!(record(&env, ids[0]).await, ["release dave", "finish ann"]);
    assert_eq!(record(&env, ids[1]).await, ["release ann"]);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_finishes_a_release_that_a_killed_worker_began() {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let bad = api.buy("shoe", "mallory", "r").await.unwrap();
    let id: ReservationId = bad.reservation_id.parse().unwrap();
    let settings = [("deliveries_max", "1")];
    let mut worker = Binary::serve_as("worker", &env, &settings, Some("after_void"));
    let status = worker.ended().await;
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{}", worker.log());
    assert_eq!(env.count("SELECT count(*) FROM reservations WHERE state = 'voided'").await, 1);
    assert_eq!(env.audit().await.products[0].stock, 9, "the unit is still to go back");

    assert_eq!(release(&api, id, "ann").await, (1, 0));
    let done = env.stores().await.ledger.dead_actions(id).await.unwrap();
    let reported: Vec<_> = done.iter().map(|d| (d.action.as_str(), d.actor.as_str())).collect();
    assert_eq!(reported, [("release", "yoink"), ("finish", "ann")]);
    assert!(done[0].reason.contains("poison"), "the worker's reason is the entry's");
    assert_eq!(env.assert_audit_holds().await.products[0].stock, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_workers_and_operators_finish_each_order_once() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 200)).await;
    let users = (0..120).map(|n| format!("user-{n}"));
    let ids = move_to_dead(&env, &service, ("shoe", Some("23514")), users).await;
    let workers = [env.serve(Role::Worker, &[]).await, env.serve(Role::Worker, &[]).await];
    let race = ["ann", "bob"].map(|actor| {
        let (mut admin, mut other) = (service.admin(), service.admin());
        let release = ReleaseDeadEntriesRequest {
            selector: dead_entries::all(),
            actor: actor.to_owned(),
            ..Default::default()
        };
        let retry = RetryDeadEntriesRequest {
            selector: dead_entries::all(),
            actor: actor.to_owned(),
            ..Default::default()
        };
        async move {
            let (released, retried) =
                tokio::join!(admin.release_dead_entries(release), other.retry_dead_entries(retry));
            let (released, retried) =
                (released.unwrap().into_inner(), retried.unwrap().into_inner());
            (released.released + retried.released, retried.stored)
        }
    });
    let reported = futures_util::future::join_all(race).await;
    let report = env.assert_audit_holds().await;
    let [confirmed, stock] = [report.products[0].confirmed, report.products[0].stock];
    assert_eq!(confirmed + stock, 200);
    let stored: i32 = reported.iter().map(|(_, stored)| *stored).sum();
    assert_eq!(i64::from(stored), confirmed, "only operators retry: each order was reported once");
    assert!(i64::from(reported.iter().map(|(back, _)| *back).sum::<i32>()) <= stock - 80);

    // Each order has one decision in the record: stored or voided, and at most one who gave the unit back.
    let stores = env.stores().await;
    for id in &ids {
        let done = stores.ledger.dead_actions(*id).await.unwrap();
        let words: Vec<&str> = done.iter().map(|done| done.action.as_str()).collect();
        let once: BTreeSet<&str> = words.iter().copied().collect();
        assert_eq!(once.len(), words.len(), "{words:?}");
        let state = service.reservation(&id.to_string()).await.unwrap().state().as_str_name();
        let decided = match state {
            "RESERVATION_STATE_CONFIRMED" => "retry",
            "RESERVATION_STATE_VOIDED" => "release",
            other => panic!("{other}"),
        };
        let allowed = if decided == "retry" { "discard" } else { "finish" };
        assert_eq!(words[0], decided);
        assert!(words[1..].iter().all(|word| *word == allowed), "{state} {words:?}");
    }
    eventually("both workers have scanned the dead stream", async || {
        let dead = env.audit().await.products[0].in_dead;
        (dead == 0).then_some(())
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
}
