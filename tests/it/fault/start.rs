//! A start waits for a store that is not available yet, and logs what it waits for.

use std::path::Path;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::task::{block_in_place, spawn_blocking};
use tokio_postgres::{NoTls, error::SqlState};
use tokio_util::task::TaskTracker;
use yoink::{app::Stores, servers::PostgresServer};

use crate::harness::{
    Binary, Proxy, TestEnv, eventually, first_sale, run_yoink_with, scratch_dir, shared,
};

/// A role that may do what the owner may, and has no connection: superusers have no limit.
async fn role_without_connections(env: &TestEnv) -> (String, String) {
    let role = format!("service_{}", env.database);
    let create =
        format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 0; GRANT yoink_serve TO {role}");
    env.sql().await.batch_execute(&create).await.unwrap();
    let url = env.postgres_url().replace("//yoink_serve@", &format!("//{role}@"));
    (role, url)
}

/// Starts the service while Postgres accepts no connection. Its limit is far longer than these tests take.
fn serve_waiting(env: &TestEnv, url: &str) -> Binary {
    let waits = ("YOINK_START_LIMIT_MS", "3600000");
    Binary::serve_with("all", env, &[("postgres_url", url)], &[waits])
}

async fn until_it_logs_the_wait(service: &mut Binary) {
    eventually("it logs what it waits for", async || {
        assert!(!service.has_ended(), "it ended: {}", service.log());
        service.log().contains("Postgres refuses connections at the start").then_some(())
    })
    .await;
}

/// Buys one unit of a new product from a service that has just started.
async fn sells(env: &TestEnv, service: &mut Binary) {
    first_sale(env, service).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn start_waits_until_postgres_has_a_free_connection() {
    let env = TestEnv::new().await;
    let (role, url) = role_without_connections(&env).await;
    let mut service = serve_waiting(&env, &url);
    until_it_logs_the_wait(&mut service).await;
    let free = format!("ALTER ROLE {role} CONNECTION LIMIT -1");
    env.sql().await.batch_execute(&free).await.unwrap();
    sells(&env, &mut service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_fails_with_the_reason_if_postgres_has_no_free_connection() {
    let env = TestEnv::new().await;
    let (_, url) = role_without_connections(&env).await;
    let settings = [("postgres_url", url.as_str())];
    let ended = block_in_place(|| run_yoink_with(&env, &settings, &["audit"]));
    let message = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{message}");
    assert!(message.contains("too many connections for role"), "{message}");
}

/// Promotes a standby that accepts no connections.
fn promote(dir: &Path) {
    let data = dir.join("data");
    std::fs::write(data.join("promote"), "").unwrap();
    let file = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
    kill(Pid::from_raw(file.lines().next().unwrap().parse().unwrap()), Signal::SIGUSR1).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn start_waits_until_postgres_has_started() {
    spawn_blocking(shared).await.unwrap();
    let mut env = TestEnv::new().await;
    let dir = scratch_dir("postgres");
    let mut postgres =
        block_in_place(|| PostgresServer::start(&dir, &["fsync=off", "hot_standby=off"]).unwrap());
    block_in_place(|| postgres.create_database(&env.database).unwrap());
    let url = postgres.url(&env.database);
    let owner = postgres.owner_url(&env.database);
    yoink::ledger::migrate(&owner.parse().unwrap()).await.unwrap();
    // It starts as a standby that accepts no connection, until it is promoted.
    block_in_place(|| postgres.stop());
    std::fs::write(dir.join("data/standby.signal"), "").unwrap();
    let starting = spawn_blocking(move || {
        postgres.restart().unwrap();
        postgres
    });
    eventually("Postgres answers that it is starting", async || {
        let refused = tokio_postgres::connect(&url, NoTls).await.err()?;
        (refused.code() == Some(&SqlState::CANNOT_CONNECT_NOW)).then_some(())
    })
    .await;
    let mut service = serve_waiting(&env, &url);
    until_it_logs_the_wait(&mut service).await;
    promote(&dir);
    env.postgres = Some(starting.await.unwrap());
    sells(&env, &mut service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_waits_while_redis_refuses_a_reader_connection() {
    let env = TestEnv::new().await;
    let proxy = Proxy::redis(shared().redis.port()).await;
    let config = env.config(&[("redis_url", &proxy.redis_url())]);
    let stores = Stores::connect(&config).await.unwrap();
    let partition = stores.deployment.partitions.all().next().unwrap();
    proxy.cut();
    let connecting =
        TaskTracker::new().spawn(async move { stores.reader(partition).await.map(drop) });
    eventually("it tries again", async || (proxy.turned_away() >= 2).then_some(())).await;
    proxy.pass();
    connecting.await.unwrap().unwrap();
}
