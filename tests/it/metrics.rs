//! `/metrics` shows what happened.

use std::collections::{BTreeMap, BTreeSet};

use yoink::{app::Role, grpc::pb::ReleaseDeadEntriesRequest};

use crate::harness::{Service, TestEnv, dead_entries, eventually, get, product, succeeds};

/// Every sample of a scrape whose name and labels contain all of `parts`, summed.
fn sum(scrape: &str, parts: &[&str]) -> f64 {
    let samples = scrape.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.filter(|line| parts.iter().all(|part| line.contains(part)));
    samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

async fn call_unknown_method(service: &Service) {
    let mut client = tonic::client::Grpc::new(service.channel());
    client.ready().await.unwrap();
    let path = "/yoink.v1.InventoryService/Invented".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let status = client.unary(tonic::Request::new(()), path, codec).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
}

async fn scrape(service: &Service) -> String {
    let answer = get(service.http, "/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_calls_outcomes_batches_and_orders() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 3)).await;
    for n in 0..5 {
        drop(service.buy("shoe", &format!("user-{n}"), "r").await);
    }
    drop(service.buy("shoe", "user-0", "r").await);
    drop(service.buy("{", "user-0", "r").await);
    call_unknown_method(&service).await;
    env.assert_audit_holds().await;
    let text = scrape(&service).await;
    let outcome = |name: &str| sum(&text, &["yoink_reserve_outcomes_total", name]);
    assert_eq!((outcome("\"accepted\""), outcome("\"sold_out\"")), (3.0, 2.0), "{text}");
    assert_eq!(outcome("\"duplicate\""), 1.0);
    let calls = |code: &str| {
        let method = "yoink.v1.InventoryService/ReserveUnit";
        sum(&text, &["rpc_server_call_duration_seconds_count", method, code])
    };
    assert_eq!((calls("\"OK\""), calls("\"FAILED_PRECONDITION\"")), (4.0, 2.0));
    assert_eq!(calls("\"INVALID_ARGUMENT\""), 1.0);
    let unknown =
        ["rpc_method=\"_OTHER\"", "rpc_system_name=\"grpc\"", "error_type=\"UNIMPLEMENTED\""];
    assert_eq!(
        sum(&text, &[&["rpc_server_call_duration_seconds_count"][..], &unknown].concat()),
        1.0
    );
    assert_eq!(sum(&text, &["rpc_server_call_duration_seconds_count", "error_type"]), 1.0);
    assert_eq!(sum(&text, &["yoink_reserve_batch_size_sum"]), 6.0);
    assert_eq!(sum(&text, &["yoink_orders_stored_batch_size_sum"]), 3.0);
    assert_eq!(sum(&text, &["yoink_orders_store_delay_seconds_count"]), 3.0);
    let operations = "db_client_operation_duration_seconds_count";
    for operation in [
        ["\"redis\"", "db_operation_name=\"EVALSHA\"", "db_stored_procedure_name=\"reserve\""],
        ["\"postgresql\"", "db_operation_name=\"store_orders\"", ""],
    ] {
        assert!(
            sum(&text, &[&[operations][..], &operation].concat()) >= 1.0,
            "{operation:?}: {text}"
        );
    }
    assert!(text.contains("yoink_build_info"));
    for bound in ["le=\"0.0002\"", "le=\"10\""] {
        assert!(text.contains(bound), "buckets show both 0.2 ms and 10 s");
    }
    for hidden in ["shoe", "user-", "Invented"] {
        assert!(!text.contains(hidden), "no label by product or user");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn product_labels_are_limited_to_the_configured_products() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("metrics_products", "shoe,ghost")]).await;
    service.create(product("shoe", 3)).await;
    service.create(product("parasol", 3)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    let text = scrape(&service).await;
    assert_eq!(sum(&text, &["yoink_product_stock", "product=\"shoe\""]), 2.0, "{text}");
    assert!(!text.contains("parasol") && !text.contains("ghost"), "{text}");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_answered_while_redis_is_silent_and_postgres_is_down() {
    let mut env = TestEnv::with_own_redis().await;
    let other = TestEnv::with_own_postgres().await;
    env.postgres = other.postgres;
    env.database = other.database;
    let service = env.serve(Role::Api, &[]).await;
    let up = |text: &str, store: &str| sum(text, &["yoink_store_up", store]);
    let text = scrape(&service).await;
    assert_eq!((up(&text, "redis"), up(&text, "postgres")), (1.0, 1.0), "{text}");
    env.redis.as_ref().unwrap().pause();
    env.postgres.as_mut().unwrap().stop();
    // A scrape is answered within seconds, however long a store is silent.
    let text = tokio::time::timeout(std::time::Duration::from_secs(10), scrape(&service)).await;
    let text = text.unwrap();
    assert_eq!((up(&text, "redis"), up(&text, "postgres")), (0.0, 0.0), "{text}");
    env.redis.as_ref().unwrap().resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_show_waiting_and_dead_entries() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    for n in 0..4 {
        service.buy("shoe", &format!("user-{n}"), "").await.unwrap();
    }
    let text = scrape(&service).await;
    assert_eq!(sum(&text, &["yoink_orders_depth"]), 4.0, "{text}");
    assert_eq!(sum(&text, &["yoink_orders_pending"]), 0.0);
    assert_eq!(sum(&text, &["yoink_partition_fenced"]), 0.0);
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'user-0')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let settings = [("deliveries_max", "1"), ("dead_letter_release", "manual")];
    let worker = env.serve(Role::Worker, &settings).await;
    eventually("one is dead and the rest is stored", async || {
        let text = scrape(&worker).await;
        let (orders, dead) =
            (sum(&text, &["yoink_orders_depth"]), sum(&text, &["yoink_dead_depth"]));
        let dead_letters = sum(&text, &["yoink_dead_letters_total"]);
        (orders == 0.0 && dead == 1.0 && dead_letters == 1.0).then_some(())
    })
    .await;
    let text = scrape(&worker).await;
    assert!(sum(&text, &["db_client_connection_count", "\"workers\""]) >= 1.0, "{text}");
    let rejected = ["db_operation_name=\"store_orders\"", "error_type=\"rejected\""];
    assert!(sum(&text, &rejected) >= 1.0, "{text}");
    for command in ["\"XRANGE\"", "\"XLEN\"", "\"XINFO\""] {
        let name = "db_client_operation_duration_seconds_count";
        assert!(sum(&text, &[name, command]) >= 1.0, "{command}: {text}");
    }
    let release = ReleaseDeadEntriesRequest { selector: dead_entries::all(), ..Default::default() };
    service.admin().release_dead_entries(release).await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (3, 7));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_document_lists_exactly_the_existing_metrics() {
    let env = TestEnv::with_durable_postgres().await;
    let audits = ("audit_interval_ms", "100");
    let settings = [("deliveries_max", "1"), ("metrics_products", "shoe"), audits];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 3)).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'bad')";
    env.sql().await.batch_execute(poison).await.unwrap();
    let waits = yoink::grpc::pb::Ack::Ledger;
    service.buy_with(("shoe", "good", ""), waits).await.unwrap();
    service.buy("shoe", "bad", "").await.unwrap();
    env.assert_audit_holds().await;
    // The worker's own audit exports three of them, whenever it ends.
    let text = succeeds("every documented metric is exported", async || {
        let text = scrape(&service).await;
        let exported =
            |name: &str| text.lines().any(|line| line.starts_with(&format!("# TYPE {name} ")));
        let missing: Vec<_> = documented().into_keys().filter(|name| !exported(name)).collect();
        if missing.is_empty() { Ok(text) } else { Err(missing) }
    })
    .await;
    let mut documented = documented();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = types.filter_map(|line| line.split(' ').next());
    for name in names.filter(|name| !["target_info", "otel_scope_info"].contains(name)) {
        let row = documented.remove(name).unwrap_or_else(|| panic!("{name} has no row"));
        let dotted = row.opentelemetry.replace('.', "_");
        assert!(name.starts_with(&dotted), "{name} is not {}", row.opentelemetry);
        for label in labels(&text, name) {
            assert!(row.labels.contains(&label), "{name} has the label {label}");
        }
    }
}

