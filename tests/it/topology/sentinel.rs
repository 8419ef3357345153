//! A master of Redis that Sentinels watch: its address is theirs to name.

use std::time::Duration;

use tokio::task::block_in_place;
use yoink::app::Role;

use super::load::assert_every_loss_is_counted;
use crate::harness::{BuyerLoad, Sentinels, TestEnv, eventually, product, try_redis_command};

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
