//! When an accepted reservation is answered: in memory, on disk, on replicas, in the ledger.

use futures_util::future::join_all;
use tonic::Code;
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    grpc::pb::Ack,
    servers::{AppendFsync, RedisServer},
};

use crate::harness::{
    Binary, Service, TestEnv, eventually, get, product, reason, redis_cli, redis_command,
    scratch_dir,
};

/// Stored by the time of the answer.
async fn stored(env: &TestEnv, id: &str) -> bool {
    let sql = format!("SELECT count(*) FROM reservations WHERE reservation_id = '{id}'");
    env.count(&sql).await == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_ack_is_answered_after_the_commit_even_by_another_process() {
    let env = TestEnv::with_durable_postgres().await;
    let settings = [("ack", "ledger"), ("call_timeout_ms", "600000")];
    let api = env.serve(Role::Api, &settings).await;
    api.create(product("shoe", 500)).await;
    let buys = (0..300).map(|n| {
        let (api, env) = (&api, &env);
        async move {
            let bought = api.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
            // Every tenth order is looked up in the ledger.
            assert!(n % 10 > 0 || stored(env, &bought.reservation_id).await);
        }
    });
    let store = async {
        eventually("all wait", async || {
            (env.audit().await.products[0].in_orders == 300).then_some(())
        })
        .await;
        env.serve(Role::Worker, &[]).await
    };
    let (_, worker) = tokio::join!(join_all(buys), store);
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 300, "at once");
    // One commit answers many calls: no call has a transaction of its own. All that wait are one batch.
    let transactions = get(worker.http, "/metrics").await;
    let count =
        transactions.lines().find(|line| line.starts_with("yoink_orders_stored_batch_size_count"));
    let count: u64 = count.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(count <= 10, "{count} transactions for 300 orders");
    let again = api.buy("shoe", "user-0", "r").await.unwrap();
    assert!(again.duplicate);
    env.assert_audit_holds().await;
    worker.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn call_may_override_ack_and_its_deadline_ends_only_the_wait() {
    let env = TestEnv::with_durable_postgres().await;
    let api = env.serve(Role::Api, &[("call_timeout_ms", "1000")]).await;
    api.create(product("shoe", 10)).await;
    api.buy("shoe", "quick", "r").await.unwrap();
    // No worker stores orders, so the answer cannot be given.
    let asked = ("shoe", "ann", "r");
    let status = api.buy_with(asked, Ack::Ledger).await.unwrap_err();
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "maybe");
    let taken = api.buy_with(asked, Ack::Memory).await.unwrap();
    assert!(taken.duplicate, "the unit was taken");
    let worker = env.serve(Role::Worker, &[]).await;
    let again =
        eventually("it is stored", async || api.buy_with(asked, Ack::Ledger).await.ok()).await;
    assert_eq!(again.reservation_id, taken.reservation_id);
    assert!(stored(&env, &again.reservation_id).await);
    let unknown = yoink::grpc::pb::ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        ack: 17,
        ..Default::default()
    };
    let status = api.buyers().reserve_unit(unknown).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 2);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_ack_answers_void_if_the_order_cannot_be_stored() {
    let env = TestEnv::with_durable_postgres().await;
    let service = env.serve(Role::All, &[("deliveries_max", "1")]).await;
    service.create(product("shoe", 10)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'mallory')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let (bad, good) = tokio::join!(
        service.buy_with(("shoe", "mallory", "r"), Ack::Ledger),
        service.buy_with(("shoe", "ann", "r"), Ack::Ledger)
    );
    let status = bad.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "RESERVATION_VOIDED")
    );
    assert!(stored(&env, &good.unwrap().reservation_id).await);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_ack_reports_an_order_that_redis_lost() {
    let (mut env, other) =
        (TestEnv::with_own_redis().await, TestEnv::with_durable_postgres().await);
    (env.postgres, env.database) = (other.postgres, other.database);
    let api = env.serve(Role::Api, &[("call_timeout_ms", "600000")]).await;
    api.create(product("shoe", 10)).await;
    let waits = api.buy_with(("shoe", "ann", "r"), Ack::Ledger);
    let loses = async {
        eventually("the unit is taken", async || {
            (env.audit().await.products.first()?.in_orders == 1).then_some(())
        })
        .await;
        let taken = api.buy_with(("shoe", "ann", "r"), Ack::Memory).await.unwrap();
        assert!(taken.duplicate, "{taken:?}");
        let () = redis::cmd("FLUSHALL").query_async(&mut env.cli().await).await.unwrap();
        (taken.reservation_id, env.serve(Role::Worker, &[]).await)
    };
    let (answer, (taken_id, worker)) = tokio::join!(waits, loses);
    let status = answer.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "LOST_OR_UNKNOWN"));
    // Without `applied`: Envoy repeats the calls that state `no`, and this one would take another unit.
    let metadata = status.get_details_error_info().unwrap().metadata;
    assert_eq!(metadata["reservation_id"], taken_id);
    assert!(!metadata.contains_key("applied"), "{metadata:?}");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (0, 10));
    assert_eq!(report.lost.iter().map(|lost| lost.count).sum::<u64>(), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_ack_is_refused_if_postgres_commits_are_not_durable() {
    // The tests' own has fsync = off.
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    cannot_be_given(&service, Ack::Ledger).await;
    let mut refused = Binary::serve(&env, &[("ack", "ledger")], None);
    assert_eq!(refused.ended().await.code(), Some(2));
    assert!(refused.log().contains("ack = ledger needs a Postgres"), "{}", refused.log());
    assert_eq!(env.assert_audit_holds().await.products[0].stock, 10);
}

async fn configure(url: &str, name: &str, value: &str) {
    redis_command(url, &["CONFIG", "SET", name, value]).await
}

/// Refused before a unit is taken.
async fn cannot_be_given(service: &Service, ack: Ack) {
    let status = service.buy_with(("shoe", "refused", "r"), ack).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "ACK_UNAVAILABLE"));
    assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "no");
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_ack_is_refused_unless_redis_syncs_before_it_answers() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[("ack", "disk")]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    for (name, lies, keeps) in
        [("appendfsync", "everysec", "always"), ("no-appendfsync-on-rewrite", "yes", "no")]
    {
        configure(&env.redis().admin_url(), name, lies).await;
        eventually("ack = disk is refused", async || {
            let status = service.buy("shoe", "bob", name).await.err()?;
            (reason(&status) == "ACK_UNAVAILABLE").then_some(())
        })
        .await;
        cannot_be_given(&service, Ack::Disk).await;
        let ready = eventually("it is not ready", async || {
            let ready = get(service.http, "/readyz").await;
            ready.starts_with("HTTP/1.1 503").then_some(ready)
        })
        .await;
        assert!(ready.contains("ack = disk needs"), "{ready}");
        // A lower ack level is accepted.
        service.buy_with(("shoe", "bob", "memory"), Ack::Memory).await.unwrap();
        let mut refused = Binary::serve(&env, &[("ack", "disk")], None);
        assert_eq!(refused.ended().await.code(), Some(2));
        assert!(refused.log().contains("ack = disk needs"), "{}", refused.log());
        configure(&env.redis().admin_url(), name, keeps).await;
        eventually("ack = disk is accepted again", async || {
            service.buy("shoe", "cid", name).await.ok()
        })
        .await;
    }
    env.assert_audit_holds().await;
}

