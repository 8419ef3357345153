//! Rebuilds that cannot succeed use no epoch and stop no other partition.

use redis::AsyncCommands as _;
use tokio::task::block_in_place;
use yoink::{
    app::Role,
    grpc::pb::{ProductStatus, UpdateProductRequest},
};

use crate::harness::{Service, TestEnv, eventually, get, product, run_yoink};

/// The product of a partition, by its number.
async fn product_of(env: &TestEnv, number: u16) -> String {
    let partitions = env.stores().await.deployment.partitions;
    let mut names = (0..).map(|n| format!("item-{n}"));
    names.find(|name| partitions.of(&name.parse().unwrap()).number() == number).unwrap()
}

fn key(env: &TestEnv, partition: u16, name: &str) -> String {
    format!("{}:{{{partition}}}:{name}", env.prefix)
}

async fn close(env: &TestEnv, partition: u16) {
    let _: i64 =
        env.cli().await.hset(key(env, partition, "meta"), "status", "closed").await.unwrap();
}

async fn config_set(env: &TestEnv, name: &str, value: &str) {
    let mut set = redis::cmd("CONFIG");
    let () = set.arg("SET").arg(name).arg(value).query_async(&mut env.cli().await).await.unwrap();
}

async fn epoch(env: &TestEnv, partition: u16) -> i64 {
    env.count(&format!("SELECT epoch FROM partitions WHERE partition = {partition}")).await
}

