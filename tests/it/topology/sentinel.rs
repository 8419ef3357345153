//! A master of Redis that Sentinels watch: its address is theirs to name.

use std::time::Duration;

use tokio::task::block_in_place;
use yoink::app::Role;

use super::load::assert_every_loss_is_counted;
use crate::harness::{BuyerLoad, Sentinels, TestEnv, eventually, get, product, try_redis_command};

async fn env_with_sentinels() -> TestEnv {
    TestEnv { sentinels: Some(Sentinels::start(None).await), ..TestEnv::new().await }
}

#[tokio::test(flavor = "multi_thread")]
async fn failovers_by_sentinels_are_followed_and_every_loss_is_counted() {
    let mut env = env_with_sentinels().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 100_000)).await;
    let buyers = BuyerLoad::new("buyer", 4, &["shoe"]).paced(Duration::from_millis(2));
    let load = buyers.start(vec![service.channel()]);
    load.sells(200).await;
    // A planned one: the former master continues as a replica.
    let (first, before) = (env.sentinels().master().await, epochs(&env).await);
    env.sentinels().fail_over().await;
    env.sentinels().failed_over(first).await;
    rebuilt(&env, before).await;
    load.sells(200).await;
    eventually("the former master is a replica that follows", async || {
        let url = env.sentinels().servers[first].admin_url();
        let info = try_redis_command::<String>(&url, &["INFO", "replication"]).await.ok()?;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
    // An unplanned one.
    let (second, before) = (env.sentinels().master().await, epochs(&env).await);
    env.sentinels.as_mut().unwrap().servers[second].kill();
    env.sentinels().failed_over(second).await;
    rebuilt(&env, before).await;
    load.sells(200).await;
    block_in_place(|| env.sentinels.as_mut().unwrap().servers[second].restart().unwrap());
    let account = load.end().await.account(&env, &service).await;
    assert_every_loss_is_counted(&account, &env.assert_audit_holds().await);
}

/// The sum of the epochs in which the partitions are open; 0 while one is closed.
async fn epochs(env: &TestEnv) -> i64 {
    let sql = "SELECT CASE WHEN bool_and(status = 'open') THEN sum(epoch) ELSE 0 END::bigint FROM partitions";
    env.count(sql).await
}

/// Waits until both partitions were opened again.
async fn rebuilt(env: &TestEnv, before: i64) {
    eventually("both were rebuilt", async || (epochs(env).await >= before + 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn master_that_was_left_behind_is_not_rebuilt_until_it_has_restarted() {
    let mut env = env_with_sentinels().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    eventually("the order is stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == 1).then_some(())
    })
    .await;
    // As after a rebuild on another Redis, which the Sentinels that this process reaches do not name.
    let later = "UPDATE partitions SET epoch = epoch + 1, opened = epoch + 1";
    env.sql().await.batch_execute(later).await.unwrap();
    eventually("the reason is shown", async || {
        let ready = get(service.http, "/readyz").await;
        ready.contains("this Redis was left behind by a failover").then_some(())
    })
    .await;
    assert_eq!(service.refusal("shoe", "bob", "r").await, "RECOVERING");
    let closed = "SELECT count(*) FROM partitions WHERE status <> 'open'";
    assert_eq!(env.count(closed).await, 0, "no epoch was used");
    let master = env.sentinels().master().await;
    let server = &mut env.sentinels.as_mut().unwrap().servers[master];
    server.kill();
    block_in_place(|| server.restart().unwrap());
    eventually("it is rebuilt", async || service.buy("shoe", "bob", "r").await.ok()).await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_name_of_a_master_and_sentinels_that_are_away_refuse_a_start() {
    let env = env_with_sentinels().await;
    let url = env.sentinels().url();
    let config = env.config(&[("redis_url", &url.replace("/shop?", "/other?"))]);
    let refused = yoink::app::Stores::connect(&config).await.map(drop).unwrap_err();
    let refused = format!("{refused:#}");
    assert!(refused.contains("no Sentinel knows a master with the name other"), "{refused}");
    let config = env.config(&[("redis_url", "redis+sentinel://127.0.0.1:1/shop")]);
    let refused = yoink::app::Stores::connect(&config).await.map(drop).unwrap_err();
    let refused = format!("{refused:#}");
    assert!(refused.contains("none of the Sentinels named the masters"), "{refused}");
    let config =
        env.config(&[("redis_url", &url.replace("sentinel_pass=private", "sentinel_pass=x"))]);
    let refused = yoink::app::Stores::connect(&config).await.map(drop).unwrap_err();
    let refused = format!("{refused:#}");
    assert!(refused.contains("none of the Sentinels named the masters"), "{refused}");
}