/// A replica of the environment's Redis.
async fn replica(env: &TestEnv) -> RedisServer {
    let dir = scratch_dir("replica");
    let start = move || RedisServer::start(&dir, AppendFsync::Everysec).unwrap();
    let replica = tokio::task::spawn_blocking(start).await.unwrap();
    let mut connection = redis_cli(&replica.admin_url()).await;
    let port = env.redis.as_ref().unwrap().port();
    let mut follow = redis::cmd("REPLICAOF");
    let () = follow.arg("127.0.0.1").arg(port).query_async(&mut connection).await.unwrap();
    replica
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_ack_waits_for_the_replica_and_takes_nothing_without_one() {
    let env = TestEnv::with_own_redis().await;
    let replica = replica(&env).await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 1000)).await;
    let bought = eventually("the replica follows", async || {
        service.buy_with(("shoe", "ann", "r"), Ack::Replica).await.ok()
    })
    .await;
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let orders = format!("{}:{{{partition}}}:orders", env.prefix);
    let length = async || {
        let mut there = redis_cli(&replica.admin_url()).await;
        redis::cmd("XLEN").arg(&orders).query_async::<u64>(&mut there).await.unwrap()
    };
    assert_eq!(length().await, 1, "{bought:?}");
    let users: Vec<String> = (0..50).map(|n| format!("user-{n}")).collect();
    let buys = users.iter().map(|user| service.buy_with(("shoe", user, "r"), Ack::Replica));
    assert!(join_all(buys).await.iter().all(Result::is_ok));
    assert_eq!(length().await, 51);
    // A full Redis still reports what its replicas have.
    configure(&env.redis().admin_url(), "maxmemory", "1").await;
    let again = service.buy_with(("shoe", "ann", "r"), Ack::Replica).await.unwrap();
    assert!(again.duplicate);
    configure(&env.redis().admin_url(), "maxmemory", "0").await;
    // One that is connected and does not answer: the unit is taken, the answer waits to its deadline.
    replica.pause();
    let request = yoink::grpc::pb::ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: "bob".to_owned(),
        request_id: "r".to_owned(),
        ack: Ack::Replica.into(),
    };
    let deadline = std::time::Duration::from_millis(800);
    let status = service.reserve_within(deadline, request).await.unwrap_err();
    assert_eq!(reason(&status), "DEADLINE_EXCEEDED");
    service.buy_with(("shoe", "cid", "r"), Ack::Memory).await.unwrap();
    replica.resume();
    let taken = eventually("the replica answers again", async || {
        service.buy_with(("shoe", "bob", "r"), Ack::Replica).await.ok()
    })
    .await;
    assert!(taken.duplicate);
    tokio::task::spawn_blocking(move || drop(replica)).await.unwrap();
    eventually("the service reports the missing replica", async || {
        let status = service.buy_with(("shoe", "refused", "r"), Ack::Replica).await.err()?;
        (reason(&status) == "ACK_UNAVAILABLE").then_some(())
    })
    .await;
    let worker = env.serve(Role::Worker, &[]).await;
    let report = env.assert_audit_holds().await;
    assert!((53..=54).contains(&report.products[0].confirmed), "{report:?}");
    worker.stop().await;
}
