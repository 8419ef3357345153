//! Processes are replaced one by one under load, as an update does it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use yoink::app::Role;

use crate::harness::{Binary, BuyerLoad, TestEnv, eventually, get, product};

/// Health as a load balancer asks for it, on a connection that exists; `None` if the connection has ended.
async fn health(channel: &Channel) -> Option<&'static str> {
    let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    Some(answer.ok()?.into_inner().status().as_str_name())
}

async fn not_serving(channel: &Channel) {
    eventually("health reports the shutdown", async || {
        (health(channel).await == Some("NOT_SERVING")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn process_that_shuts_down_is_not_ready_before_it_refuses_connections() {
    let env = TestEnv::new().await;
    let keeper = env.serve(Role::Worker, &[]).await;
    // It would accept connections for ten minutes: the second signal ends it.
    let mut api = Binary::serve_as("api", &env, &[("shutdown_delay_ms", "600000")], None);
    let channel = api.channel().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    assert_eq!(health(&channel).await, Some("SERVING"));
    api.signal(Signal::SIGTERM);
    not_serving(&channel).await;
    let readyz = get(api.http_address().unwrap(), "/readyz").await;
    assert!(readyz.starts_with("HTTP/1.1 503") && readyz.contains("shuts down"), "{readyz}");
    // A load balancer that has not noticed yet still opens connections.
    let load = BuyerLoad::new("late", 1, &["shoe"]).start(vec![api.channel().await]);
    load.sells(1).await;
    load.end().await;
    assert!(!api.has_ended());
    api.signal(Signal::SIGTERM);
    assert_eq!(api.ended().await.code(), Some(130));
    env.assert_audit_holds().await;
    keeper.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_closed_after_the_delay_and_workers_end_without_it() {
    let env = TestEnv::new().await;
    let mut api = Binary::serve_as("api", &env, &[("shutdown_delay_ms", "300")], None);
    let mut worker = Binary::serve_as("worker", &env, &[("shutdown_delay_ms", "600000")], None);
    for process in [&mut api, &mut worker] {
        let channel = process.channel().await;
        process.signal(Signal::SIGTERM);
        let status = process.ended().await;
        assert!(status.success(), "{status}: {}", process.log());
        assert_eq!(health(&channel).await, None, "its connections are closed");
    }
}

/// The programs that replace one another: this one by itself or, with `UPGRADE_PROGRAM` (`make upgrade-check`), the other
/// version by this one, and this one by the other again.
fn programs() -> Vec<PathBuf> {
    let this = PathBuf::from(env!("CARGO_BIN_EXE_yoink"));
    match std::env::var_os("UPGRADE_PROGRAM").map(PathBuf::from) {
        Some(other) => vec![other.clone(), this, other],
        None => vec![this.clone(), this],
    }
}

/// Those of the settings that a program has.
fn known_settings(program: &Path) -> Vec<(&'static str, &'static str)> {
    let has = |(name, value): &(&str, &str)| {
        let mut check = Command::new(program);
        check.args(["--set", &format!("{name}={value}"), "config", "check"]);
        check.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    };
    [("shutdown_delay_ms", "500"), ("takeover_idle_ms", "500")].into_iter().filter(has).collect()
}

/// A process, and a connection to it.
type Running = (Binary, Channel);

async fn start(env: &TestEnv, program: &Path, role: &str) -> Running {
    let mut process = Binary::serve_program(program, role, env, &known_settings(program));
    let channel = process.channel().await;
    (process, channel)
}

fn channels(apis: &[Running]) -> Vec<Channel> {
    apis.iter().map(|(_, channel)| channel.clone()).collect()
}

async fn end((mut process, _): Running) {
    let status = process.ended().await;
    assert!(status.success(), "{status}: {}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_every_process_under_load_loses_nothing() {
    let env = TestEnv { partitions: 8, ..TestEnv::new().await };
    let keeper = env.serve(Role::Api, &[]).await;
    let products: Vec<String> = (0..16).map(|n| format!("item-{n}")).collect();
    for name in &products {
        keeper.create(product(name, 1_000_000)).await;
    }
    let products: Vec<&str> = products.iter().map(String::as_str).collect();
    let programs = programs();
    let (mut apis, mut workers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        apis.push(start(&env, &programs[0], "api").await);
        workers.push(start(&env, &programs[0], "worker").await);
    }
    let buyers = BuyerLoad::new("buyer", 8, &products).paced(Duration::from_millis(2));
    let load = buyers.start(channels(&apis));
    load.sells(200).await;
    for program in programs[1..].iter().flat_map(|program| [program; 2]) {
        workers.push(start(&env, program, "worker").await);
        let old = workers.remove(0);
        old.0.signal(Signal::SIGTERM);
        end(old).await;
        load.sells(100).await;

        apis.push(start(&env, program, "api").await);
        let old = apis.remove(0);
        old.0.signal(Signal::SIGTERM);
        // A load balancer learns it from health, and sends new calls to the others.
        eventually("health reports the shutdown", async || {
            (health(&old.1).await != Some("SERVING")).then_some(())
        })
        .await;
        load.go_to(channels(&apis));
        end(old).await;
        load.sells(100).await;
    }
    // What is sold last is stored, too.
    keeper.buy(products[0], "last", "r").await.unwrap();
    let gap = load.longest_gap();
    let account = load.end().await.assert_all_answers_kept(&env, &keeper).await;
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);
    let sold = account.confirmed;
    // Not captured with the output of the test.
    writeln!(
        std::io::stderr(),
        "{sold} sold; longest time of a buyer without an acceptance: {gap:?}"
    )
    .unwrap();
}
