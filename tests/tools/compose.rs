//! The compose file, read by the parser that Docker Compose is made of, and what it names.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value as Json;

use crate::harness::not_tried;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The file as compose understands it; or what is wrong with it.
fn compose(file: &Path) -> Result<Json, String> {
    let mut command = Command::new(root().join(".tools/bin/compose-config"));
    let output = command.args(["--format", "json"]).arg(file).current_dir(root()).output().unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn compose_file_matches_the_schema_and_a_broken_one_does_not() {
    let whole = compose(&root().join("docker-compose.yml")).unwrap();
    let services: Vec<&String> = whole["services"].as_object().unwrap().keys().collect();
    let all = [
        "admin",
        "certificates",
        "envoy",
        "grafana",
        "import",
        "migrate",
        "passwords",
        "postgres",
        "prometheus",
        "redis",
        "roles",
        "yoink",
    ];
    for name in all {
        assert!(services.iter().any(|service| *service == name), "{name} of {services:?}");
    }
    let bad = crate::harness::scratch_dir("compose").join("bad.yml");
    std::fs::write(&bad, "name: x\nservices: { yoink: { image: x, portz: [] } }\n").unwrap();
    assert!(compose(&bad).unwrap_err().contains("portz"));
}

#[test]
fn network_prefix_is_set_by_one_variable() {
    // The parser's program reads no environment: the variable is put in its place here.
    let file = include_str!("../../docker-compose.yml");
    let other = crate::harness::scratch_dir("prefix").join("docker-compose.yml");
    std::fs::write(&other, file.replace("${SUBNET_PREFIX:-10.213.50}", "10.99.7")).unwrap();
    let whole = compose(&other).unwrap();
    let pool = &whole["networks"]["default"]["ipam"]["config"][0];
    assert_eq!(pool["subnet"], "10.99.7.0/24");
    let address = &whole["services"]["envoy"]["networks"]["default"]["ipv4_address"];
    assert_eq!(address, "10.99.7.10");
    let trusted = &whole["services"]["yoink"]["environment"]["YOINK_TRUSTED_PROXIES"];
    assert_eq!(trusted, address);
    assert!(!whole.to_string().contains("10.213.50"));
}

#[test]
fn hadolint_accepts_the_dockerfile_and_rejects_a_broken_one() {
    let lint = |file: &Path| {
        Command::new(root().join(".tools/venv/bin/hadolint")).arg(file).output().unwrap()
    };
    let output = lint(&root().join("Dockerfile"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let bad = crate::harness::scratch_dir("hadolint").join("Dockerfile");
    std::fs::write(&bad, "FROM debian\nRUN cd /tmp\n").unwrap();
    assert!(!lint(&bad).status.success());
}

#[test]
fn grafana_image_provisions_prometheus_and_the_dashboards() {
    let whole = compose(&root().join("docker-compose.yml")).unwrap();
    let service = |name: &str| whole["services"][name].clone();
    let published = |name: &str| {
        let port = service(name)["ports"][0].clone();
        assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
        port["target"].as_u64().unwrap()
    };
    let source = include_str!("../../deploy/grafana/provisioning/datasources/prometheus.yml");
    assert!(source.contains(&format!("http://prometheus:{}\n", published("prometheus"))));
    assert_eq!(published("grafana"), 3000);
    let provider = include_str!("../../deploy/grafana/provisioning/dashboards/yoink.yml");
    let dockerfile = include_str!("../../Dockerfile");
    let copy =
        dockerfile.lines().find(|line| line.contains(" deploy/grafana/dashboards ")).unwrap();
    let place = copy.rsplit(' ').next().unwrap();
    assert!(provider.contains(&format!("path: {place}\n")), "{place}");
    // A volume would hide what the image has under it.
    for volume in service("grafana")["volumes"].as_array().unwrap() {
        let target = format!("{}/", volume["target"].as_str().unwrap());
        assert!(!format!("{place}/").starts_with(&target), "{target}");
    }
}

/// Run where `/etc/resolv.conf` is the one of the current directory, and the network is empty.
const PRIVATE_NETWORK: [&str; 6] = [
    "--map-root-user",
    "--net",
    "--mount",
    "sh",
    "-c",
    "mount --bind resolv.conf /etc/resolv.conf && exec \"$@\"",
];

/// A new directory with a `resolv.conf` that names this machine.
fn resolver_dir() -> PathBuf {
    let dir = crate::harness::scratch_dir("discovery");
    std::fs::write(dir.join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    dir
}

/// Whether this machine allows a network, and a file in place of `/etc/resolv.conf`, of a test's own.
fn private_network_is_allowed() -> bool {
    let mut probe = Command::new("unshare");
    probe.args(PRIVATE_NETWORK).args(["sh", "true"]).current_dir(resolver_dir());
    probe.stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

/// The addresses that the deployed Prometheus would scrape for one of its names, with these answers of DNS.
fn found(name: &str) -> Vec<String> {
    let dir = resolver_dir();
    let deployed = include_str!("../../deploy/prometheus/prometheus.yml");
    // promtool shows what the first of several names gives.
    let one = deployed.replace("names: [yoink, admin]", &format!("names: [{name}]"));
    assert_ne!(one, deployed);
    std::fs::write(dir.join("prometheus.yml"), one).unwrap();
    let names = "yoink=10.213.50.128,10.213.50.129,10.213.50.130 admin=10.213.50.131";
    let mut command = Command::new("unshare");
    command.args(PRIVATE_NETWORK).args(["sh", "python3"]);
    command.arg(root().join("tests/tools/discovery.py")).arg(names);
    command.args(["promtool", "check", "service-discovery", "prometheus.yml", "yoink"]);
    let output = command.current_dir(&dir).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let targets: Vec<Json> = serde_json::from_slice(&output.stdout).unwrap();
    let address = |target: &Json| target["labels"]["instance"].as_str().unwrap().to_owned();
    targets.iter().map(address).collect()
}

#[test]
fn prometheus_discovers_three_scaled_processes_and_the_operator_process() {
    if !private_network_is_allowed() {
        not_tried(
            "what Prometheus finds (unshare, or a mount over /etc/resolv.conf, is forbidden)",
        );
        return;
    }
    // promtool listens to DNS for half a minute.
    let (operators, mut scaled) = std::thread::scope(|scope| {
        let scaled = scope.spawn(|| found("yoink"));
        (found("admin"), scaled.join().unwrap())
    });
    scaled.sort();
    assert_eq!(scaled, ["10.213.50.128:9464", "10.213.50.129:9464", "10.213.50.130:9464"]);
    assert_eq!(operators, ["10.213.50.131:9464"]);
}
