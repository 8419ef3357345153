//! The load scripts, each run as it is by the real tool against a service of the test's own: its thresholds
//! must hold on a sale that sells out, and then the audit.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value as Json;
use yoink::app::Role;

use crate::{
    envoy::Envoy,
    harness::{Service, TestEnv, product, scratch_dir},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

async fn run(mut command: Command) -> Output {
    command.current_dir(root());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn log(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

async fn service(env: &TestEnv, units: i64) -> Service {
    let service = env.serve(Role::All, &[("reflection", "on")]).await;
    service.create(product("sneaker-42", units)).await;
    service
}

/// Runs a k6 script; returns its summary's metrics.
async fn k6(script: &str, environment: &[(&str, &str)]) -> Json {
    let summary: PathBuf = scratch_dir("k6").join("summary.json");
    let mut command = Command::new(root().join(".tools/venv/bin/k6"));
    command.args(["run", "--quiet", "--no-usage-report", "--summary-export"]).arg(&summary);
    // The speed of this machine is not asserted: outcomes are checked, times are not.
    command.args(["-e", "P95_MS=60000", "-e", "P99_MS=60000", "-e", "DROPPED_MAX=1000000"]);
    for (name, value) in environment {
        command.arg("-e").arg(format!("{name}={value}"));
    }
    let output = run({
        command.arg(script);
        command
    })
    .await;
    assert!(output.status.success(), "a threshold of {script} fails: {}", log(&output));
    let summary: Json = serde_json::from_str(&std::fs::read_to_string(summary).unwrap()).unwrap();
    summary["metrics"].clone()
}

fn counted(metrics: &Json, name: &str) -> i64 {
    metrics[name]["count"].as_i64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn k6_spike_meets_its_thresholds_on_a_sold_out_sale() {
    let env = TestEnv::new().await;
    let service = service(&env, 500).await;
    let target = service.grpc.to_string();
    let rate = [("TARGET", target.as_str()), ("RATE", "300"), ("SECONDS", "3")];
    let metrics = k6("k6/spike.js", &rate).await;
    assert_eq!(counted(&metrics, "outcome_accepted"), 500);
    assert!(counted(&metrics, "outcome_refused") > 0, "{metrics}");
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn k6_soak_meets_its_thresholds() {
    let env = TestEnv::new().await;
    let service = service(&env, 1_000_000).await;
    let target = service.grpc.to_string();
    let environment = [("TARGET", target.as_str()), ("RATE", "100"), ("MINUTES", "0.1")];
    let metrics = k6("k6/soak.js", &environment).await;
    let accepted = counted(&metrics, "outcome_accepted");
    assert!(accepted > 0);
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, accepted);
}

#[tokio::test(flavor = "multi_thread")]
async fn k6_rest_meets_its_thresholds_on_a_sold_out_sale() {
    let env = TestEnv::new().await;
    let service = service(&env, 100).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    let target = format!("http://{}", envoy.address);
    let environment = [("TARGET", target.as_str()), ("RATE", "100"), ("SECONDS", "3")];
    let metrics = k6("k6/rest.js", &environment).await;
    assert_eq!(counted(&metrics, "outcome_accepted"), 100);
    assert!(counted(&metrics, "outcome_refused") > 0, "{metrics}");
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn k6_script_fails_if_its_service_fails() {
    let env = TestEnv::new().await;
    let service = service(&env, 100).await;
    let target = service.grpc.to_string();
    service.stop().await;
    let mut command = Command::new(root().join(".tools/venv/bin/k6"));
    command.args(["run", "--quiet", "--no-usage-report", "-e"]).arg(format!("TARGET={target}"));
    command.args(["-e", "RATE=10", "-e", "SECONDS=1", "k6/spike.js"]);
    let output = run(command).await;
    // 99: it ran to its end, and thresholds were crossed. Anything else would be a fault of the script.
    assert_eq!(output.status.code(), Some(99), "{}", log(&output));
}

/// Runs ghz with a configuration; returns its report.
async fn ghz(config: &str, service: &Service) -> Json {
    let mut command = Command::new(root().join(".tools/bin/ghz"));
    let target = service.grpc.to_string();
    command.args(["--config", config, "--total", "2000", "--format", "json", &target]);
    let output = run(command).await;
    assert!(output.status.success(), "{}", log(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ghz_sells_out_with_closed_and_open_load() {
    for config in ["ghz/closed.json", "ghz/async.json"] {
        let env = TestEnv::new().await;
        let service = service(&env, 150).await;
        let report = ghz(config, &service).await;
        let statuses = &report["statusCodeDistribution"];
        assert_eq!(statuses["OK"], 150, "{config}: {statuses}");
        assert_eq!(statuses["FailedPrecondition"], 1850, "{config}: {statuses}");
        assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 150);
    }
}
