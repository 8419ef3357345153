//! A partition's first opening: by many processes at once, by one that dies before its end, by one that is late.

use std::os::unix::process::ExitStatusExt as _;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::task::block_in_place;
use yoink::{
    app::Role,
    domain::{Epoch, PartitionEpoch},
    grpc::pb::{AuditRequest, AuditVerdict},
    ledger::PartitionStatus,
    lifecycle::Opening,
};

use crate::harness::{Binary, TestEnv, eventually, get, product, run_yoink};

#[tokio::test(flavor = "multi_thread")]
async fn processes_started_at_once_each_sell_every_product_when_ready() {
    for _ in 0..3 {
        let env = TestEnv::new().await;
        let settings = [("partitions", "8")];
        let starts = (0..4).map(|_| async {
            let service = env.serve(Role::All, &settings).await;
            let closed = "SELECT count(*) FROM partitions WHERE status <> 'open'";
            assert_eq!(env.count(closed).await, 0, "it serves before every partition is open");
            service
        });
        let services = join_all(starts).await;
        for (n, service) in services.iter().enumerate() {
            for id in (0..8).map(|item| format!("item-{n}-{item}")) {
                service.create(product(&id, 1)).await;
                service.buy(&id, "ann", "r").await.unwrap();
            }
        }
        eventually("all are stored, and the audit holds", async || {
            let report =
                services[0].admin().audit(AuditRequest::default()).await.unwrap().into_inner();
            let stored = env.count("SELECT count(*) FROM reservations").await;
            (stored == 4 * 8 && report.verdict() == AuditVerdict::Holds).then_some(())
        })
        .await;
        for service in services {
            service.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_left_half_opened_by_a_crash_is_opened_by_the_next_process() {
    for point in ["opening_begun", "opening_opened"] {
        let env = TestEnv::new().await;
        let mut crashing = Binary::serve(&env, &[], Some(point));
        let status = crashing.ended().await;
        assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{point}: {}", crashing.log());
        assert_eq!(env.count("SELECT count(*) FROM partitions WHERE status = 'open'").await, 0);
        let service = env.serve(Role::All, &[]).await;
        service.create(product("shoe", 10)).await;
        service.buy("shoe", "ann", "r").await.unwrap();
        let report = env.assert_audit_holds().await;
        assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
        assert_eq!(env.count("SELECT max(epoch) FROM partitions").await, 2, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_first_opening_does_not_open_a_partition_in_use() {
    let env = TestEnv::with_own_redis().await;
    let stores = env.stores().await;
    let partition = stores.deployment.partitions.of(&"shoe".parse().unwrap());
    let rows = stores.ledger.partitions(stores.deployment.partitions).await.unwrap();
    let seen = rows.into_iter().find(|row| row.partition == partition).unwrap();
    // This process has its epoch, and stalls before it opens Redis.
    let late = stores.ledger.begin_opening(seen).await.unwrap().unwrap();
    let at = PartitionEpoch { partition, epoch: late };
    assert_eq!(stores.ledger.begin_opening(seen).await.unwrap(), None, "an epoch of its own");

    let service = env.serve(Role::All, &[("recovery", "manual")]).await;
    service.create(product("shoe", 2)).await;
    let bought = service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    let opened = stores.lifecycle.open(at, None).await.unwrap();
    assert_eq!(opened, Opening::Superseded, "another attempt has a later epoch");
    let later = PartitionEpoch { partition, epoch: Epoch(late.0 + 9) };
    let opened = stores.lifecycle.open(later, None).await.unwrap();
    assert_eq!(opened, Opening::InUse, "an order was accepted");
    let () = redis::cmd("FLUSHALL").query_async(&mut env.cli().await).await.unwrap();
    let opened = stores.lifecycle.open(at, None).await.unwrap();
    assert_eq!(opened, Opening::Opened, "Redis alone cannot know of the later attempt");
    let opened = stores.ledger.set_open(partition, late, PartitionStatus::New).await.unwrap();
    assert!(!opened, "the ledger does");
    assert_eq!(service.refusal("shoe", "bob", "r").await, "RECOVERING");
    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    let again = eventually("it sells again", async || service.buy("shoe", "ann", "r").await.ok());
    assert_eq!(again.await.reservation_id, bought.reservation_id);
    service.buy("shoe", "bob", "r").await.unwrap();
    assert_eq!(service.refusal("shoe", "cid", "r").await, "SOLD_OUT");
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_epoch_is_used_where_keys_of_another_deployment_exist() {
    let env = TestEnv::new().await;
    let mut redis = env.cli().await;
    let key = |name: &str| format!("{}:{{0}}:{name}", env.prefix);
    let () = redis::cmd("SET").arg(key("stock")).arg("1").query_async(&mut redis).await.unwrap();
    let mut service = Binary::serve(&env, &[], None);
    service.channel().await;
    let http = service.http_address().unwrap();
    let shows = async |name: &str| {
        let reason = format!("Redis holds the key {} of another deployment", key(name));
        eventually("readiness and the log show the key", async || {
            let ready = get(http, "/readyz").await;
            (ready.contains(&reason) && service.log().contains(&reason)).then_some(())
        })
        .await;
    };
    shows("stock").await;
    // Another attempt finds another key.
    let mut rename = redis::cmd("RENAME");
    let () = rename.arg(key("stock")).arg(key("supply")).query_async(&mut redis).await.unwrap();
    shows("supply").await;
    let log = service.log();
    assert_eq!(log.matches("Redis holds the key").count(), 2, "each key is logged once: {log}");
    let epochs = "SELECT epoch FROM partitions WHERE partition = 0 AND status = 'new'";
    assert_eq!(env.count(epochs).await, 0);
    let open = "SELECT count(*) FROM partitions WHERE partition = 1 AND status = 'open'";
    assert_eq!(env.count(open).await, 1, "the other partition sells");
    let () = redis::cmd("DEL").arg(key("supply")).query_async(&mut redis).await.unwrap();
    eventually("it is open, and nothing is reported", async || {
        get(http, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())?;
        (!get(http, "/readyz").await.contains("of another deployment")).then_some(())
    })
    .await;
    let open = "SELECT epoch FROM partitions WHERE partition = 0 AND status = 'open'";
    assert_eq!(env.count(open).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_refusing_writes_keeps_new_partitions_closed_and_is_reported_once() {
    let env = TestEnv::with_own_redis().await;
    let set = async |replicas: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("min-replicas-to-write").arg(replicas);
        let () = set.query_async(&mut env.cli().await).await.unwrap();
    };
    set("1").await;
    let mut service = Binary::serve(&env, &[], None);
    service.channel().await;
    let http = service.http_address().unwrap();
    let refused = async || -> u64 {
        let mut info = redis::cmd("INFO");
        let stats: String =
            info.arg("commandstats").query_async(&mut env.cli().await).await.unwrap();
        let unlink = stats.lines().find(|line| line.starts_with("cmdstat_unlink:"));
        let rejected =
            unlink.and_then(|line| line.split_once("rejected_calls=")?.1.split(',').next());
        rejected.map_or(0, |calls| calls.parse().unwrap())
    };
    eventually("both are tried several times", async || (refused().await >= 6).then_some(())).await;
    let ready = get(http, "/readyz").await;
    for partition in 0..2 {
        let line = format!("partition {partition} is not opened: Redis is unavailable: ");
        let line = ready.lines().find(|found| found.starts_with(&line));
        assert!(line.is_some_and(|line| line.contains("NOREPLICAS")), "{ready}");
    }
    let used = "SELECT max(epoch) FROM partitions";
    assert_eq!(env.count(used).await, 0, "an attempt that cannot succeed uses no epoch");
    let log = service.log();
    assert_eq!(log.matches("the new partition cannot be opened yet").count(), 2, "{log}");
    set("0").await;
    eventually("it is open, and nothing is reported", async || {
        get(http, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())?;
        (!get(http, "/readyz").await.contains("NOREPLICAS")).then_some(())
    })
    .await;
}
