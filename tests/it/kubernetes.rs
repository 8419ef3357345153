//! The manifests of `deploy/kubernetes`: their settings, ports, probes, users and names are those of what runs.

use std::{fs, path::PathBuf, process::Command};

use serde::Deserialize as _;
use serde_yaml_ng::Value;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use yoink::config::{Config, NAMES};

use crate::{
    harness::{Binary, TestEnv, compose, eventually, get, scratch_dir, text},
    tls::certificates,
};

const BASE: &str = include_str!("../../deploy/kubernetes/base/kustomization.yaml");
const API: &str = include_str!("../../deploy/kubernetes/base/api.yaml");
const WORKER: &str = include_str!("../../deploy/kubernetes/base/worker.yaml");
const NETWORK: &str = include_str!("../../deploy/kubernetes/base/network.yaml");
const SETTINGS: &str = include_str!("../../deploy/kubernetes/base/yoink.toml");
const MIGRATE: &str = include_str!("../../deploy/kubernetes/migrate/job.yaml");
const TLS: &str = include_str!("../../deploy/kubernetes/tls/api.yaml");
const EDGE: &str = include_str!("../../deploy/kubernetes/edge/edge.yaml");
const MONITOR: &str = include_str!("../../deploy/kubernetes/monitoring/service-monitor.yaml");
const RELEASE: &str = include_str!("../../deploy/kubernetes/example/release/kustomization.yaml");
const OPERATIONS: &str = include_str!("../../docs/operations.md");
const DOCKERFILE: &str = include_str!("../../Dockerfile");

/// The objects of a file.
fn objects(file: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(file);
    documents.map(|document| Value::deserialize(document).unwrap()).collect()
}

/// The one object of this kind.
fn object(file: &str, kind: &str) -> Value {
    let mut found = objects(file).into_iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap();
    assert!(found.next().is_none(), "several of {kind}");
    object
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_sequence().into_iter().flatten()
}

/// The pod of each workload, by the name of the workload.
fn pods() -> Vec<(String, Value)> {
    let files =
        [(API, "Deployment"), (WORKER, "Deployment"), (MIGRATE, "Job"), (EDGE, "Deployment")];
    let pod = |(file, kind)| {
        let workload = object(file, kind);
        (text(&workload["metadata"]["name"]), workload["spec"]["template"].clone())
    };
    files.map(pod).into()
}

fn container(pod: &Value) -> &Value {
    let containers = pod["spec"]["containers"].as_sequence().unwrap();
    assert_eq!(containers.len(), 1);
    &containers[0]
}

/// The number of a port that has a name.
fn port(container: &Value, name: &str) -> u64 {
    let named = list(&container["ports"]).find(|port| port["name"] == name);
    named.unwrap()["containerPort"].as_u64().unwrap()
}

fn environment(container: &Value) -> Vec<(String, String)> {
    list(&container["env"]).map(|one| (text(&one["name"]), text(&one["value"]))).collect()
}

/// A directory with the settings and secrets that a pod finds, and the paths of both.
struct Mounted {
    dir: PathBuf,
    certificates: PathBuf,
}

impl Mounted {
    fn new() -> Self {
        let (dir, certificates) = (scratch_dir("kubernetes"), certificates());
        fs::write(dir.join("redis-url"), "redis://yoink:secret@redis:6379\n").unwrap();
        fs::write(dir.join("postgres-url"), "postgres://yoink_serve:secret@postgres/yoink\n")
            .unwrap();
        let mounted = Self { dir, certificates };
        fs::write(mounted.dir.join("yoink.toml"), mounted.place(SETTINGS)).unwrap();
        mounted
    }

    /// The paths of a pod are those of this directory.
    fn place(&self, text: &str) -> String {
        let (dir, certificates) = (self.dir.to_str().unwrap(), self.certificates.to_str().unwrap());
        text.replace("/run/secrets/yoink-stores", dir)
            .replace("/run/secrets/yoink-owner", dir)
            .replace("/run/secrets/yoink-tls/tls.crt", &format!("{certificates}/server.pem"))
            .replace("/run/secrets/yoink-tls/tls.key", &format!("{certificates}/server.key"))
    }

