//! Operators inspect, retry and release dead entries.

use redis::AsyncCommands as _;
use yoink::{
    app::Role,
    grpc::pb::{ListDeadEntriesRequest, ReleaseDeadEntriesRequest, RetryDeadEntriesRequest},
};

use crate::harness::{Service, TestEnv, dead_entries, eventually, product};

/// A service that dead-letters at the first failure and leaves the release to operators, with three dead entries.
async fn with_three_dead(env: &TestEnv) -> (Service, Vec<String>) {
    let service =
        env.serve(Role::All, &[("deliveries_max", "1"), ("dead_letter_release", "manual")]).await;
    service.create(product("shoe", 10)).await;
    let add = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id NOT LIKE 'bad%')";
    env.sql().await.batch_execute(add).await.unwrap();
    let mut ids = Vec::new();
    for user in ["bad-1", "good", "bad-2", "bad-3"] {
        let bought = service.buy("shoe", user, "r").await.unwrap();
        if user != "good" {
            ids.push(bought.reservation_id);
        }
    }
    eventually("three are dead", async || (dead(&service, "").await.len() == 3).then_some(()))
        .await;
    (service, ids)
}

async fn dead(service: &Service, id: &str) -> Vec<yoink::grpc::pb::DeadEntry> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let reservation_id = id.to_owned();
        let request = ListDeadEntriesRequest {
            page_size: 2,
            page_token,
            reservation_id,
            ..Default::default()
        };
        let page = service.admin().list_dead_entries(request).await.unwrap().into_inner();
        found.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_order_stays_accepted_and_shows_why_it_is_dead() {
    let env = TestEnv::new().await;
    let (service, ids) = with_three_dead(&env).await;
    let found = dead(&service, &ids[0]).await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].user_id.as_str(), found[0].sqlstate.as_str()), ("bad-1", "23514"));
    assert!(found[0].moved_reason.contains("poison"), "{}", found[0].moved_reason);
    let state = service.reservation(&ids[0]).await.unwrap().state();
    assert_eq!(state.as_str_name(), "RESERVATION_STATE_ACCEPTED");
    let report = env.audit().await;
    assert_eq!(report.verdict(), yoink::audit::Verdict::Holds, "{report:#?}");
    assert_eq!((report.products[0].in_dead, report.products[0].stock), (3, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_releases_give_each_unit_back_once() {
    let env = TestEnv::new().await;
    let (service, ids) = with_three_dead(&env).await;
    let release = |selector| ReleaseDeadEntriesRequest {
        selector,
        actor: "ann".to_owned(),
        reason: "refunded".to_owned(),
        ..Default::default()
    };
    let one = service.admin().release_dead_entries(release(dead_entries::of([&ids[1]]))).await;
    assert_eq!(one.unwrap().into_inner().released, 1);
    let races = futures_util::future::join_all((0..6).map(|_| {
        let mut admin = service.admin();
        let request = release(dead_entries::all());
        async move { admin.release_dead_entries(request).await.unwrap().into_inner().released }
    }));
    assert_eq!(races.await.into_iter().sum::<i32>(), 2, "each unit goes back once");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (9, 1));
    let by_ann = "SELECT count(*) FROM dead_actions
                   WHERE actor = 'ann' AND reason = 'refunded' AND action = 'release'";
    assert_eq!(env.count(by_ann).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_stores_the_storable_entries_and_keeps_the_rest() {
    let env = TestEnv::new().await;
    let (service, ids) = with_three_dead(&env).await;
    let sql = env.sql().await;
    sql.batch_execute(
        "ALTER TABLE reservations DROP CONSTRAINT poison;
         ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'bad-3')",
    )
    .await
    .unwrap();
    let request = RetryDeadEntriesRequest { selector: dead_entries::all(), ..Default::default() };
    let answer = service.admin().retry_dead_entries(request).await.unwrap().into_inner();
    assert_eq!((answer.stored, answer.refused, answer.decided), (2, 1, 0));
    let left = dead(&service, "").await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].dead_key, ids[2]);
    let report = env.audit().await;
    assert_eq!(report.verdict(), yoink::audit::Verdict::Holds, "{report:#?}");
    assert_eq!((report.products[0].confirmed, report.products[0].in_dead), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn unit_of_a_product_without_stock_in_redis_is_not_given_back_until_it_has_stock_again() {
    let env = TestEnv::new().await;
    let (service, ids) = with_three_dead(&env).await;
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let (mut cli, key) = (env.cli().await, format!("{}:{{{partition}}}:stock", env.prefix));
    let stock: i64 = cli.hget(&key, "shoe").await.unwrap();
    let () = cli.hdel(&key, "shoe").await.unwrap();
    let release = async |selector, dry_run| {
        let request = ReleaseDeadEntriesRequest { selector, dry_run, ..Default::default() };
        let answer = service.admin().release_dead_entries(request).await.unwrap().into_inner();
        (answer.released, answer.no_stock, answer.unrecognized)
    };
    assert_eq!(release(dead_entries::of([&ids[0]]), true).await, (0, 1, 0));
    assert_eq!(release(dead_entries::of([&ids[0]]), false).await, (0, 1, 0));
    assert_eq!(dead(&service, "").await.len(), 3, "it stays");
    let () = cli.hset(&key, "shoe", stock).await.unwrap();
    assert_eq!(release(dead_entries::all(), false).await, (3, 0, 0));
    env.assert_audit_holds().await;
}
