//! Connections to Redis that stay open and cannot be used: to the former primary, or to a silent peer.

use std::{collections::BTreeSet, time::Duration};

use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    grpc::pb::Ack,
    servers::{AppendFsync, RedisServer},
};

use crate::harness::{
    BuyerLoad, Proxy, RunningLoad, Service, TestEnv, eventually, get, product, reason,
    redis_command, scratch_dir,
};

/// From the moment when a new connection would do, until the service works again: the promise.
const LIMIT: Duration = Duration::from_secs(10);

async fn replication(server: &RedisServer) -> String {
    redis_command(&server.admin_url(), &["INFO", "replication"]).await
}

/// Makes it a replica of the other, and waits until it has caught up.
async fn follow(replica: &RedisServer, primary: &RedisServer) {
    let () = redis_command(
        &replica.admin_url(),
        &["REPLICAOF", "127.0.0.1", &primary.port().to_string()],
    )
    .await;
    eventually("the replica follows", async || {
        replication(replica).await.contains("master_link_status:up").then_some(())
    })
    .await;
}

/// A replica of the environment's Redis.
async fn replica(env: &TestEnv) -> RedisServer {
    let dir = scratch_dir("replica");
    let start = move || RedisServer::start(&dir, AppendFsync::Everysec).unwrap();
    let replica = tokio::task::spawn_blocking(start).await.unwrap();
    follow(&replica, env.redis.as_ref().unwrap()).await;
    replica
}

/// A planned failover: the replica is the primary, has everything, and the other follows it. No connection is closed.
async fn fail_over(primary: &RedisServer, replica: &RedisServer) {
    let () = redis_command(&primary.admin_url(), &["FAILOVER"]).await;
    eventually("they have changed their roles", async || {
        let (old, new) = (replication(primary).await, replication(replica).await);
        let linked = old.contains("role:slave") && old.contains("master_link_status:up");
        (linked && new.contains("role:master")).then_some(())
    })
    .await;
}

/// A counter of the service with these labels; 0 where it was never counted.
async fn counter(service: &Service, name: &str, labels: &[&str]) -> usize {
    let metrics = get(service.http, "/metrics").await;
    let counted = metrics.lines().find_map(|line| {
        let ours = line.starts_with(name) && labels.iter().all(|label| line.contains(label));
        ours.then(|| line.rsplit_once(' ')?.1.parse().ok())?
    });
    counted.unwrap_or(0)
}

/// How many connections were replaced for this reason.
async fn dropped(service: &Service, reason: &str) -> usize {
    let label = format!("reason=\"{reason}\"");
    counter(service, "yoink_redis_connections_dropped_total{", &[&label]).await
}