/// A service with ten units in partition 0, of which one is sold and stored.
async fn selling(env: &TestEnv) -> (Service, String) {
    let service = env.serve(Role::All, &[]).await;
    let id = product_of(env, 0).await;
    service.create(product(&id, 10)).await;
    service.buy(&id, "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    (service, id)
}

async fn until_ready_shows(service: &Service, what: &str) -> String {
    eventually("readiness shows it", async || {
        let ready = get(service.http, "/readyz").await;
        ready.contains(what).then_some(ready)
    })
    .await
}

/// Waits until so many units of a product are confirmed and available; the audit finds nothing wrong, and cannot see
/// partition 0.
async fn assert_settled_but_for_partition_0(env: &TestEnv, product: &str, expected: (i64, i64)) {
    let report = eventually("the orders of the other partition are settled", async || {
        let report = env.audit().await;
        let units = report.products.iter().find(|units| units.product.as_str() == product)?;
        ((units.confirmed, units.stock) == expected).then(|| report.clone())
    })
    .await;
    assert!(report.violations.is_empty(), "{report:?}");
    assert!(report.unknown.iter().all(|unknown| unknown.starts_with("partition 0")), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_with_exhausted_epochs_is_refused_and_the_others_sell() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let (last, other) = (product_of(&env, 0).await, product_of(&env, 1).await);
    for id in [&last, &other] {
        service.create(product(id, 10)).await;
    }
    let sql = env.sql().await;
    sql.batch_execute("UPDATE partitions SET epoch = 1048574 WHERE partition = 0").await.unwrap();
    eventually("it is rebuilt in its last epoch", async || {
        let sql = "SELECT count(*) FROM partitions
                    WHERE partition = 0 AND status = 'open' AND epoch = 1048575";
        (env.count(sql).await == 1).then_some(())
    })
    .await;
    eventually("it sells", async || service.buy(&last, "ann", "r").await.ok()).await;
    eventually("the order is stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == 1).then_some(())
    })
    .await;

    close(&env, 0).await;
    let reported = "the partition has used the last of its 1048575 epochs";
    let ready = until_ready_shows(&service, reported).await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    assert!(ready.contains("move its products to a new deployment"), "{ready}");
    let output = block_in_place(|| run_yoink(&env, &["rebuild"]));
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(printed.contains(reported), "{printed}");
    // The other partition sells, stores, recovers and is rebuilt.
    service.buy(&other, "ann", "r").await.unwrap();
    close(&env, 1).await;
    eventually("the other partition is rebuilt", async || {
        service.buy(&other, "bob", "r").await.ok()
    })
    .await;
    // An invalid row affects only this partition.
    sql.batch_execute("UPDATE partitions SET epoch = 1048576 WHERE partition = 0").await.unwrap();
    service.buy(&other, "cid", "r").await.unwrap();
    assert_settled_but_for_partition_0(&env, &other, (3, 7)).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_partition_with_exhausted_epochs_stays_closed_and_the_others_open() {
    let env = TestEnv::new().await;
    let other = product_of(&env, 1).await;
    let sql = env.sql().await;
    sql.batch_execute("UPDATE partitions SET epoch = 1048575 WHERE partition = 0").await.unwrap();
    let service = env.serve(Role::All, &[]).await;
    service.create(product(&other, 10)).await;
    service.buy(&other, "ann", "r").await.unwrap();
    let reported =
        "partition 0 is not opened: the partition has used the last of its 1048575 epochs";
    until_ready_shows(&service, reported).await;
    assert_eq!(epoch(&env, 0).await, 1_048_575);
    assert_settled_but_for_partition_0(&env, &other, (1, 9)).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_redis_uses_no_epoch_and_is_rebuilt_once_writable() {
    let env = TestEnv::with_own_redis().await;
    let (service, id) = selling(&env).await;
    // Fenced and read-only at once: a transaction, so that no rebuild comes between.
    let mut pipeline = redis::pipe();
    pipeline.atomic().hset(key(&env, 0, "meta"), "status", "closed").ignore();
    pipeline.cmd("CONFIG").arg("SET").arg("min-replicas-to-write").arg("1").ignore();
    let () = pipeline.query_async(&mut env.cli().await).await.unwrap();
    let ready = until_ready_shows(
        &service,
        "partition 0 is fenced: it is closed until it is rebuilt; not rebuilt: Redis refuses writes",
    )
    .await;
    assert!(ready.contains("NOREPLICAS"), "{ready}");
    let output = block_in_place(|| run_yoink(&env, &["rebuild"]));
    assert!(String::from_utf8_lossy(&output.stdout).contains("the rebuild cannot begin"));
    assert_eq!(epoch(&env, 0).await, 1);
    config_set(&env, "min-replicas-to-write", "0").await;
    eventually("it sells again", async || service.buy(&id, "bob", "r").await.ok()).await;
    assert_eq!(epoch(&env, 0).await, 2);
    env.assert_audit_holds().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_of_a_newer_program_uses_no_epoch() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let id = product_of(&env, 0).await;
    service.create(product(&id, 10)).await;
    let mut add = redis::cmd("XADD");
    add.arg(key(&env, 0, "orders")).arg("1-999").arg("v").arg("4");
    let mut pipeline = redis::pipe();
    pipeline.atomic().hset(key(&env, 0, "meta"), "status", "closed").ignore();
    let () = pipeline.add_command(add).ignore().query_async(&mut env.cli().await).await.unwrap();
    until_ready_shows(&service, "the entry has format 4").await;
    assert_eq!(epoch(&env, 0).await, 1);
    let _: i64 = env.cli().await.xdel(key(&env, 0, "orders"), &["1-999"]).await.unwrap();
    eventually("it sells again", async || service.buy(&id, "ann", "r").await.ok()).await;
    assert_eq!(epoch(&env, 0).await, 2);
    env.assert_audit_holds().await;
    service.stop().await;
}

/// Writes four megabytes into a hash, and leaves Redis one megabyte too little.
async fn fill_up(env: &TestEnv, hash: &str) {
    let fields: Vec<(String, String)> =
        (0..2000).map(|n| (format!("u/{n}"), "x".repeat(2000))).collect();
    let mut cli = env.cli().await;
    let () = cli.hset_multiple(hash, &fields).await.unwrap();
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut cli).await.unwrap();
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let full = used.trim().parse::<u64>().unwrap() - 1_000_000;
    config_set(env, "maxmemory", &full.to_string()).await;
    let refused: redis::RedisResult<()> = cli.set("anything", "x").await;
    assert_eq!(refused.unwrap_err().code(), Some("OOM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_full_of_its_own_data_is_rebuilt() {
    let env = TestEnv::with_own_redis().await;
    let (service, id) = selling(&env).await;
    // A rebuild frees far more than it writes.
    fill_up(&env, &key(&env, 0, "bought")).await;
    // Fenced by a command that a full Redis accepts.
    let _: i64 = env.cli().await.hdel(key(&env, 0, "meta"), "status").await.unwrap();
    eventually("it is rebuilt", async || (epoch(&env, 0).await > 1).then_some(())).await;
    eventually("it sells again", async || service.buy(&id, "bob", "r").await.ok()).await;
    env.assert_audit_holds().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_full_of_other_data_is_rebuilt() {
    let env = TestEnv::with_own_redis().await;
    let (service, id) = selling(&env).await;
    // A rebuild frees none of this.
    fill_up(&env, "something else").await;
    let _: i64 = env.cli().await.hdel(key(&env, 0, "meta"), "status").await.unwrap();
    let open =
        "SELECT count(*) FROM partitions WHERE partition = 0 AND status = 'open' AND epoch = 2";
    eventually("the first attempt rebuilds it", async || {
        (env.count(open).await == 1).then_some(())
    })
    .await;
    config_set(&env, "maxmemory", "0").await;
    eventually("it sells again", async || service.buy(&id, "bob", "r").await.ok()).await;
    env.assert_audit_holds().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_partition_of_a_full_redis_is_closed_and_rebuilt() {
    let env = TestEnv::with_own_redis().await;
    let (service, id) = selling(&env).await;
    fill_up(&env, &key(&env, 0, "bought")).await;
    let output = block_in_place(|| run_yoink(&env, &["rebuild", "--partition", "0"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    eventually("it sells again", async || service.buy(&id, "bob", "r").await.ok()).await;
    env.assert_audit_holds().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_reaches_a_full_redis() {
    let env = TestEnv::with_own_redis().await;
    let (service, id) = selling(&env).await;
    fill_up(&env, "something else").await;
    let request = UpdateProductRequest {
        product_id: id.clone(),
        status: ProductStatus::Stopped.into(),
        ..Default::default()
    };
    service.admin().update_product(request).await.unwrap();
    assert_eq!(service.refusal(&id, "bob", "r").await, "SALE_STOPPED");
    config_set(&env, "maxmemory", "0").await;
    assert_eq!(service.refusal(&id, "bob", "r").await, "SALE_STOPPED");
    env.assert_audit_holds().await;
    service.stop().await;
}
