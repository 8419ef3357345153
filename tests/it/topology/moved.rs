//! Slots that move from one master of a Redis Cluster to another one.

use std::{sync::Arc, time::Duration};

use redis::IntoConnectionInfo as _;
use yoink::{
    app::Role,
    domain::PartitionCount,
    redis::{NodeTls, Source, Topology},
    servers::RedisServer,
    telemetry::Metrics,
    tls::Reloaded,
};

use super::cluster::{create_products, sells};
use crate::harness::{BuyerLoad, TestEnv, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_under_load_lose_nothing_and_are_sold_on_their_new_masters() {
    let env = TestEnv::with_redis_cluster(false).await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service, 100_000).await;
    let names: Vec<&str> = products.iter().map(String::as_str).collect();
    let buyers = BuyerLoad::new("buyer", 8, &names).paced(Duration::from_millis(2));
    let load = buyers.start(vec![service.channel()]);
    let cluster = env.redis_cluster();
    let home = cluster.serving(&env.prefix, 3).await.unwrap();
    // Each partition once, and the last one back to where it was.
    for partition in [0, 1, 2, 3, 3] {
        let from = cluster.serving(&env.prefix, partition).await.unwrap();
        let to = if from == home { (from + 1) % 3 } else { home };
        load.sells(100).await;
        cluster.move_partition(&env.prefix, partition, to).await;
        let product = &products[usize::from(partition)];
        sells(&service, product, &format!("moved-{partition}-from-{from}")).await;
        assert_eq!(cluster.serving(&env.prefix, partition).await, Some(to));
    }
    load.sells(200).await;
    load.end().await.assert_all_answers_kept(&env, &service).await;
    let report = env.assert_audit_holds().await;
    assert!(report.lost.is_empty(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn request_for_a_slot_that_has_moved_is_sent_to_its_new_master_at_once() {
    let env = TestEnv::with_redis_cluster(false).await;
    let cluster = env.redis_cluster();
    let node = RedisServer::url_at(cluster.node(0).port()).into_connection_info().unwrap();
    let tls = Arc::new(Reloaded::load(Vec::new(), |_| Ok(NodeTls(None))).unwrap());
    let count = PartitionCount::try_from(4).unwrap();
    let (source, metrics) = (Source::Cluster(vec![node]), Metrics::new().unwrap());
    // Nothing reads the addresses again: only the answer of the former master names the new one.
    let topology = Topology::discover(source, tls, count, metrics).await.unwrap();
    let partition = count.get_partition(3).unwrap();
    let limit = Duration::from_secs(60);
    let mut connection = topology.connect_to(partition, "test", limit).await.unwrap();
    let key = format!("{}:{{3}}:meta", env.prefix);
    let exists = redis::cmd("EXISTS").arg(&key).to_owned();
    assert_eq!(exists.query_async::<u32>(&mut connection).await.unwrap(), 0);
    let home = cluster.serving(&env.prefix, 3).await.unwrap();
    cluster.move_partition(&env.prefix, 3, (home + 1) % 3).await;
    assert_eq!(exists.query_async::<u32>(&mut connection).await.unwrap(), 0);
    let master = topology.master(partition);
    assert_eq!(master, format!("127.0.0.1:{}", cluster.node((home + 1) % 3).port()));
    // A pipeline is not sent again; a request after it reaches the new master. That is not at once, because two nodes may
    // name each other.
    cluster.move_partition(&env.prefix, 3, home).await;
    let mut pipeline = redis::pipe();
    pipeline.exists(&key).exists(&key);
    pipeline.query_async::<(u32, u32)>(&mut connection).await.unwrap_err();
    let found = eventually("the new master is used", async || {
        pipeline.query_async::<(u32, u32)>(&mut connection.clone()).await.ok()
    })
    .await;
    assert_eq!(found, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_whose_slot_is_moving_is_refused_and_nothing_is_applied() {
    let env = TestEnv::with_redis_cluster(false).await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service, 50).await;
    service.buy(&products[3], "ann", "r").await.unwrap();
    let cluster = env.redis_cluster();
    let home = cluster.serving(&env.prefix, 3).await.unwrap();
    let moving = cluster.begin_move(&env.prefix, 3, (home + 1) % 3).await;
    // Some of its keys are there, and some do not exist or were moved: ASK or TRYAGAIN.
    let refused =
        eventually("it is refused", async || service.buy(&products[3], "bob", "r").await.err())
            .await;
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert_eq!(applied(&refused), "no", "{refused:?}");
    // The partitions of the other masters are sold.
    service.buy(&products[0], "bob", "r").await.unwrap();
    cluster.end_move(moving).await;
    sells(&service, &products[3], "bob").await;
    let report = env.assert_audit_holds().await;
    assert!(report.lost.is_empty(), "{report:?}");
    let units = report.products.iter().find(|units| units.product.as_str() == products[3]);
    assert_eq!(units.map(|units| (units.confirmed, units.stock)), Some((2, 48)), "{report:?}");
}

/// Whether a refused call may have taken effect.
fn applied(status: &tonic::Status) -> String {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().unwrap().metadata["applied"].clone()
}
