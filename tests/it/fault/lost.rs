//! Redis goes back in time: nothing is oversold, and what was accepted and is gone is counted (R10).

use std::{collections::HashSet, path::PathBuf, process::Command};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::task::block_in_place;
use yoink::{
    app::Role,
    grpc::pb::{
        AuditRequest, AuditVerdict, LostReservations, ReserveUnitRequest,
        inventory_service_client::InventoryServiceClient,
    },
};

use crate::harness::{
    Binary, Service, Yard, eventually, get, product, reason, run_yoink, scratch_dir,
};

/// A copy of what Redis has on disk, as a backup takes it.
pub(super) fn back_up(yard: &Yard) -> PathBuf {
    let copy = scratch_dir("backup");
    let data = yard.redis.as_ref().unwrap().dir().join("appendonlydir");
    let copied = Command::new("cp").arg("-a").arg(data).arg(&copy).status();
    assert!(copied.unwrap().success());
    copy
}

/// Redis ends as in a crash, and comes back with an older copy.
pub(super) fn restore(yard: &mut Yard, copy: PathBuf) {
    let redis = yard.redis.as_mut().unwrap();
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

/// What a gateway tells, once it has seen that the partition is open again.
async fn lost(service: &Service) -> Vec<LostReservations> {
    eventually("it sees every partition", async || {
        let report = service.admin().audit(AuditRequest {}).await.unwrap().into_inner();
        (report.verdict() != AuditVerdict::Unknown).then_some(report.lost)
    })
    .await
}

fn rebuild(yard: &Yard) -> String {
    let output = block_in_place(|| run_yoink(yard, &["rebuild"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_every_gateway_lives_the_lost_are_counted_exactly() {
    let mut yard = Yard::with_own_redis().await;
    let first = yard.serve(Role::Api, &[]).await;
    let second = yard.serve(Role::Api, &[]).await;
    first.create(product("shoe", 50)).await;
    sell(&first, 0..10).await;
    let copy = back_up(&yard);
    sell(&first, 10..25).await;
    // This one is told to end before; what it saw is known all the same.
    eventually("it knows the product", async || second.buy("shoe", "last", "r").await.ok()).await;
    second.stop().await;
    restore(&mut yard, copy);
    assert!(rebuild(&yard).contains("lost exactly 16 of epoch 1"));
    let told = lost(&first).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].count, told[0].exact, told[0].epoch), (16, true, 1));
    // The units of the lost are for sale again; the survivors keep theirs.
    let worker = yard.serve(Role::Worker, &[]).await;
    eventually("it sells again", async || first.buy("shoe", "user-0", "r").await.ok()).await;
    let users: Vec<String> = (100..200).map(|n| format!("user-{n}")).collect();
    let buys = join_all(users.iter().map(|user| first.buy("shoe", user, "r"))).await;
    assert_eq!(buys.iter().filter(|answer| answer.is_ok()).count(), 40);
    let report = yard.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].available), (50, 0));
    assert_eq!(report.lost.len(), 1, "it stays told");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_gateway_saw_makes_the_count_at_least() {
    let mut yard = Yard::with_own_redis().await;
    let lives = yard.serve(Role::Api, &[]).await;
    lives.create(product("shoe", 100)).await;
    let mut dies = Binary::serve_as("api", &yard, &[], None);
    let mut buyers = InventoryServiceClient::new(dies.channel().await);
    sell(&lives, 0..10).await;
    let copy = back_up(&yard);
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
    sell(&lives, 15..16).await;
    sell_there(16..19).await;
    dies.signal(Signal::SIGKILL);
    dies.ended().await;
    restore(&mut yard, copy);
    assert!(rebuild(&yard).contains("lost at least 6 of epoch 1"), "the last three are unknown");
    let told = lost(&lives).await;
    assert_eq!((told[0].count, told[0].exact), (6, false));
    let worker = yard.serve(Role::Worker, &[]).await;
    assert_eq!(yard.assert_audit_holds().await.products[0].available, 90);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_under_load_oversells_nothing_and_every_answer_is_accounted_for() {
    let mut yard = Yard::with_own_redis().await;
    let service = yard.serve(Role::All, &[("audit_interval_ms", "200")]).await;
    service.create(product("shoe", 2_000)).await;
    sell(&service, 0..50).await;
    let copy = back_up(&yard);
    let buyers = join_all((0..8).map(|buyer| {
        let service = &service;
        async move {
            let mut accepted = Vec::new();
            for n in 0.. {
                match service.buy("shoe", &format!("rush-{buyer}-{n}"), "r").await {
                    Ok(bought) => accepted.push(bought.reservation_id),
                    // Redis is gone: nobody goes on until it is back.
                    Err(_) => break,
                }
            }
            accepted
        }
    }));
    let rewind = async {
        eventually("the rush is under way", async || {
            (yard.count("SELECT count(*) FROM reservations").await > 200).then_some(())
        })
        .await;
        block_in_place(|| restore(&mut yard, copy));
    };
    let (answers, ()) = tokio::join!(buyers, rewind);
    eventually("it sells again", async || service.buy("shoe", "late", "r").await.ok()).await;
    let report = eventually("the loss is counted", async || {
        let report = yard.assert_audit_holds().await;
        let reported =
            yard.count("SELECT count(*) FROM reported_marks WHERE epoch = 1 AND seq < 0");
        (reported.await == 0).then_some(report)
    })
    .await;
    let sql = "SELECT reservation_id::text FROM reservations WHERE state = 'confirmed'";
    let rows = yard.sql().await.query(sql, &[]).await.unwrap();
    let stored: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let gone = answers.iter().flatten().filter(|id| !stored.contains(*id)).count();
    let lost: u64 = report.lost.iter().map(|lost| lost.count).sum();
    assert!(report.lost.iter().all(|lost| lost.exact), "{:?}", report.lost);
    // Redis may have accepted a call of each buyer whose answer it could not give any more.
    let gone = u64::try_from(gone).unwrap();
    assert!((gone..=gone + 8).contains(&lost), "{gone} answers are gone, {lost} are told");
    assert!(report.products[0].confirmed <= 2_000);
    eventually("the worker announces it", async || {
        let metrics = get(service.http, "/metrics").await;
        let told = metrics.lines().find(|line| {
            line.starts_with("yoink_lost_reservations{") && line.contains("\"exactly\"")
        })?;
        (told.rsplit_once(' ')?.1.parse() == Ok(lost)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_restarts_while_postgres_is_away_is_seen_to_be_fenced_and_stays_closed() {
    let mut yard = Yard::with_own_redis().await;
    let other = Yard::with_own_postgres().await;
    (yard.postgres, yard.database) = (other.postgres, other.database);
    let service = yard.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    yard.assert_audit_holds().await;
    yard.postgres.as_mut().unwrap().stop();
    yard.redis.as_mut().unwrap().restart().unwrap();
    eventually("readiness tells every partition", async || {
        let ready = get(service.http, "/readyz").await;
        let fenced = ready.contains("partition 0 is fenced") && ready.contains("partition 1 is");
        (fenced && ready.starts_with("HTTP/1.1 503")).then_some(())
    })
    .await;
    assert_eq!(reason(&service.buy("shoe", "bob", "").await.unwrap_err()), "RECOVERING");
    yard.postgres.as_mut().unwrap().restart().unwrap();
    eventually("it sells again", async || service.buy("shoe", "bob", "").await.ok()).await;
    let report = yard.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.lost.len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_for_lost_is_not_stored_when_an_older_redis_comes_back() {
    let mut yard = Yard::with_own_redis().await;
    let mut limited = product("shoe", 10);
    limited.sale.per_user_limit = Some(1);
    let api = yard.serve(Role::Api, &[]).await;
    api.create(limited).await;
    let lost_one = api.buy("shoe", "ann", "r").await.unwrap();
    let copy = back_up(&yard);
    let () = redis::cmd("FLUSHALL").query_async(&mut yard.cli().await).await.unwrap();
    assert!(rebuild(&yard).contains("lost exactly 1 of epoch 1"));
    // Its buyer is told so, and buys again by the same request.
    let again = eventually("it sells again", async || api.buy("shoe", "ann", "r").await.ok()).await;
    assert!(!again.duplicate);
    let worker = yard.serve(Role::Worker, &[("recovery", "manual")]).await;
    yard.assert_audit_holds().await;
    restore(&mut yard, copy);
    assert!(rebuild(&yard).contains("0 orders are stored, 1 are voided"));
    let voided = api.reservation(&lost_one.reservation_id).await.unwrap();
    assert_eq!(voided.state().as_str_name(), "RESERVATION_STATE_VOIDED");
    assert!(voided.void_reason.contains("given up as lost"), "{}", voided.void_reason);
    let third = eventually("it sells again", async || api.buy("shoe", "ann", "r").await.ok()).await;
    assert_eq!((third.duplicate, third.reservation_id), (true, again.reservation_id));
    assert_eq!(api.refusal("shoe", "ann", "another").await, "LIMIT_REACHED");
    let report = yard.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].available), (1, 9));
    worker.stop().await;
}
