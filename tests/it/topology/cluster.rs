//! A Redis Cluster of three masters without replicas: what one server does, each of them does for its partitions.

use std::{collections::HashSet, time::Duration};

use futures_util::future::join_all;
use yoink::app::Role;

use crate::harness::{
    Binary, BuyerLoad, Service, TestEnv, eventually, get, product, reason, redis_command,
};

/// Creates a product in each partition.
pub(super) async fn create_products(env: &TestEnv, service: &Service, units: i64) -> Vec<String> {
    let mut products = Vec::new();
    for partition in 0..4 {
        let id = env.product_in(partition).await;
        service.create(product(&id, units)).await;
        products.push(id);
    }
    products
}

/// Waits until a unit can be bought.
pub(super) async fn sells(service: &Service, product: &str, user: &str) {
    eventually("the partition sells", async || service.buy(product, user, "r").await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sale_on_a_cluster_uses_all_masters_and_sells_each_unit_once() {
    let env = TestEnv::with_redis_cluster(false).await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service, 50).await;
    let buyers: Vec<(&str, String)> = products
        .iter()
        .flat_map(|product| (0..150).map(move |n| (product.as_str(), format!("user-{n}"))))
        .collect();
    let buys = join_all(buyers.iter().map(|(product, user)| service.buy(product, user, "r"))).await;
    let mut ids = HashSet::new();
    for ((product, user), answer) in buyers.iter().zip(&buys) {
        let again = service.buy(product, user, "r").await;
        match answer {
            Ok(bought) => {
                let again = again.unwrap();
                assert!(again.duplicate && again.reservation_id == bought.reservation_id);
                assert!(ids.insert(again.reservation_id), "one reservation for each buyer");
            }
            Err(refused) => {
                assert_eq!(reason(refused), "SOLD_OUT");
                assert_eq!(reason(&again.unwrap_err()), "SOLD_OUT");
            }
        }
    }
    assert_eq!(ids.len(), 4 * 50);
    let mut serving = HashSet::new();
    for partition in 0..4 {
        serving.insert(env.redis_cluster().serving(&env.prefix, partition).await.unwrap());
    }
    assert_eq!(serving, HashSet::from([0, 1, 2]), "every master has a partition");
    let report = env.assert_audit_holds().await;
    assert!(report.products.iter().all(|units| (units.confirmed, units.stock) == (50, 0)));
    assert!(report.lost.is_empty(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_orders_on_a_cluster_are_voided_and_their_units_are_for_sale() {
    let env = TestEnv::with_redis_cluster(false).await;
    let service = env.serve(Role::All, &[("deliveries_max", "1")]).await;
    let products = create_products(&env, &service, 20).await;
    let add = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    env.sql().await.batch_execute(add).await.unwrap();
    for product in &products {
        let good = service.buy(product, "ann", "r");
        let (bad, good) = tokio::join!(service.buy(product, "mallory", "r"), good);
        good.unwrap();
        let bad = bad.unwrap().reservation_id;
        eventually("the poison order is voided", async || {
            let found = service.reservation(&bad).await.ok()?;
            (found.state().as_str_name() == "RESERVATION_STATE_VOIDED").then_some(())
        })
        .await;
    }
    let report = env.assert_audit_holds().await;
    assert!(report.products.iter().all(|units| (units.confirmed, units.stock) == (1, 19)));
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_of_one_master_fences_its_partition_until_it_is_rebuilt() {
    let mut env = TestEnv::with_redis_cluster(false).await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service, 100_000).await;
    let names: Vec<&str> = products.iter().map(String::as_str).collect();
    let buyers = BuyerLoad::new("buyer", 8, &names).paced(Duration::from_millis(2));
    let load = buyers.start(vec![service.channel()]);
    load.sells(200).await;
    let killed = env.redis_cluster().serving(&env.prefix, 3).await.unwrap();
    env.redis_cluster_mut().node_mut(killed).kill();
    // The slots of the others stay available.
    sells(&service, &products[0], "while-one-is-down").await;
    let port = env.redis_cluster().node(killed).port();
    let line = format!("127.0.0.1:{port}: Redis does not answer");
    eventually("the process is ready and names the master", async || {
        let ready = get(service.http, "/readyz").await;
        (ready.starts_with("HTTP/1.1 200") && ready.contains(&line)).then_some(())
    })
    .await;
    let status = service.buy(&products[3], "refused", "r").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
    tokio::task::block_in_place(|| env.redis_cluster_mut().node_mut(killed).restart().unwrap());
    sells(&service, &products[3], "after").await;
    let sql = "SELECT epoch FROM partitions WHERE partition = 3";
    assert!(env.count(sql).await > 1, "it was rebuilt");
    load.sells(200).await;
    load.end().await.assert_all_answers_kept(&env, &service).await;
    assert!(env.assert_audit_holds().await.lost.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_master_is_rebuilt_and_its_loss_is_counted() {
    let env = TestEnv::with_redis_cluster(false).await;
    // No worker: the orders are in Redis only.
    let api = env.serve(Role::Api, &[]).await;
    let products = create_products(&env, &api, 10).await;
    for product in &products {
        api.buy(product, "ann", "r").await.unwrap();
    }
    let cluster = env.redis_cluster();
    let emptied = cluster.serving(&env.prefix, 3).await.unwrap();
    let () = redis_command(&cluster.node(emptied).admin_url(), &["FLUSHALL"]).await;
    let worker = env.serve(Role::Worker, &[]).await;
    sells(&api, &products[3], "bob").await;
    let report = env.assert_audit_holds().await;
    let lost: Vec<_> = report.lost.iter().map(|lost| (lost.count, lost.exact)).collect();
    assert_eq!(lost, [(1, true)], "{report:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unsafe_setting_of_one_master_stops_the_sale_and_is_named() {
    let env = TestEnv::with_redis_cluster(false).await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service, 10).await;
    sells(&service, &products[0], "ann").await;
    let node = env.redis_cluster().node(2);
    let set = ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"];
    let () = redis_command(&node.admin_url(), &set).await;
    let why = format!("127.0.0.1:{}: Redis's maxmemory-policy is allkeys-lru", node.port());
    eventually("the reason is shown", async || {
        let ready = get(service.http, "/readyz").await;
        (ready.starts_with("HTTP/1.1 503") && ready.contains(&why)).then_some(())
    })
    .await;
    assert_eq!(service.refusal(&products[0], "bob", "r").await, "RECOVERING");
    let mut refused = Binary::serve(&env, &[], None);
    assert_eq!(refused.ended().await.code(), Some(2));
    assert!(refused.log().contains(&why), "{}", refused.log());
    let set = ["CONFIG", "SET", "maxmemory-policy", "noeviction"];
    let () = redis_command(&node.admin_url(), &set).await;
    sells(&service, &products[0], "cid").await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_one_master_does_not_permit_stops_the_sale_and_is_named() {
    let mut env = TestEnv::with_redis_cluster(false).await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service, 10).await;
    sells(&service, &products[0], "ann").await;
    let stores = env.stores().await;
    let (url, port) = (env.redis_cluster().node(2).admin_url(), env.redis_cluster().node(2).port());
    let permit = async |rule: &str| {
        let () = redis_command(&url, &["ACL", "SETUSER", "yoink", rule]).await;
    };
    for (command, name, user) in
        [("cluster|slots", "CLUSTER SLOTS", "bob"), ("rename", "RENAME", "cid")]
    {
        permit(&format!("-{command}")).await;
        let why = format!(
            "127.0.0.1:{port}: Redis does not permit commands that this program uses ({name})"
        );
        let named = stores.lifecycle.not_permitted().await.unwrap().unwrap().to_string();
        assert!(named.starts_with(&why), "{named}");
        eventually("the reason is shown", async || {
            let ready = get(service.http, "/readyz").await;
            (ready.starts_with("HTTP/1.1 503") && ready.contains(&why)).then_some(())
        })
        .await;
        assert_eq!(service.refusal(&products[0], user, "r").await, "RECOVERING");
        permit(&format!("+{command}")).await;
        sells(&service, &products[0], user).await;
    }
    env.assert_audit_holds().await;
    service.stop().await;
    // A master that is down refuses nothing, and hides no refusal of another one.
    env.redis_cluster_mut().node_mut(0).kill();
    assert_eq!(stores.lifecycle.not_permitted().await.unwrap(), None);
    permit("-rename").await;
    let named = stores.lifecycle.not_permitted().await.unwrap().unwrap().to_string();
    assert!(named.contains("(RENAME)"), "{named}");
}
