//! A failover to a replica that had fallen behind: Redis loses orders that it had accepted (R1, R10).

use futures_util::future::join_all;
use yoink::{
    app::Role,
    grpc::pb::AuditRequest,
    servers::{AppendFsync, RedisServer},
};

use crate::harness::{Proxy, Service, TestEnv, eventually, product, redis_command, scratch_dir};

/// How many orders wait in Redis.
async fn orders(server: &RedisServer, env: &TestEnv) -> usize {
    let mut waiting = 0;
    for partition in 0..2 {
        let key = format!("{}:{{{partition}}}:orders", env.prefix);
        waiting += redis_command::<usize>(&server.admin_url(), &["XLEN", &key]).await;
    }
    waiting
}

async fn sell(service: &Service, users: std::ops::Range<u32>) -> Vec<String> {
    let mut ids = Vec::new();
    for n in users {
        let bought = service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
        ids.push(bought.reservation_id);
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_to_a_stale_replica_oversells_nothing_and_counts_the_lost() {
    let mut env = TestEnv::with_own_redis().await;
    let dir = scratch_dir("replica");
    let start = move || RedisServer::start(&dir, AppendFsync::Always).unwrap();
    let replica = tokio::task::spawn_blocking(start).await.unwrap();
    let primary = env.redis.as_ref().unwrap();
    let (front, link) = (Proxy::redis(primary.port()).await, Proxy::redis(primary.port()).await);
    let () =
        redis_command(&replica.admin_url(), &["REPLICAOF", "127.0.0.1", &link.port().to_string()])
            .await;
    let linked =
        async || redis_command::<String>(&replica.admin_url(), &["INFO", "replication"]).await;
    eventually("the replica follows", async || {
        linked().await.contains("master_link_status:up").then_some(())
    })
    .await;

    // No worker: orders are in Redis only.
    let service = env.serve(Role::Api, &[("redis_url", &front.redis_url())]).await;
    service.create(product("shoe", 50)).await;
    let kept = sell(&service, 0..10).await;
    eventually("the replica has them", async || (orders(&replica, &env).await == 10).then_some(()))
        .await;
    link.cut();
    eventually("the link is down", async || {
        linked().await.contains("master_link_status:down").then_some(())
    })
    .await;
    let lost = sell(&service, 10..25).await;
    assert_eq!(orders(primary, &env).await, 25);

    let () = redis_command(&replica.admin_url(), &["REPLICAOF", "NO", "ONE"]).await;
    front.point_at(replica.port());
    eventually("the service is connected to the new primary", async || {
        (service.refusal("shoe", "late", "r").await == "RECOVERING").then_some(())
    })
    .await;
    for n in 0..20 {
        assert_eq!(service.refusal("shoe", &format!("late-{n}"), "r").await, "RECOVERING");
    }
    assert_eq!(orders(&replica, &env).await, 10, "nothing is accepted under the old epoch");

    // The old primary keeps running, and no process uses it.
    let old = env.redis.replace(replica).unwrap();
    let worker = env.serve(Role::Worker, &[("redis_url", &front.redis_url())]).await;
    eventually("it sells again", async || service.buy("shoe", "late", "r").await.ok()).await;
    let reported = service.admin().audit(AuditRequest::default()).await.unwrap().into_inner().lost;
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!((reported[0].count, reported[0].exact, reported[0].epoch), (15, true, 1));
    for (n, id) in kept.iter().enumerate() {
        let again = service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
        assert_eq!((&again.reservation_id, again.duplicate), (id, true));
    }
    let users: Vec<String> = (100..200).map(|n| format!("user-{n}")).collect();
    let buys = join_all(users.iter().map(|user| service.buy("shoe", user, "r"))).await;
    assert_eq!(buys.iter().filter(|answer| answer.is_ok()).count(), 39, "the lost are for sale");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (50, 0));
    for id in &lost {
        let status = service.reservation(id).await.unwrap_err();
        assert_eq!(crate::harness::reason(&status), "LOST_OR_UNKNOWN");
    }
    assert_eq!(orders(&old, &env).await, 25, "the old primary was not changed any more");
    worker.stop().await;
}
