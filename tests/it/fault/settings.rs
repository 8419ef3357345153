//! Settings of the stores: unsafe ones are refused, less durable ones are logged.

use yoink::app::Role;

use crate::harness::{Binary, TestEnv, eventually, get, product, reason};

async fn configure(env: &TestEnv, name: &str, value: &str) {
    let mut command = redis::cmd("CONFIG");
    let () =
        command.arg("SET").arg(name).arg(value).query_async(&mut env.cli().await).await.unwrap();
}

fn durability(scrape: &str, store: &str) -> Vec<String> {
    let ours = |line: &&str| {
        line.starts_with("yoink_durability{")
            && line.contains(&format!("store=\"{store}\""))
            && line.ends_with(" 1")
    };
    let modes = scrape.lines().filter(ours);
    modes
        .map(|line| line.split("mode=\"").nth(1).unwrap().split('"').next().unwrap().to_owned())
        .collect()
}

/// How a start ends that is refused.
async fn refused(env: &TestEnv) -> String {
    let mut service = Binary::serve(env, &[], None);
    let status = service.ended().await;
    assert_eq!(status.code(), Some(2));
    service.log()
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_may_evict_is_refused_at_start_and_later() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    configure(&env, "maxmemory-policy", "allkeys-lru").await;
    let status =
        eventually("sales are refused", async || service.buy("shoe", "ann", "r").await.err()).await;
    assert_eq!(reason(&status), "RECOVERING");
    let ready = get(service.http, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("allkeys-lru"), "{ready}");
    assert!(refused(&env).await.contains("maxmemory-policy is allkeys-lru"));
    configure(&env, "maxmemory-policy", "noeviction").await;
    eventually("it sells again", async || service.buy("shoe", "bob", "").await.ok()).await;
    eventually("it is ready again", async || {
        get(service.http, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reported_durability_follows_the_settings_of_redis() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    let until_durability_is = async |mode: &str| {
        eventually(mode, async || {
            let scrape = get(service.http, "/metrics").await;
            (durability(&scrape, "redis") == [mode]).then_some(())
        })
        .await;
    };
    until_durability_is("always").await;
    configure(&env, "appendfsync", "everysec").await;
    until_durability_is("everysec").await;
    configure(&env, "no-appendfsync-on-rewrite", "yes").await;
    until_durability_is("memory").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_postgres_is_refused_and_asynchronous_commit_is_logged() {
    let env = TestEnv::new().await;
    let set = async |what: &str| {
        let sql = format!("ALTER DATABASE {} SET {what}", env.database);
        env.sql().await.batch_execute(&sql).await.unwrap();
    };
    set("default_transaction_read_only TO on").await;
    assert!(refused(&env).await.contains("read-only"));
    let sql = env.sql().await;
    sql.batch_execute("SET default_transaction_read_only TO off").await.unwrap();
    let reset = format!("ALTER DATABASE {} RESET default_transaction_read_only", env.database);
    sql.batch_execute(&reset).await.unwrap();
    set("synchronous_commit TO off").await;
    let mut service = Binary::serve(&env, &[], None);
    service.channel().await;
    assert!(service.log().contains("synchronous_commit is off"), "{}", service.log());
}
