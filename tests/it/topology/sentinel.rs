//! A master of Redis that Sentinels watch: its address is theirs to name.

use std::time::Duration;

use tokio::task::block_in_place;
use yoink::app::Role;

use crate::harness::{BuyerLoad, Sentinels, TestEnv, eventually, product};

async fn env_with_sentinels() -> TestEnv {
    TestEnv { sentinels: Some(Sentinels::start().await), ..TestEnv::new().await }
}

#[tokio::test(flavor = "multi_thread")]
async fn failovers_by_sentinels_are_followed_and_every_loss_is_counted() {
    let mut env = env_with_sentinels().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 100_000)).await;
    let buyers = BuyerLoad::new("buyer", 4, &["shoe"]).paced(Duration::from_millis(2));
    let load = buyers.start(vec![service.channel()]);
    load.sells(200).await;
    // A planned one: the former master lives on as a replica.
    let first = env.sentinels().master().await;
    env.sentinels().fail_over().await;
    env.sentinels().failed_over(first).await;
    eventually("it sells on the new master", async || {
        service.buy("shoe", "planned", "r").await.ok()
    })
    .await;
    load.sells(200).await;
    eventually("the former master is a replica that follows", async || {
        let url = env.sentinels().servers[first].admin_url();
        let info: String = crate::harness::redis_command(&url, &["INFO", "replication"]).await;
        info.contains("master_link_status:up").then_some(())
    })
    .await;
    // One that nobody planned.
    let second = env.sentinels().master().await;
    env.sentinels.as_mut().unwrap().servers[second].kill();
    env.sentinels().failed_over(second).await;
    eventually("it sells again", async || service.buy("shoe", "killed", "r").await.ok()).await;
    load.sells(200).await;
    block_in_place(|| env.sentinels.as_mut().unwrap().servers[second].restart().unwrap());
    let account = load.end().await.account(&env, &service).await;
    let report = env.assert_audit_holds().await;
    let counted: u64 = report.lost.iter().map(|lost| lost.count).sum();
    assert!(account.lost.len() as u64 <= counted, "{account:?} {report:?}");
    assert!(report.lost.iter().all(|lost| lost.exact), "{report:?}");
    assert_eq!(account.voided, 0, "{account:?}");
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
