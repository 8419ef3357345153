//! The real Envoy, with the configuration that is deployed: only addresses and the descriptor's path differ.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value as Json;
use serde_yaml_ng::Value;

use crate::harness::{eventually, scratch_dir};

/// A running Envoy in front of one address.
pub struct Envoy {
    child: Child,
    pub address: SocketAddr,
    client: Client<HttpConnector, Full<bytes::Bytes>>,
}

/// An answer over REST.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Json,
}

impl Answer {
    /// One of the details of a refusal, by its type's name.
    pub fn detail(&self, name: &str) -> &Json {
        let details = self.body["details"].as_array().into_iter().flatten();
        let named = |detail: &&Json| detail["@type"].as_str().is_some_and(|t| t.ends_with(name));
        details.into_iter().find(named).unwrap_or(&Json::Null)
    }

    /// The reason of a refusal.
    pub fn reason(&self) -> &str {
        self.detail("ErrorInfo")["reason"].as_str().unwrap_or("no reason")
    }
}

fn path<'a>(value: &'a mut Value, keys: &[&str]) -> &'a mut Value {
    keys.iter().fold(value, |value, key| match key.parse::<usize>() {
        Ok(index) => value.get_mut(index).unwrap(),
        Err(_) => value.get_mut(*key).unwrap(),
    })
}

impl Envoy {
    pub async fn in_front_of(service: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let dir = scratch_dir("envoy");
        let descriptor = dir.join("yoink.binpb");
        fs::write(&descriptor, yoink::grpc::DESCRIPTOR_SET).unwrap();

        let text = include_str!("../../deploy/envoy/envoy.yaml");
        let mut config: Value = serde_yaml_ng::from_str(text).unwrap();
        let listener = path(&mut config, &["static_resources", "listeners", "0"]);
        let at = path(listener, &["address", "socket_address"]);
        at["address"] = "127.0.0.1".into();
        at["port_value"] = address.port().into();
        let manager = path(listener, &["filter_chains", "0", "filters", "0", "typed_config"]);
        let filters = manager["http_filters"].as_sequence_mut().unwrap();
        let transcoder = filters.iter_mut().find(|filter| {
            filter["name"].as_str() == Some("envoy.filters.http.grpc_json_transcoder")
        });
        transcoder.unwrap()["typed_config"]["proto_descriptor"] =
            descriptor.to_str().unwrap().into();
        let endpoint = ["load_assignment", "endpoints", "0", "lb_endpoints", "0", "endpoint"];
        let cluster = path(&mut config, &["static_resources", "clusters", "0"]);
        let at = path(path(cluster, &endpoint), &["address", "socket_address"]);
        at["address"] = "127.0.0.1".into();
        at["port_value"] = service.port().into();
        // As JSON: the two do not agree on what an unquoted `no` is in YAML.
        let file = dir.join("envoy.json");
        fs::write(&file, serde_json::to_string(&config).unwrap()).unwrap();

        let envoy = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/venv/bin/envoy");
        assert!(envoy.exists(), "run `make tools`");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(envoy).arg("-c").arg(&file);
        command.args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warn"]);
        let log = File::create(dir.join("envoy.log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        eventually("Envoy listens", async || {
            let log = || fs::read_to_string(dir.join("envoy.log")).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "Envoy ended: {}", log());
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await;
        Self { child, address, client }
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(
        &self,
        request: Request<Full<bytes::Bytes>>,
    ) -> (http::response::Parts, bytes::Bytes) {
        let (parts, body) = self.client.request(request).await.unwrap().into_parts();
        (parts, body.collect().await.unwrap().to_bytes())
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Json>) -> Answer {
        let mut request = Request::builder().method(method);
        request = request.uri(format!("http://{}{path}", self.address));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(Json::to_string).unwrap_or_default();
        let (parts, body) = self.send(request.body(Full::from(body)).unwrap()).await;
        let body = serde_json::from_slice(&body).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&body));
        });
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.json(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Json) -> Answer {
        self.json(Method::POST, path, Some(body)).await
    }

    /// Buys one unit.
    pub async fn buy(&self, product: &str, user: &str, request: &str) -> Answer {
        let body =
            serde_json::json!({ "productId": product, "userId": user, "requestId": request });
        self.post("/v1/reservations", &body).await
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