    /// What `yoink config check` prints with this environment.
    fn check(&self, environment: &[(String, String)]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yoink"));
        command.args(["config", "check"]).current_dir(&self.dir);
        command.envs(environment.iter().map(|(name, value)| (name, self.place(value))));
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        // A variable that is not a setting causes a warning.
        assert!(output.status.success() && error.is_empty(), "{error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn settings_of_each_pod_exist_and_require_authentication() {
    let mounted = Mounted::new();
    for file in [API, WORKER] {
        let deployment = object(file, "Deployment");
        let mut settings = environment(container(&deployment["spec"]["template"]));
        let shown = mounted.check(&settings);
        assert!(shown.contains("authentication = \"required\""), "{shown}");
        assert!(shown.contains("grpc_listen = \"0.0.0.0:50051\""), "{shown}");
        settings.extend(environment(container(&object(TLS, "Deployment")["spec"]["template"])));
        let shown = mounted.check(&settings);
        assert!(shown.contains("http_tls = \"off\"") && shown.contains("server.pem"), "{shown}");
    }
    let job = environment(container(&object(MIGRATE, "Job")["spec"]["template"]));
    assert!(job.iter().all(|(name, _)| name == "YOINK_POSTGRES_URL_FILE"), "{job:?}");
    mounted.check(&job);
}

#[test]
fn ports_are_those_that_the_processes_listen_on() {
    let mounted = Mounted::new();
    let config = Config::load(&mounted.dir.join("yoink.toml"), true, &[]).unwrap();
    let (grpc, http) = (u64::from(config.grpc_listen.port()), u64::from(config.http_listen.port()));
    for file in [API, WORKER] {
        let deployment = object(file, "Deployment");
        let container = container(&deployment["spec"]["template"]);
        assert_eq!((port(container, "grpc"), port(container, "http")), (grpc, http));
        assert_eq!(container["readinessProbe"]["grpc"]["port"].as_u64(), Some(grpc));
        for service in list(&object(file, "Service")["spec"]["ports"]) {
            let target = port(container, &text(&service["targetPort"]));
            assert_eq!(service["port"].as_u64(), Some(target), "headless: no port is translated");
        }
    }
    let envoy: Value =
        serde_yaml_ng::from_str(include_str!("../../deploy/envoy/envoy.yaml")).unwrap();
    let listener = &envoy["static_resources"]["listeners"][0]["address"]["socket_address"];
    let edge = object(EDGE, "Deployment");
    let edge = container(&edge["spec"]["template"]);
    assert_eq!(Some(port(edge, "http")), listener["port_value"].as_u64());
    let cluster = &envoy["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0];
    let upstream = &cluster["lb_endpoints"][0]["endpoint"]["address"]["socket_address"];
    let service = object(API, "Service");
    assert_eq!(upstream["address"], service["metadata"]["name"]);
    assert_eq!(upstream["port_value"].as_u64(), Some(grpc));
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_of_each_pod_are_answered_by_a_process_of_its_role() {
    for file in [API, WORKER] {
        let env = TestEnv::new().await;
        let deployment = object(file, "Deployment");
        let of_pod = container(&deployment["spec"]["template"]);
        let args: Vec<String> = list(&of_pod["args"]).map(text).collect();
        assert_eq!(args[..2], ["serve", "--role"]);
        let mut process = Binary::serve_as(&args[2], &env, &[], None);
        let mut health = HealthClient::new(process.channel().await);
        let service = of_pod["readinessProbe"]["grpc"]["service"].as_str().unwrap_or_default();
        eventually("it is ready", async || {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = health.check(request).await.unwrap().into_inner();
            (answer.status() == ServingStatus::Serving).then_some(())
        })
        .await;
        let address = process.http_address().unwrap();
        let tls = object(TLS, "Deployment");
        let with_tls = &container(&tls["spec"]["template"])["readinessProbe"];
        let probes = [&of_pod["startupProbe"], &of_pod["livenessProbe"], with_tls];
        for probe in probes {
            let path = text(&probe["httpGet"]["path"]);
            let answer = get(address, &path).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
    }
}

#[test]
fn pods_run_as_the_users_of_the_images_and_are_confined() {
    let of_image = DOCKERFILE.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    let of_compose = |service: &str| text(&compose()["services"][service]["user"]);
    let envoy = of_compose("envoy");
    for (name, pod) in pods() {
        let user = match name.as_str() {
            "yoink-migrate" => of_compose("migrate"),
            "yoink-edge" => envoy.split(':').next().unwrap().to_owned(),
            _ => of_image.to_owned(),
        };
        let user: Option<u64> = Some(user.parse().unwrap());
        let security = &pod["spec"]["securityContext"];
        for id in ["runAsUser", "runAsGroup", "fsGroup"] {
            assert_eq!(security[id].as_u64(), user, "{name}: {id}");
        }
        assert_eq!(security["runAsNonRoot"], true, "{name}");
        assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        assert_eq!(pod["spec"]["enableServiceLinks"], false, "{name}");
        assert_eq!(pod["spec"]["automountServiceAccountToken"], false, "{name}");
        let container = container(&pod);
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(list(&security["capabilities"]["drop"]).map(text).collect::<Vec<_>>(), ["ALL"]);
        assert!(!container["resources"]["limits"]["memory"].is_null(), "{name}");
        assert!(container["resources"]["limits"]["cpu"].is_null(), "{name}: it would be throttled");
        assert!(list(&container["volumeMounts"]).all(|mount| mount["readOnly"] == true), "{name}");
    }
}

#[test]
fn grace_periods_are_longer_than_a_shutdown() {
    let shutdown = text(&compose()["services"]["yoink"]["stop_grace_period"]);
    let shutdown: u64 = shutdown.strip_suffix('s').unwrap().parse().unwrap();
    for file in [API, WORKER] {
        let deployment = object(file, "Deployment");
        let pod = &deployment["spec"]["template"];
        let mut variables = list(&container(pod)["env"]);
        let delay = variables.find(|variable| variable["name"] == "YOINK_SHUTDOWN_DELAY_MS");
        let delay_ms = delay.map_or(0, |delay| text(&delay["value"]).parse::<u64>().unwrap());
        let grace = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert_eq!(1000 * grace, 1000 * shutdown + delay_ms);
        assert_eq!(delay_ms > 0, file == API);
    }
}

#[test]
fn images_have_the_version_of_this_program() {
    let version = env!("CARGO_PKG_VERSION");
    let release: Value = serde_yaml_ng::from_str(RELEASE).unwrap();
    let released: Vec<&Value> = list(&release["images"]).collect();
    for (name, pod) in pods() {
        let image = text(&container(&pod)["image"]);
        let (image, tag) = image.split_once(':').unwrap();
        assert_eq!(tag, version, "{name}");
        let new = released.iter().find(|new| new["name"] == image);
        assert_eq!(text(&new.unwrap()["newTag"]), version, "{name}");
    }
}

/// Whether labels have all that a selector asks for.
fn matches(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.as_mapping().unwrap();
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

#[test]
fn each_selector_finds_the_pods_that_it_is_for() {
    for file in [API, WORKER, EDGE] {
        let deployment = object(file, "Deployment");
        let pod = &deployment["spec"]["template"];
        let labels = &pod["metadata"]["labels"];
        let selectors = [
            deployment["spec"]["selector"]["matchLabels"].clone(),
            object(file, "Service")["spec"]["selector"].clone(),
            object(file, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].clone(),
        ];
        let spread = list(&pod["spec"]["topologySpreadConstraints"]);
        let spread = spread.map(|one| one["labelSelector"]["matchLabels"].clone());
        for selector in selectors.into_iter().chain(spread) {
            assert!(matches(&selector, labels), "{selector:?} of {labels:?}");
        }
    }
    let scaled = &object(API, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"];
    assert_eq!(*scaled, object(API, "Deployment")["metadata"]["name"]);
    assert_eq!(object(TLS, "Deployment")["metadata"]["name"], *scaled);
    // Envoy may call the api processes, and nothing may call the workers.
    let edge = object(EDGE, "Deployment")["spec"]["template"]["metadata"]["labels"].clone();
    let clients =
        objects(NETWORK).into_iter().find(|one| one["metadata"]["name"] == "yoink-clients");
    let clients = clients.unwrap()["spec"].clone();
    let from = &clients["ingress"][0]["from"][0]["podSelector"]["matchLabels"];
    assert!(matches(from, &edge));
    let called = |file| {
        let labels = &object(file, "Deployment")["spec"]["template"]["metadata"]["labels"];
        matches(&clients["podSelector"]["matchLabels"], labels)
    };
    assert_eq!((called(API), called(WORKER)), (true, false));
    for policy in objects(NETWORK) {
        let of_all = &policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"];
        assert_eq!(text(of_all), "yoink");
    }
}

#[test]
fn volumes_are_the_settings_and_documented_secrets() {
    let base: Value = serde_yaml_ng::from_str(BASE).unwrap();
    let mut secrets = Vec::new();
    let tls = object(TLS, "Deployment")["spec"]["template"].clone();
    for pod in pods().into_iter().map(|(_, pod)| pod).chain([tls]) {
        let volumes: Vec<&Value> = list(&pod["spec"]["volumes"]).collect();
        for mount in list(&container(&pod)["volumeMounts"]) {
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
            if volume["secret"].is_null() {
                let name = &volume["configMap"]["name"];
                assert_eq!(*name, base["configMapGenerator"][0]["name"]);
                let workdir = format!("WORKDIR {}", text(&mount["mountPath"]));
                assert!(DOCKERFILE.lines().any(|line| line == workdir), "{workdir}");
            } else {
                secrets.push(text(&volume["secret"]["secretName"]));
            }
        }
    }
    secrets.sort();
    secrets.dedup();
    assert_eq!(secrets, ["yoink-owner", "yoink-stores", "yoink-tls"]);
    for secret in secrets {
        let made = format!("kubectl create secret generic {secret} --from-file");
        assert!(OPERATIONS.contains(&made), "docs/operations.md does not have: {made}");
    }
}

#[test]
fn prometheus_scrapes_each_pod_as_often_as_the_deployed_one_under_the_same_job() {
    let monitor = object(MONITOR, "ServiceMonitor")["spec"].clone();
    let deployed: Value =
        serde_yaml_ng::from_str(include_str!("../../deploy/prometheus/prometheus.yml")).unwrap();
    let endpoint = &monitor["endpoints"][0];
    assert_eq!(endpoint["interval"], deployed["global"]["scrape_interval"]);
    assert_eq!(endpoint["scrapeTimeout"], deployed["global"]["scrape_timeout"]);
    for file in [API, WORKER] {
        let service = object(file, "Service");
        let labels = &service["metadata"]["labels"];
        assert!(matches(&monitor["selector"]["matchLabels"], labels));
        assert_eq!(labels[text(&monitor["jobLabel"])], deployed["scrape_configs"][0]["job_name"]);
        let mut ports = list(&service["spec"]["ports"]);
        assert!(ports.any(|port| port["name"] == endpoint["port"] && port["targetPort"] == "http"));
    }
}

#[test]
fn clients_with_the_service_config_use_every_pod() {
    // A client that gets the addresses of all pods connects to one of them, unless its policy says otherwise.
    assert_eq!(object(API, "Service")["spec"]["clusterIP"], "None");
    let config: Value =
        serde_yaml_ng::from_str(include_str!("../../docs/service_config.json")).unwrap();
    assert!(config["loadBalancingConfig"][0]["round_robin"].is_mapping());
}

#[test]
fn connections_to_postgres_are_at_most_those_that_are_documented() {
    let mounted = Mounted::new();
    let each = |file| {
        let deployment = object(file, "Deployment");
        let settings = environment(container(&deployment["spec"]["template"]));
        let flags = settings.into_iter().map(|(variable, value)| {
            let named = |name: &&&str| format!("YOINK_{}", name.to_uppercase()) == variable;
            (*NAMES.iter().find(named).unwrap(), value)
        });
        let flags: Vec<(&'static str, String)> = flags.collect();
        let file = mounted.dir.join("yoink.toml");
        Config::load(&file, true, &flags).unwrap().ledger_connections()
    };
    let (api, worker) = (each(API), each(WORKER));
    let processes = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let most = processes(&object(API, "HorizontalPodAutoscaler")["spec"]["maxReplicas"]);
    let workers = processes(&object(WORKER, "Deployment")["spec"]["replicas"]);
    // A rollout starts a process before it ends one.
    let sum = (most + 1) * api + (workers + 1) * worker;
    let documented =
        format!("{api} for each api process and {worker} for each worker, {sum} in all");
    assert!(OPERATIONS.contains(&documented), "docs/operations.md does not have: {documented}");
}