async fn epochs(env: &TestEnv) -> BTreeSet<i64> {
    let rows = env.sql().await.query("SELECT epoch FROM partitions", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

async fn in_time<T>(what: &str, done: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, done).await.unwrap_or_else(|_| panic!("not in ten seconds: {what}"))
}

/// Waits until buyers get units again, and their orders are stored again.
async fn works_again(env: &TestEnv, answers: &RunningLoad) {
    let stored = async || env.count("SELECT count(*) FROM reservations").await;
    let before = stored().await;
    in_time("it sells, and stores what it sells", async {
        answers.sells(50).await;
        eventually("orders are stored", async || (stored().await > before + 50).then_some(()))
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_failover_with_open_old_connections_stops_sales_only_briefly() {
    let mut env = TestEnv::with_own_redis().await;
    let replica = replica(&env).await;
    let primary = env.redis.as_ref().unwrap();
    let front = Proxy::redis(primary.port()).await;
    let service = env.serve(Role::All, &[("redis_url", &front.redis_url())]).await;
    service.create(product("shoe", 1_000_000)).await;
    let asked = ("shoe", "ann", "before");
    eventually("replicas are counted", async || service.buy_with(asked, Ack::Replica).await.ok())
        .await;
    let answers = BuyerLoad::new("buyer", 8, &["shoe"]).start(vec![service.channel()]);
    answers.sells(100).await;
    let broken = front.broken();

    fail_over(primary, &replica).await;
    front.lead_new_to(replica.port());
    works_again(&env, &answers).await;
    in_time("the replica is waited for", async {
        let asked = ("shoe", "ann", "after");
        eventually("it is answered", async || service.buy_with(asked, Ack::Replica).await.ok())
            .await
    })
    .await;
    assert_eq!(front.broken(), broken, "no connection was cut for it");
    assert!(dropped(&service, "replica").await > 0);
    assert!(epochs(&env).await.iter().all(|epoch| *epoch <= 3), "{:?}", epochs(&env).await);
    let old = env.redis.replace(replica).unwrap();
    let account = answers.end().await.assert_all_answers_kept(&env, &service).await;
    assert!(account.confirmed >= 150);
    assert_eq!(env.count("SELECT count(*) FROM reservations WHERE state = 'voided'").await, 0);
    service.stop().await;
    drop(old);
}

/// How many orders wait in Redis.
async fn orders(server: &RedisServer, env: &TestEnv) -> usize {
    let mut waiting = 0;
    for partition in 0..2 {
        let key = format!("{}:{{{partition}}}:orders", env.prefix);
        waiting += redis_command::<usize>(&server.admin_url(), &["XLEN", &key]).await;
    }
    waiting
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_is_never_sold_from_and_uses_no_epoch_even_if_writable() {
    let mut env = TestEnv::with_own_redis().await;
    let replica = replica(&env).await;
    let primary = env.redis.as_ref().unwrap();
    let front = Proxy::redis(primary.port()).await;
    let service = env.serve(Role::Api, &[("redis_url", &front.redis_url())]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "early", "r").await.unwrap();
    let worker = env.serve(Role::Worker, &[("redis_url", &front.redis_url())]).await;
    env.assert_audit_holds().await;

    let () =
        redis_command(&primary.admin_url(), &["CONFIG", "SET", "replica-read-only", "no"]).await;
    fail_over(primary, &replica).await;
    // The address is still that of the former primary: no new connection can be used either.
    eventually("connections are tried repeatedly", async || {
        assert_eq!(service.refusal("shoe", "late", "r").await, "RECOVERING");
        let tries = (dropped(&service, "replica").await, dropped(&worker, "replica").await);
        (tries.0 >= 5 && tries.1 >= 5).then_some(())
    })
    .await;
    // The state that an interrupted rebuild leaves.
    let closed = "UPDATE partitions SET status = 'closed' WHERE partition = 0";
    env.sql().await.batch_execute(closed).await.unwrap();
    eventually("a rebuild is tried twice", async || {
        let refused = ["script=\"read_meta\"", "error=\"fenced\""];
        (counter(&worker, "yoink_redis_errors_total{", &refused).await >= 2).then_some(())
    })
    .await;
    assert_eq!(epochs(&env).await, BTreeSet::from([1]), "none was used");
    assert_eq!(orders(primary, &env).await, 0, "nothing was written");

    front.lead_new_to(replica.port());
    in_time("it sells", async {
        eventually("it sells", async || service.buy("shoe", "late", "r").await.ok()).await
    })
    .await;
    let old = env.redis.replace(replica).unwrap();
    let report = env.assert_audit_holds().await;
    assert!(epochs(&env).await.iter().all(|epoch| (2..=3).contains(epoch)));
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8));
    worker.stop().await;
    service.stop().await;
    drop(old);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_old_connections_are_replaced_and_sales_continue() {
    let env = TestEnv::with_own_redis().await;
    let front = Proxy::redis(env.redis.as_ref().unwrap().port()).await;
    let service = env.serve(Role::All, &[("redis_url", &front.redis_url())]).await;
    service.create(product("shoe", 1_000_000)).await;
    let answers = BuyerLoad::new("buyer", 8, &["shoe"]).start(vec![service.channel()]);
    for _ in 0..2 {
        works_again(&env, &answers).await;
        front.silence_open("");
        works_again(&env, &answers).await;
    }
    assert!(dropped(&service, "no_answer").await >= 2);
    assert_eq!(epochs(&env).await, BTreeSet::from([1]));
    let account = answers.end().await.assert_all_answers_kept(&env, &service).await;
    assert!(account.confirmed >= 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_connection_is_replaced_when_only_it_is_silent() {
    let env = TestEnv::with_own_redis().await;
    let replica = replica(&env).await;
    let front = Proxy::redis(env.redis.as_ref().unwrap().port()).await;
    let service = env.serve(Role::All, &[("redis_url", &front.redis_url())]).await;
    service.create(product("shoe", 1_000_000)).await;
    let works = async |name: &str| {
        let asked = ("shoe", "ann", name);
        in_time(name, async {
            let bought = eventually("a replica has it", async || {
                service.buy_with(asked, Ack::Replica).await.ok()
            });
            let id = bought.await.reservation_id;
            eventually("it is stored", async || {
                let state = service.reservation(&id).await.ok()?.state();
                (state.as_str_name() == "RESERVATION_STATE_CONFIRMED").then_some(())
            })
            .await;
        })
        .await;
    };
    works("before").await;
    for (n, (kind, command)) in
        [("commands", "EVALSHA"), ("readers", "XREADGROUP"), ("waits", "WAIT")]
            .into_iter()
            .enumerate()
    {
        let (made, silent) = (front.made(), dropped(&service, "no_answer").await);
        front.silence_open(command);
        works(kind).await;
        eventually("the connection was replaced", async || {
            (dropped(&service, "no_answer").await > silent && front.made() > made).then_some(())
        })
        .await;
        let report = env.assert_audit_holds().await;
        assert_eq!(usize::try_from(report.products[0].confirmed).unwrap(), n + 2);
    }
    assert_eq!(epochs(&env).await, BTreeSet::from([1]));
    service.stop().await;
    drop(replica);
}

/// Idle connections to this port, and for how many of them the kernel sends keepalive probes.
fn kept_alive(port: u16) -> (usize, usize) {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let to = format!("0100007F:{port:04X}");
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours: Vec<bool> = lines
        // Established, with nothing on its way.
        .filter(|words| words[2] == to && words[3] == "01" && words[4] == "00000000:00000000")
        .map(|words| words[5].starts_with("02:"))
        .collect();
    (ours.len(), ours.iter().filter(|keepalive| **keepalive).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_keepalive_is_on_for_every_redis_connection() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    let port = env.redis.as_ref().unwrap().port();
    // Commands, waits for replicas, two readers.
    eventually("all are kept alive", async || {
        let (open, watched) = kept_alive(port);
        (open == watched && watched >= 4).then_some(())
    })
    .await;
    env.assert_audit_holds().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn call_without_a_connection_is_answered_not_applied() {
    let env = TestEnv::with_own_redis().await;
    let front = Proxy::redis(env.redis.as_ref().unwrap().port()).await;
    let service = env.serve(Role::All, &[("redis_url", &front.redis_url())]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    let no_effect = async |request: &str| {
        eventually("there is no connection", async || {
            let status = service.buy("shoe", "bob", request).await.unwrap_err();
            assert_eq!(reason(&status), "REDIS_UNAVAILABLE");
            let applied = status.get_details_error_info().unwrap().metadata["applied"].clone();
            (applied == "no").then_some(())
        })
        .await;
    };
    for (request, silent) in [("closed", false), ("silent", true)] {
        if silent {
            front.freeze();
        } else {
            front.cut();
        }
        no_effect(request).await;
        front.pass();
        in_time("it sells", async {
            eventually("it sells", async || service.buy("shoe", "bob", request).await.ok()).await
        })
        .await;
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (3, 7));
    service.stop().await;
}
