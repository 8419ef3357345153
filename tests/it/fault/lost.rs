//! An older copy of Redis returns: nothing is oversold, and lost orders are counted (R10).

use std::{path::PathBuf, process::Command};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use yoink::{
    app::Role,
    grpc::pb::{
        AuditRequest, AuditVerdict, LostReservations, ReserveUnitRequest,
        inventory_service_client::InventoryServiceClient,
    },
};

use super::answer_log::AnswerLog;
use crate::harness::{
    Binary, Service, TestEnv, eventually, get, product, reason, run_yoink, scratch_dir,
};

/// A copy of what Redis has on disk, as a backup takes it.
pub(super) fn back_up(env: &TestEnv) -> PathBuf {
    let copy = scratch_dir("backup");
    let data = env.redis.as_ref().unwrap().dir().join("appendonlydir");
    let copied = Command::new("cp").arg("-a").arg(data).arg(&copy).status();
    assert!(copied.unwrap().success());
    copy
}

/// Redis is killed and restarts with an older copy of its data.
pub(super) fn restore(env: &mut TestEnv, copy: PathBuf) {
    let redis = env.redis.as_mut().unwrap();
    redis.kill();
    let data = redis.dir().join("appendonlydir");
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(copy.join("appendonlydir"), &data).unwrap();
    redis.restart().unwrap();
}

async fn sell(service: &Service, users: std::ops::Range<u32>) {
    for n in users {
        service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
    }
}

/// The losses that a gateway reports, once it has read that the partition is open again.
async fn lost(service: &Service) -> Vec<LostReservations> {
    eventually("it sees every partition", async || {
        let report = service.admin().audit(AuditRequest::default()).await.unwrap().into_inner();
        (report.verdict() != AuditVerdict::Unknown).then_some(report.lost)
    })
    .await
}

/// Waits until so many marks of the first epoch are still to be reported: two by each gateway that died.
async fn unreported(env: &TestEnv, marks: i64) {
    eventually("every running gateway has reported its marks", async || {
        let silent = "SELECT count(*) FROM reported_marks WHERE epoch = 1 AND seq < 0";
        (env.count(silent).await == marks).then_some(())
    })
    .await;
}

