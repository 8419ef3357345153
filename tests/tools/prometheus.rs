//! The real Prometheus, with the configuration that is deployed: only its targets and the durations of its alerts differ.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value as Json, json};
use serde_yaml_ng::Value;

use crate::{
    harness::{eventually, scratch_dir},
    listening::listening,
};

/// A rate covers a minute, so an alert clears only after that.
const WAIT_MAX: Duration = Duration::from_secs(150);

/// A running Prometheus.
pub struct Prometheus {
    child: Child,
    pub address: SocketAddr,
    dir: PathBuf,
    client: Client<HttpConnector, Full<bytes::Bytes>>,
}

fn deployed(file: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    fs::read_to_string(dir.join(file)).unwrap()
}

/// The alerts' names.
pub fn alerts() -> Vec<String> {
    let rules: Value = serde_yaml_ng::from_str(&deployed("rules/alerts.yml")).unwrap();
    let rules = rules["groups"][0]["rules"].as_sequence().unwrap();
    rules.iter().map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect()
}

/// Writes the processes that Prometheus finds, in place of DNS. It reads the file as soon as it is replaced.
fn find(dir: &Path, processes: &[SocketAddr]) {
    let targets: Vec<String> = processes.iter().map(ToString::to_string).collect();
    let written = dir.join("processes.json.new");
    fs::write(&written, json!([{ "targets": targets }]).to_string()).unwrap();
    fs::rename(written, dir.join("processes.json")).unwrap();
}

impl Prometheus {
    /// Scrapes one service every second, and lets no alert wait.
    pub async fn watching(service: SocketAddr) -> Self {
        let dir = scratch_dir("prometheus");
        let mut config: Value = serde_yaml_ng::from_str(&deployed("prometheus.yml")).unwrap();
        for interval in ["scrape_interval", "scrape_timeout", "evaluation_interval"] {
            config["global"][interval] = "1s".into();
        }
        let job = config["scrape_configs"][0].as_mapping_mut().unwrap();
        job.remove("dns_sd_configs").unwrap();
        find(&dir, &[service]);
        let discovery = "[{ files: [processes.json] }]";
        job.insert("file_sd_configs".into(), serde_yaml_ng::from_str(discovery).unwrap());
        let file = dir.join("prometheus.json");
        fs::write(&file, serde_json::to_string(&config).unwrap()).unwrap();
        fs::create_dir(dir.join("rules")).unwrap();
        fs::copy(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/rules/recording.yml"),
            dir.join("rules/recording.yml"),
        )
        .unwrap();
        let mut alerts: Value = serde_yaml_ng::from_str(&deployed("rules/alerts.yml")).unwrap();
        for rule in alerts["groups"][0]["rules"].as_sequence_mut().unwrap() {
            assert!(rule["for"].is_string());
            rule["for"] = "0s".into();
            let mut expr = rule["expr"].as_str().unwrap().to_owned();
            for (long, short) in
                [("offset 10m", "offset 30s"), ("[2m]", "[10s]"), ("> 900", "> 75")]
            {
                expr = expr.replace(long, short);
            }
            rule["expr"] = expr.into();
        }
        fs::write(dir.join("rules/alerts.yml"), serde_json::to_string(&alerts).unwrap()).unwrap();

        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "prometheus", "--log.level=warn"]);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg("--web.listen-address=127.0.0.1:0");
        let this = Self::start(command, &dir).await;
        this.until("the service is scraped and nothing is wrong", async || {
            let scraped = !this.query("up == 1").await.is_empty();
            (scraped && this.firing().await.is_empty()).then_some(())
        })
        .await;
        this
    }

    /// As `make watch` runs it.
    pub async fn beside(service: SocketAddr) -> Self {
        Self::beside_all(&[service]).await
    }

    /// As `make watch` runs it, beside several processes.
    pub async fn beside_all(services: &[SocketAddr]) -> Self {
        let services: Vec<String> = services.iter().map(ToString::to_string).collect();
        let dir = scratch_dir("watch");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "scripts/beside.sh", "watch"]);
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env("DIR", &dir);
        command.env("PORT", "0").env("HTTP", services.join(","));
        Self::start(command, &dir).await
    }

    /// Waits until it answers.
    async fn start(mut command: Command, dir: &Path) -> Self {
        let log = File::create(dir.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().unwrap();
        let address = eventually("Prometheus listens", async || {
            let log = || fs::read_to_string(dir.join("log")).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "Prometheus ended: {}", log());
            listening(child.id())
        })
        .await;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let this = Self { child, address, dir: dir.to_owned(), client };
        eventually("Prometheus is ready", async || this.get("/-/ready").await.map(drop)).await;
        this
    }

    async fn get(&self, path: &str) -> Option<String> {
        let uri = format!("http://{}{path}", self.address);
        let answer = self.client.request(Request::get(uri).body(Full::default()).unwrap()).await;
        let answer = answer.ok().filter(|answer| answer.status().is_success())?;
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        Some(String::from_utf8_lossy(&body).into_owned())
    }

    async fn api(&self, path: &str) -> Json {
        let answer = self.get(path).await.unwrap_or_else(|| panic!("{path} is refused"));
        let answer: Json = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].clone()
    }

    /// What a query returns now: one series an element.
    pub async fn query(&self, query: &str) -> Vec<Json> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.api(&format!("/api/v1/query?query={encoded}")).await;
        data["result"].as_array().unwrap().clone()
    }

    /// Finds these processes from now on, and no other.
    pub fn finds(&self, processes: &[SocketAddr]) {
        find(&self.dir, processes);
    }

    async fn firing_alerts(&self) -> Vec<Json> {
        let data = self.api("/api/v1/alerts").await;
        let alerts = data["alerts"].as_array().unwrap().iter();
        alerts.filter(|alert| alert["state"] == "firing").cloned().collect()
    }

    /// The names of the alerts that fire.
    pub async fn firing(&self) -> Vec<String> {
        let name = |alert: &Json| alert["labels"]["alertname"].as_str().unwrap().to_owned();
        self.firing_alerts().await.iter().map(name).collect()
    }

    /// Waits until an alert with this summary fires.
    pub async fn announces(&self, summary: &str) {
        self.until(&format!("\"{summary}\" is announced"), async || {
            let firing = self.firing_alerts().await;
            firing.iter().any(|alert| alert["annotations"]["summary"] == summary).then_some(())
        })
        .await;
    }

    /// Polls until it returns a value. Prometheus scrapes once a second.
    pub async fn until<T>(&self, what: &str, poll: impl AsyncFn() -> Option<T>) -> T {
        let started = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        loop {
            ticks.tick().await;
            if let Some(found) = poll().await {
                return found;
            }
            assert!(started.elapsed() < WAIT_MAX, "never happened: {what}");
        }
    }

    /// Waits until an alert fires.
    pub async fn fires(&self, alert: &str) {
        self.until(&format!("{alert} fires"), async || {
            self.firing().await.iter().any(|firing| firing == alert).then_some(())
        })
        .await;
    }

    /// Waits until no alert fires any more.
    pub async fn clears(&self) {
        self.until("no alert fires", async || self.firing().await.is_empty().then_some(())).await;
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
