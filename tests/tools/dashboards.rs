//! What is shown in Grafana is there: every query of every panel, asked of the real Prometheus.

use std::{fs, path::Path};

use serde_json::Value as Json;
use yoink::app::Role;

use crate::{
    harness::{TestEnv, product, scratch_dir},
    prometheus::Prometheus,
    running_load::RunningLoad,
};

fn dashboards() -> Vec<(String, Json)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/dashboards");
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
    };
    files.map(read).collect()
}

/// Title and query of every target.
fn queries(dashboard: &Json) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array().unwrap().iter();
        targets.map(move |target| (title.to_owned(), target["expr"].as_str().unwrap().to_owned()))
    });
    targets.collect()
}

#[test]
fn dashboards_are_complete_and_query_the_provisioned_source() {
    let source = include_str!("../../deploy/grafana/provisioning/datasources/prometheus.yml");
    let source: serde_yaml_ng::Value = serde_yaml_ng::from_str(source).unwrap();
    let uid = source["datasources"][0]["uid"].as_str().unwrap();
    let (mut seen, dashboards) = (std::collections::BTreeSet::new(), dashboards());
    assert_eq!(dashboards.len(), 3);
    for (name, dashboard) in &dashboards {
        assert!(seen.insert(dashboard["uid"].as_str().unwrap().to_owned()), "{name}: uid");
        let panels = dashboard["panels"].as_array().unwrap();
        for (n, panel) in panels.iter().enumerate() {
            let title = panel["title"].as_str().unwrap();
            assert_eq!(panel["datasource"]["uid"], uid, "{name}: {title}");
            assert_eq!(panel["id"], n + 1, "{name}: {title}");
            assert!(!panel["targets"].as_array().unwrap().is_empty(), "{name}: {title}");
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{name}: {title}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_every_panel_returns_data() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("metrics_products", "shoe")]).await;
    service.create(product("shoe", 1_000_000)).await;
    let watch = Prometheus::watching(service.http).await;
    let load = RunningLoad::on(&service, "shoe");
    let mut asked = 0;
    for (name, dashboard) in dashboards() {
        for (title, query) in queries(&dashboard) {
            // Grafana's own choice for a scrape every second would be shorter.
            let query = query.replace("$__rate_interval", "1m");
            assert!(!query.contains('$'), "{name}: {title}: what is {query}?");
            watch
                .until(&format!("{name}: {title} shows {query}"), async || {
                    let series = watch.query(&query).await;
                    let number = |series: &Json| series["value"][1].as_str().unwrap() != "NaN";
                    (!series.is_empty() && series.iter().any(number)).then_some(())
                })
                .await;
            asked += 1;
        }
    }
    assert!(asked > 30, "only {asked} queries were found");
    load.stop().await;
    env.assert_audit_holds().await;
}

#[test]
fn deployed_configuration_passes_promtool() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let check = |args: &[&str]| {
        let output = std::process::Command::new("promtool").args(args).current_dir(root).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    check(&["check", "config", "deploy/prometheus/prometheus.yml"]);
    check(&["check", "rules", "deploy/prometheus/rules/alerts.yml"]);
    check(&["check", "rules", "deploy/prometheus/rules/recording.yml"]);
    // And the check can fail.
    let bad = scratch_dir("promtool").join("bad.yml");
    fs::write(&bad, "groups: [{name: x, rules: [{alert: X, expr: 'sum('}]}]").unwrap();
    let output = std::process::Command::new("promtool").args(["check", "rules"]).arg(bad).output();
    assert!(!output.unwrap().status.success());
}
