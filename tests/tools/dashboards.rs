//! Every query of every panel in Grafana returns data from the real Prometheus, with the dashboard's variables set.

use std::{collections::BTreeMap, fs, path::Path};

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

/// The variables of a dashboard, by name.
fn variables(dashboard: &Json) -> BTreeMap<String, Json> {
    let list = dashboard["templating"]["list"].as_array().unwrap().iter();
    list.map(|one| (one["name"].as_str().unwrap().to_owned(), one.clone())).collect()
}

/// The values that Grafana offers for a variable: those of a label of a metric.
async fn values(watch: &Prometheus, variable: &Json) -> Vec<String> {
    let query = variable["query"]["query"].as_str().unwrap();
    assert_eq!(variable["definition"], query);
    let inside = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
    let (metric, label) = inside.split_once(", ").unwrap();
    let series = watch.query(metric).await;
    series.iter().map(|one| one["metric"][label].as_str().unwrap().to_owned()).collect()
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
        let variables = variables(dashboard);
        assert_eq!(variables["datasource"]["type"], "datasource", "{name}");
        assert_eq!(variables["datasource"]["current"]["value"], uid, "{name}");
        let all = |variable: &Json| variable["includeAll"] == true && variable["allValue"] == ".*";
        assert!(all(&variables["instance"]), "{name}");
        let queries = queries(dashboard);
        for (title, query) in &queries {
            let of_instance = query.matches("instance=~\"$instance\"").count();
            let metrics = query.matches(['{']).count();
            assert!(of_instance > 0 && of_instance == metrics, "{name}: {title}: {query}");
            let product = query.contains("yoink_product_stock");
            assert_eq!(query.contains("product=~\"$product\""), product, "{name}: {title}");
        }
        // A variable that no query of the dashboard uses would do nothing.
        for variable in variables.keys().filter(|variable| *variable != "datasource") {
            let used = format!("=~\"${variable}\"");
            assert!(queries.iter().any(|(_, query)| query.contains(&used)), "{name}: {variable}");
        }
        let panels = dashboard["panels"].as_array().unwrap();
        for (n, panel) in panels.iter().enumerate() {
            let title = panel["title"].as_str().unwrap();
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
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
        let variables = variables(&dashboard);
        assert_eq!(values(&watch, &variables["instance"]).await, [service.http.to_string()]);
        if let Some(product) = variables.get("product") {
            assert_eq!(values(&watch, product).await, ["shoe"], "{name}");
        }
        for (title, query) in queries(&dashboard) {
            // Grafana's own choice for a scrape every second would be shorter.
            let query = query.replace("$__rate_interval", "1m");
            let query = query.replace("$instance", &service.http.to_string());
            let query = query.replace("$product", "shoe");
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
