//! A Redis Cluster whose masters have replicas: one of them takes the place of a master that is away.

use std::time::Duration;

use tokio::task::block_in_place;
use yoink::{app::Role, grpc::pb::Ack};

use super::{
    cluster::{create_products, sells},
    load::{Loads, epoch},
};
use crate::harness::{ClusterOptions, Service, TestEnv, eventually, reason};

#[tokio::test(flavor = "multi_thread")]
async fn killed_master_is_replaced_by_its_replica_and_every_loss_is_counted() {
    let mut env = TestEnv::with_redis_cluster(true).await;
    let service = env.serve(Role::All, &[]).await;
    let loads = Loads::start(&env, &service).await;
    loads.sell(100).await;
    let killed = env.redis_cluster().serving(&env.prefix, 3).await.unwrap();
    let before = epoch(&env).await;
    env.redis_cluster_mut().node_mut(killed).kill();
    // The partitions of the other masters are sold meanwhile.
    loads.others.sells(50).await;
    let cluster = env.redis_cluster();
    cluster.is_promoted(cluster.replica_of(killed)).await;
    rebuilt(&env, before).await;
    loads.sell(100).await;
    // The former master follows the new one.
    block_in_place(|| env.redis_cluster_mut().node_mut(killed).restart().unwrap());
    env.redis_cluster().follows(killed).await;
    loads.sell(50).await;
    loads.end_and_count(&env, &service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_master_is_replaced_and_changes_nothing_when_it_continues() {
    let env = TestEnv::with_redis_cluster(true).await;
    let service = env.serve(Role::All, &[]).await;
    let loads = Loads::start(&env, &service).await;
    loads.sell(100).await;
    let cluster = env.redis_cluster();
    let stopped = cluster.serving(&env.prefix, 3).await.unwrap();
    let before = epoch(&env).await;
    cluster.node(stopped).pause();
    // Its connections stay open, and nothing is answered.
    loads.others.sells(50).await;
    cluster.is_promoted(cluster.replica_of(stopped)).await;
    rebuilt(&env, before).await;
    loads.sell(100).await;
    // It finds requests that were sent to it before, executes them as the master that it was, and then follows the new one.
    cluster.node(stopped).resume();
    cluster.follows(stopped).await;
    loads.sell(50).await;
    loads.end_and_count(&env, &service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn master_that_is_cut_off_from_the_others_is_replaced_and_every_loss_is_counted() {
    let options = ClusterOptions { replicas: true, separable: true, ..ClusterOptions::default() };
    let env = TestEnv::with_cluster(options).await;
    let service = env.serve(Role::All, &[]).await;
    let loads = Loads::start(&env, &service).await;
    loads.sell(100).await;
    let cluster = env.redis_cluster();
    let cut_off = cluster.serving(&env.prefix, 3).await.unwrap();
    let before = epoch(&env).await;
    // Clients reach it, so it accepts orders until it finds that it is in the minority.
    cluster.cut_off(cut_off).await;
    loads.others.sells(50).await;
    cluster.is_promoted(cluster.replica_of(cut_off)).await;
    rebuilt(&env, before).await;
    loads.sell(100).await;
    cluster.join(cut_off).await;
    cluster.follows(cut_off).await;
    loads.sell(50).await;
    loads.end_and_count(&env, &service).await;
}

/// Waits until partition 3 was opened again, in a later epoch.
async fn rebuilt(env: &TestEnv, before: i64) {
    eventually("it was rebuilt", async || (epoch(env).await > before).then_some(())).await;
}

/// Buys as these users; returns the reservations.
async fn buy(service: &Service, product: &str, users: std::ops::Range<u32>) -> Vec<String> {
    let mut ids = Vec::new();
    for n in users {
        let bought = service.buy(product, &format!("user-{n}"), "r").await.unwrap();
        ids.push(bought.reservation_id);
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_to_a_stale_replica_in_a_cluster_counts_the_lost_exactly() {
    let mut env = TestEnv::with_redis_cluster(true).await;
    // No worker: the orders are in Redis only.
    let api = env.serve(Role::Api, &[]).await;
    let products = create_products(&env, &api, 50).await;
    let mut kept = Vec::new();
    for product in &products {
        kept.push(buy(&api, product, 0..10).await);
    }
    let cluster = env.redis_cluster();
    let master = cluster.serving(&env.prefix, 3).await.unwrap();
    cluster.is_copied(master).await;
    cluster.stop_replication(master).await;
    let lost = buy(&api, &products[3], 10..25).await;
    env.redis_cluster_mut().node_mut(master).kill();
    let cluster = env.redis_cluster();
    cluster.is_promoted(cluster.replica_of(master)).await;
    eventually("the new master is found, and fenced", async || {
        (api.refusal(&products[3], "late", "r").await == "RECOVERING").then_some(())
    })
    .await;
    buy(&api, &products[0], 10..12).await;

    let worker = env.serve(Role::Worker, &[]).await;
    sells(&api, &products[3], "late").await;
    let report = env.assert_audit_holds().await;
    let counted: Vec<_> = report.lost.iter().map(|lost| (lost.count, lost.exact)).collect();
    assert_eq!(counted, [(15, true)], "{report:?}");
    for (product, ids) in products.iter().zip(&kept) {
        for (n, id) in ids.iter().enumerate() {
            let again = api.buy(product, &format!("user-{n}"), "r").await.unwrap();
            assert_eq!((&again.reservation_id, again.duplicate), (id, true));
        }
    }
    for id in &lost {
        assert_eq!(reason(&api.reservation(id).await.unwrap_err()), "LOST_OR_UNKNOWN");
    }
    // The former master has the lost orders, and follows the new one, which does not.
    block_in_place(|| env.redis_cluster_mut().node_mut(master).restart().unwrap());
    env.redis_cluster().follows(master).await;
    // The units of the lost are for sale, and no more than those.
    buy(&api, &products[3], 100..139).await;
    assert_eq!(api.refusal(&products[3], "too-late", "r").await, "SOLD_OUT");
    let report = env.assert_audit_holds().await;
    for units in &report.products {
        assert_eq!(units.confirmed + units.stock, 50, "{report:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_ack_on_a_cluster_waits_for_the_replica_of_the_partition() {
    let env = TestEnv::with_redis_cluster(true).await;
    let service = env.serve(Role::Api, &[]).await;
    let products = create_products(&env, &service, 100).await;
    let cluster = env.redis_cluster();
    for product in &products {
        eventually("each replica follows", async || {
            service.buy_with((product, "ann", "r"), Ack::Replica).await.ok()
        })
        .await;
    }
    // Its replica is the third node after it.
    let replica = cluster.node(cluster.serving(&env.prefix, 3).await.unwrap() + 3);
    replica.pause();
    eventually("the replica has stopped", async || replica.is_paused().then_some(())).await;
    let request = |user: &str, product: &str| yoink::grpc::pb::ReserveUnitRequest {
        product_id: product.to_owned(),
        user_id: user.to_owned(),
        request_id: "r".to_owned(),
        ack: Ack::Replica.into(),
    };
    let deadline = Duration::from_millis(800);
    let late = service.reserve_within(deadline, request("bob", &products[3])).await.unwrap_err();
    assert_eq!(reason(&late), "DEADLINE_EXCEEDED");
    // The replicas of the other masters have acknowledged meanwhile.
    let others = service.buy_with((&products[0], "bob", "r"), Ack::Replica).await;
    assert!(others.is_ok(), "{others:?}");
    replica.resume();
    let taken = eventually("the replica answers again", async || {
        service.buy_with((&products[3], "bob", "r"), Ack::Replica).await.ok()
    })
    .await;
    assert!(taken.duplicate);
    let worker = env.serve(Role::Worker, &[]).await;
    env.assert_audit_holds().await;
    worker.stop().await;
}