/// The row of a metric in the document.
struct Documented {
    opentelemetry: &'static str,
    labels: Vec<&'static str>,
}

/// The rows of the document, by the metric's name in Prometheus; each has one row.
fn documented() -> BTreeMap<&'static str, Documented> {
    let mut rows = BTreeMap::new();
    for line in include_str!("../../docs/metrics.md").lines() {
        let Some(cells) = line.strip_prefix("| `") else { continue };
        let cells: Vec<&str> = cells.trim_end_matches('|').split('|').map(str::trim).collect();
        let [name, opentelemetry, _unit, labels, _meaning] = cells[..] else { panic!("{line}") };
        let row = Documented {
            opentelemetry: opentelemetry.trim_matches('`'),
            labels: labels.split('`').skip(1).step_by(2).collect(),
        };
        let before = rows.insert(name.trim_end_matches('`'), row);
        assert!(before.is_none(), "{name} has two rows");
    }
    rows
}

/// The labels of a metric's samples, except those of every metric and histogram.
fn labels<'a>(scrape: &'a str, name: &str) -> BTreeSet<&'a str> {
    let samples = scrape.lines().filter(|line| line.starts_with(name));
    let inside = samples.filter_map(|line| line.split_once('{')?.1.rsplit_once('}'));
    let labels = inside
        .flat_map(|(labels, _)| labels.split("\","))
        .filter_map(|label| label.split_once('='));
    let of_all = |label: &&str| label.starts_with("otel_scope_") || *label == "le";
    labels.map(|(label, _)| label).filter(|label| !of_all(label)).collect()
}