/// The output of `yoink audit`.
fn audit(env: &TestEnv) -> String {
    let output = block_in_place(|| run_yoink(env, &["audit"]));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn rebuild(env: &TestEnv) -> String {
    let output = block_in_place(|| run_yoink(env, &["rebuild"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_orders_are_counted_exactly_while_every_gateway_runs() {
    let mut env = TestEnv::with_own_redis().await;
    let first = env.serve(Role::Api, &[]).await;
    let second = env.serve(Role::Api, &[]).await;
    first.create(product("shoe", 50)).await;
    sell(&first, 0..10).await;
    let copy = back_up(&env);
    sell(&first, 10..25).await;
    // This gateway is stopped before; it has reported its marks.
    eventually("it knows the product", async || second.buy("shoe", "last", "r").await.ok()).await;
    second.stop().await;
    restore(&mut env, copy);
    let message = rebuild(&env);
    assert!(message.contains("rebuilt and open"), "the older copy is noticed: {message}");
    // The rebuild's own count waits some seconds for the gateways, and this test until they have reported.
    unreported(&env, 0).await;
    assert!(audit(&env).contains("lost exactly 16 of epoch 1"), "{}", audit(&env));
    let answered = lost(&first).await;
    assert_eq!(answered.len(), 1, "{answered:?}");
    assert_eq!((answered[0].count, answered[0].exact, answered[0].epoch), (16, true, 1));
    // The units of the lost are for sale again; the other orders keep theirs.
    let worker = env.serve(Role::Worker, &[]).await;
    eventually("it sells again", async || first.buy("shoe", "user-0", "r").await.ok()).await;
    let users: Vec<String> = (100..200).map(|n| format!("user-{n}")).collect();
    let buys = join_all(users.iter().map(|user| first.buy("shoe", user, "r"))).await;
    assert_eq!(buys.iter().filter(|answer| answer.is_ok()).count(), 40);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (50, 0));
    assert_eq!(report.lost.len(), 1, "it is still reported");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_count_is_a_lower_bound_after_a_gateway_died() {
    let mut env = TestEnv::with_own_redis().await;
    let gateway = env.serve(Role::Api, &[]).await;
    gateway.create(product("shoe", 100)).await;
    let mut killed = Binary::serve_as("api", &env, &[], None);
    let mut buyers = InventoryServiceClient::new(killed.channel().await);
    sell(&gateway, 0..10).await;
    let copy = back_up(&env);
    let mut sell_there = async |users: std::ops::Range<u32>| {
        for n in users {
            let request = ReserveUnitRequest {
                product_id: "shoe".to_owned(),
                user_id: format!("user-{n}"),
                request_id: "r".to_owned(),
                ..Default::default()
            };
            buyers.reserve_unit(request).await.unwrap();
        }
    };
    sell_there(10..15).await;
    sell(&gateway, 15..16).await;
    sell_there(16..19).await;
    killed.signal(Signal::SIGKILL);
    killed.ended().await;
    restore(&mut env, copy);
    rebuild(&env);
    unreported(&env, 2).await;
    assert!(audit(&env).contains("lost at least 6 of epoch 1"), "{}", audit(&env));
    let answered = lost(&gateway).await;
    assert_eq!((answered[0].count, answered[0].exact), (6, false), "the last three are unknown");
    let worker = env.serve(Role::Worker, &[]).await;
    assert_eq!(env.assert_audit_holds().await.products[0].stock, 90);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_redis_copy_under_load_oversells_nothing_and_counts_every_answer() {
    let mut env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[("audit_interval_ms", "200")]).await;
    service.create(product("shoe", 1_000_000)).await;
    sell(&service, 0..50).await;
    let copy = back_up(&env);
    let enough = CancellationToken::new();
    let rewind = async {
        eventually("more than 200 orders are stored", async || {
            (env.count("SELECT count(*) FROM reservations").await > 200).then_some(())
        })
        .await;
        block_in_place(|| restore(&mut env, copy));
        eventually("it sells again", async || service.buy("shoe", "late", "r").await.ok()).await;
        enough.cancel();
    };
    let (answers, ()) = tokio::join!(AnswerLog::on(&service, "shoe", 8, &enough), rewind);
    assert!(answers.accepted.len() > 100, "{}", answers.accepted.len());
    unreported(&env, 0).await;
    let report = env.assert_audit_holds().await;
    let lost = answers.account_for(&env, &report).await;
    assert!(env.count("SELECT max(epoch) FROM partitions").await > 1, "it was noticed");
    eventually("the worker announces it", async || {
        let metrics = get(service.http, "/metrics").await;
        let answered = metrics.lines().find(|line| {
            line.starts_with("yoink_lost_reservations{") && line.contains("\"exact\"")
        });
        // Without a loss there is no line.
        let answered = answered.map_or(Some("0"), |line| Some(line.rsplit_once(' ')?.1))?;
        (answered.parse() == Ok(lost)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_restart_while_postgres_is_down_fences_until_postgres_returns() {
    let mut env = TestEnv::with_own_redis().await;
    let other = TestEnv::with_own_postgres().await;
    (env.postgres, env.database) = (other.postgres, other.database);
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    env.postgres.as_mut().unwrap().stop();
    env.redis.as_mut().unwrap().restart().unwrap();
    eventually("readiness shows every partition", async || {
        let ready = get(service.http, "/readyz").await;
        let fenced = ready.contains("partition 0 is fenced") && ready.contains("partition 1 is");
        (fenced && ready.starts_with("HTTP/1.1 503")).then_some(())
    })
    .await;
    assert_eq!(reason(&service.buy("shoe", "bob", "").await.unwrap_err()), "RECOVERING");
    env.postgres.as_mut().unwrap().restart().unwrap();
    eventually("it sells again", async || service.buy("shoe", "bob", "").await.ok()).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.lost.len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_counted_as_lost_are_not_stored_when_an_older_redis_returns() {
    let mut env = TestEnv::with_own_redis().await;
    let mut limited = product("shoe", 10);
    limited.sale.per_user_limit = Some(1);
    let api = env.serve(Role::Api, &[]).await;
    api.create(limited).await;
    let lost_one = api.buy("shoe", "ann", "r").await.unwrap();
    let copy = back_up(&env);
    let () = redis::cmd("FLUSHALL").query_async(&mut env.cli().await).await.unwrap();
    rebuild(&env);
    unreported(&env, 0).await;
    let answered = lost(&api).await;
    assert_eq!(
        (answered.len(), answered[0].count, answered[0].exact),
        (1, 1, true),
        "{answered:?}"
    );
    // Its buyer gets this answer, and buys again with the same request id.
    let again = eventually("it sells again", async || api.buy("shoe", "ann", "r").await.ok()).await;
    assert!(!again.duplicate);
    let worker = env.serve(Role::Worker, &[("recovery", "manual")]).await;
    env.assert_audit_holds().await;
    restore(&mut env, copy);
    assert!(rebuild(&env).contains("0 orders from its streams were stored and 1 voided"));
    let voided = api.reservation(&lost_one.reservation_id).await.unwrap();
    assert_eq!(voided.state().as_str_name(), "RESERVATION_STATE_VOIDED");
    assert!(voided.void_reason.contains("counted as lost"), "{}", voided.void_reason);
    let third = eventually("it sells again", async || api.buy("shoe", "ann", "r").await.ok()).await;
    assert_eq!((third.duplicate, third.reservation_id), (true, again.reservation_id));
    assert_eq!(api.refusal("shoe", "ann", "another").await, "LIMIT_REACHED");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
    worker.stop().await;
}
