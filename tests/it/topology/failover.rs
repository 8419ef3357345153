//! A Redis Cluster whose masters have replicas.

use std::time::Duration;

use tokio::task::block_in_place;
use yoink::{app::Role, grpc::pb::Ack};

use super::cluster::{create_products, sells};
use crate::harness::{BuyerLoad, TestEnv, eventually, reason};

#[tokio::test(flavor = "multi_thread")]
async fn killed_master_is_replaced_by_its_replica_and_every_loss_is_counted() {
    let mut env = TestEnv::with_redis_cluster(true).await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service, 100_000).await;
    let names: Vec<&str> = products.iter().map(String::as_str).collect();
    let buyers = BuyerLoad::new("buyer", 8, &names).paced(Duration::from_millis(2));
    let load = buyers.start(vec![service.channel()]);
    load.sells(300).await;
    let killed = env.redis_cluster().serving(&env.prefix, 3).await.unwrap();
    env.redis_cluster_mut().node_mut(killed).kill();
    sells(&service, &products[0], "while-one-is-down").await;
    eventually("the replica serves the partition", async || {
        env.redis_cluster().serving(&env.prefix, 3).await.filter(|node| *node != killed)
    })
    .await;
    sells(&service, &products[3], "after").await;
    load.sells(300).await;
    // The former master follows the new one.
    block_in_place(|| env.redis_cluster_mut().node_mut(killed).restart().unwrap());
    load.sells(300).await;
    let account = load.end().await.account(&env, &service).await;
    let report = env.assert_audit_holds().await;
    let counted: u64 = report.lost.iter().map(|lost| lost.count).sum();
    assert!(report.lost.iter().all(|lost| lost.exact), "{report:?}");
    // An order whose answer was lost, too, is counted and no buyer knows of it.
    assert!(account.lost.len() as u64 <= counted, "{account:?} {report:?}");
    assert_eq!(account.voided, 0, "{account:?}");
    assert!(account.confirmed >= 700, "{account:?}");
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
