//! The compose file, read by the parser that Docker Compose is made of, and what it names.

use std::{path::Path, process::Command};

use serde_json::Value as Json;

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
fn the_compose_file_follows_the_schema_and_another_would_not() {
    let whole = compose(&root().join("docker-compose.yml")).unwrap();
    let services: Vec<&String> = whole["services"].as_object().unwrap().keys().collect();
    for name in ["envoy", "grafana", "migrate", "postgres", "prometheus", "redis", "yoink"] {
        assert!(services.iter().any(|service| *service == name), "{name} of {services:?}");
    }
    let bad = crate::harness::scratch_dir("compose").join("bad.yml");
    std::fs::write(&bad, "name: x\nservices: { yoink: { image: x, portz: [] } }\n").unwrap();
    assert!(compose(&bad).unwrap_err().contains("portz"));
}

#[test]
fn what_is_mounted_is_there() {
    let whole = compose(&root().join("docker-compose.yml")).unwrap();
    let mut mounted = 0;
    for (name, service) in whole["services"].as_object().unwrap() {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            if volume["type"] == "bind" {
                let source = volume["source"].as_str().unwrap();
                assert!(Path::new(source).exists(), "{name} mounts {source}");
                mounted += 1;
            }
        }
    }
    assert!(mounted >= 4);
}

#[test]
fn prometheus_and_grafana_are_those_that_are_tested() {
    let whole = compose(&root().join("docker-compose.yml")).unwrap();
    let service = |name: &str| whole["services"][name].clone();
    let output = Command::new("prometheus").arg("--version").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let image = service("prometheus")["image"].as_str().unwrap().to_owned();
    let version = image.strip_prefix("prom/prometheus:v").unwrap().to_owned();
    let major = version.split('.').next().unwrap();
    assert!(said.contains(&format!("version {major}.")), "{image}: {said}");

    let published = |name: &str| {
        let port = service(name)["ports"][0].clone();
        assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
        port["target"].as_u64().unwrap()
    };
    let source = include_str!("../../deploy/grafana/provisioning/datasources/prometheus.yml");
    assert!(source.contains(&format!("http://prometheus:{}\n", published("prometheus"))));
    assert_eq!(published("grafana"), 3000);
    let scrape = include_str!("../../deploy/prometheus/prometheus.yml");
    let listens = service("yoink")["environment"]["YOINK_HTTP_LISTEN"].clone();
    let port = listens.as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    assert!(scrape.contains(&format!("\"yoink:{port}\"")), "{port}");

    let provider = include_str!("../../deploy/grafana/provisioning/dashboards/yoink.yml");
    let grafana = service("grafana");
    let mounts = grafana["volumes"].as_array().unwrap().iter();
    let dashboards = mounts.filter(|volume| {
        volume["source"]
            .as_str()
            .is_some_and(|source| source.ends_with("deploy/grafana/dashboards"))
    });
    for mount in dashboards {
        let target = mount["target"].as_str().unwrap();
        assert!(provider.contains(&format!("path: {target}\n")), "{target}");
    }
    let trusted = service("yoink")["environment"]["YOINK_TRUSTED_PROXIES"].clone();
    assert_eq!(trusted, service("envoy")["networks"]["default"]["ipv4_address"]);
}
