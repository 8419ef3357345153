//! An append-only file whose first rewrite is not complete promises nothing; one that is rewritten later keeps its promise.

use std::process::Command;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use yoink::{app::Role, grpc::pb::Ack};

use crate::harness::{Service, TestEnv, eventually, get, product, reason};

async fn configure(env: &TestEnv, name: &str, value: &str) {
    let mut command = redis::cmd("CONFIG");
    let () =
        command.arg("SET").arg(name).arg(value).query_async(&mut env.cli().await).await.unwrap();
}

async fn info(env: &TestEnv, name: &str) -> String {
    let command = redis::cmd("INFO");
    let reported: redis::InfoDict = command.query_async(&mut env.cli().await).await.unwrap();
    reported.get(name).unwrap()
}

/// Ends the rewrite that is in progress, as a crash of Redis's child would.
async fn break_rewrite_off(env: &TestEnv) {
    let redis = info(env, "process_id").await;
    let children = Command::new("pgrep").args(["--parent", &redis]).output().unwrap().stdout;
    let child = String::from_utf8(children).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
}

/// Waits until a service has read Redis's state twice more: the second time it did so from its beginning.
async fn until_levels_are_read_again(service: &Service) {
    let asked = async || {
        let scrape = get(service.http, "/metrics").await;
        let line = scrape.lines().find(|line| {
            line.starts_with("db_client_operation_duration_seconds_count")
                && line.contains("db_operation_name=\"INFO\"")
                && !line.contains("error_type")
        });
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    // Each reading takes two commands.
    let enough = asked().await + 4;
    eventually("the service reads the state again", async || {
        (asked().await >= enough).then_some(())
    })
    .await;
}

async fn cannot_be_given(service: &Service) {
    let status = service.buy_with(("shoe", "refused", "r"), Ack::Disk).await.unwrap_err();
    assert_eq!(reason(&status), "ACK_UNAVAILABLE");
}

async fn rewrites(env: &TestEnv) {
    eventually("a rewrite is in progress", async || {
        (info(env, "aof_rewrite_in_progress").await == "1").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_ack_is_refused_until_the_first_append_only_file_is_complete() {
    let mut env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 1000)).await;
    service.buy_with(("shoe", "ann", "r"), Ack::Disk).await.unwrap();
    configure(&env, "appendonly", "no").await;
    eventually("there is no log", async || {
        let status = service.buy_with(("shoe", "bob", "r"), Ack::Disk).await.err()?;
        (reason(&status) == "ACK_UNAVAILABLE").then_some(())
    })
    .await;
    // A rewrite that never ends by itself: a minute a key.
    configure(&env, "rdb-key-save-delay", "60000000").await;
    configure(&env, "appendonly", "yes").await;
    rewrites(&env).await;
    until_levels_are_read_again(&service).await;
    rewrites(&env).await;
    cannot_be_given(&service).await;

    // A rewrite that was cancelled is begun again, and ends.
    configure(&env, "rdb-key-save-delay", "0").await;
    break_rewrite_off(&env).await;
    eventually("ack = disk is accepted", async || {
        service.buy_with(("shoe", "cid", "r"), Ack::Disk).await.ok()
    })
    .await;
    let mut kept = Vec::new();
    for n in 0..20 {
        let bought = service.buy_with(("shoe", &format!("user-{n}"), "r"), Ack::Disk).await;
        kept.push(bought.unwrap().reservation_id);
    }
    let mut redis = env.redis.take().unwrap();
    redis.kill();
    env.redis = tokio::task::spawn_blocking(move || {
        redis.restart().unwrap();
        Some(redis)
    })
    .await
    .unwrap();
    let worker = env.serve(Role::Worker, &[]).await;
    for (n, id) in kept.iter().enumerate() {
        let again = eventually("it sells again", async || {
            service.buy("shoe", &format!("user-{n}"), "r").await.ok()
        })
        .await;
        assert_eq!((&again.reservation_id, again.duplicate), (id, true));
    }
    env.assert_audit_holds().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aof_rewrite_keeps_disk_ack_and_a_start_waits_for_its_end() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[("ack", "disk")]).await;
    service.create(product("shoe", 1000)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    configure(&env, "rdb-key-save-delay", "60000000").await;
    // The change of a setting has been seen before the rewrite begins.
    until_levels_are_read_again(&service).await;
    let () = redis::cmd("BGREWRITEAOF").query_async(&mut env.cli().await).await.unwrap();
    rewrites(&env).await;
    until_levels_are_read_again(&service).await;
    service.buy("shoe", "bob", "r").await.unwrap();
    assert!(get(service.http, "/readyz").await.starts_with("HTTP/1.1 200"));

    // It cannot know whether this is the first rewrite.
    let late = env.serve(Role::Api, &[("ack", "disk")]).await;
    let ready = get(late.http, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("is complete"), "{ready}");
    cannot_be_given(&late).await;
    late.buy_with(("shoe", "cid", "r"), Ack::Memory).await.unwrap();
    break_rewrite_off(&env).await;
    eventually("ack = disk is accepted", async || late.buy("shoe", "dora", "r").await.ok()).await;
    late.stop().await;
    env.assert_audit_holds().await;
}
