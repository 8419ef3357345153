//! Redis servers that answer and cannot be used to sell: the reason is named, at the start and while the service runs.

use redis::FromRedisValue;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use yoink::{
    app::Role,
    servers::{AppendFsync, RedisServer},
};

use crate::harness::{Binary, Service, TestEnv, eventually, get, product, reason, scratch_dir};

async fn ask<T: FromRedisValue>(env: &TestEnv, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]).query_async(&mut env.cli().await).await.unwrap()
}

/// An environment with its own Redis, started by a line of shell that has the usual command line as `$@`.
async fn env_with_redis(line: &str) -> TestEnv {
    let (mut env, dir, line) = (TestEnv::new().await, scratch_dir("redis"), line.to_owned());
    let start = move || {
        RedisServer::start_under(&dir, AppendFsync::Always, &["sh", "-c", &line, "sh"]).unwrap()
    };
    env.redis = Some(tokio::task::spawn_blocking(start).await.unwrap());
    env
}

/// The message of a start that is refused.
async fn refused(env: &TestEnv) -> String {
    let mut service = Binary::serve(env, &[], None);
    let status = service.ended().await;
    assert_eq!(status.code(), Some(2), "{}", service.log());
    service.log()
}

async fn is_serving(channel: Channel) -> bool {
    let request = HealthCheckRequest { service: "yoink.v1.InventoryService".to_owned() };
    let answer = HealthClient::new(channel).check(request).await.unwrap().into_inner();
    answer.status().as_str_name() == "SERVING"
}

/// Waits until `/readyz` and health show that nothing can be sold, and `/readyz` shows the reason.
async fn assert_unready(service: &Service, why: &str) {
    eventually(why, async || {
        let ready = get(service.http, "/readyz").await;
        (ready.starts_with("HTTP/1.1 503") && ready.contains(why)).then_some(())
    })
    .await;
    eventually("NOT_SERVING", async || (!is_serving(service.channel()).await).then_some(())).await;
}

/// Waits until it sells, and until health and `/readyz` report it.
async fn sells_again(service: &Service, user: &str) {
    eventually("it sells", async || service.buy("shoe", user, "r").await.ok()).await;
    eventually("SERVING", async || is_serving(service.channel()).await.then_some(())).await;
    eventually("ready", async || {
        get(service.http, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_with_hidden_config_that_may_evict_is_refused_at_start_and_later() {
    let env = env_with_redis(r#"exec "$@" --rename-command CONFIG hidden"#).await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    let () = ask(&env, &["hidden", "SET", "maxmemory-policy", "volatile-lru"]).await;
    assert_unready(&service, "maxmemory-policy is volatile-lru").await;
    let status = service.buy("shoe", "ann", "r").await.unwrap_err();
    assert_eq!(reason(&status), "RECOVERING");
    assert!(refused(&env).await.contains("maxmemory-policy is volatile-lru"));
    let () = ask(&env, &["hidden", "SET", "maxmemory-policy", "noeviction"]).await;
    sells_again(&service, "bob").await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_turned_replica_makes_the_service_unready_and_refuses_a_start() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    sells_again(&service, "ann").await;
    // Of a master that does not answer: it keeps what it has, and takes no writes.
    let () = ask(&env, &["REPLICAOF", "127.0.0.1", "1"]).await;
    assert_unready(&service, "set it to the master (127.0.0.1:1)").await;
    assert!(refused(&env).await.contains("set it to the master (127.0.0.1:1)"));
    let () = ask(&env, &["REPLICAOF", "NO", "ONE"]).await;
    sells_again(&service, "bob").await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_is_refused_by_a_sentinel_or_a_cluster_node() {
    let cluster = env_with_redis(r#"exec "$@" --cluster-enabled yes"#).await;
    assert!(refused(&cluster).await.contains("write redis+cluster://host:port"));
    // setpriv, its two arguments, the server, --bind, its argument, --port, its argument.
    let conf = scratch_dir("sentinel").join("sentinel.conf");
    std::fs::write(&conf, "bind 127.0.0.1\nuser yoink on >private ~* &* +@all\n").unwrap();
    let line = format!(r#"exec "$1" "$2" "$3" "$4" {} --sentinel --port "$8""#, conf.display());
    let sentinel = env_with_redis(&line).await;
    assert!(refused(&sentinel).await.contains("is the address of a Sentinel"));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_user_without_our_keys_makes_the_service_unready() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    sells_again(&service, "ann").await;
    let () = ask(&env, &["ACL", "SETUSER", "yoink", "resetkeys", "~other:*"]).await;
    assert_unready(&service, "NOPERM").await;
    service.buy("shoe", "ann", "r").await.unwrap_err();
    let refusal = refused(&env).await;
    assert!(refusal.contains("this program uses (EVALSHA on its keys, "), "{refusal}");
    let () = ask(&env, &["ACL", "SETUSER", "yoink", "allkeys"]).await;
    sells_again(&service, "bob").await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn harmful_redis_settings_are_logged_at_start() {
    let env = TestEnv::with_own_redis().await;
    let mut healthy = Binary::serve(&env, &[], None);
    healthy.channel().await;
    for name in ["lazyfree-lazy-expire", "repl-backlog-ttl"] {
        assert!(!healthy.log().contains(name), "{}", healthy.log());
    }
    let () = ask(&env, &["CONFIG", "SET", "lazyfree-lazy-expire", "no"]).await;
    let () = ask(&env, &["CONFIG", "SET", "repl-backlog-ttl", "3600"]).await;
    let mut warned = Binary::serve(&env, &[], None);
    warned.channel().await;
    for warning in ["lazyfree-lazy-expire is no; set it to yes", "repl-backlog-ttl is 3600"] {
        assert_eq!(warned.log().matches(warning).count(), 1, "{}", warned.log());
    }
    let hidden = env_with_redis(r#"exec "$@" --rename-command CONFIG "" "#).await;
    let mut unknown = Binary::serve(&hidden, &[], None);
    unknown.channel().await;
    for warning in ["report its lazyfree-lazy-expire", "report its repl-backlog-ttl"] {
        assert_eq!(unknown.log().matches(warning).count(), 1, "{}", unknown.log());
    }
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_out_of_memory_makes_the_service_unready() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    sells_again(&service, "ann").await;
    let () = ask(&env, &["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_unready(&service, "out of memory").await;
    let () = ask(&env, &["CONFIG", "SET", "maxmemory", "0"]).await;
    sells_again(&service, "bob").await;
    env.assert_audit_holds().await;
}
