//! The real Envoy, as `make edge` runs it: with the configuration that is deployed.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
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

use crate::{
    harness::{eventually, scratch_dir},
    listening::{listening, listening_at},
};

/// These tests do not depend on the speed of the machine; `make bench-listing` uses the deployed 15 s.
const ROUTE_TIMEOUT: &str = "600s";

/// Where Envoy serves operators' calls: not on the address of the other listener, so that each is found by its address.
const OPERATORS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A running Envoy in front of one address.
pub struct Envoy {
    child: Child,
    pub address: SocketAddr,
    /// Where operators' calls are served.
    pub operators: SocketAddr,
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

impl Envoy {
    pub async fn in_front_of(service: SocketAddr) -> Self {
        Self::start(service, None).await
    }

    /// With a configuration that was made from the deployed one.
    pub async fn with_configuration(service: SocketAddr, file: &Path) -> Self {
        Self::start(service, Some(("ENVOY_CONFIG", file))).await
    }

    /// In front of a service with TLS, whose certificate this authority has signed.
    pub async fn in_front_of_tls(service: SocketAddr, authority: &Path) -> Self {
        Self::start(service, Some(("TLS_CA", authority))).await
    }

    /// With one more variable of `scripts/beside.sh`.
    async fn start(service: SocketAddr, variable: Option<(&str, &Path)>) -> Self {
        let dir = scratch_dir("envoy");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "scripts/beside.sh", "edge"]);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command.env("DIR", &dir).env("YOINK", env!("CARGO_BIN_EXE_yoink"));
        command.env("PORT", "0").env("GRPC", service.to_string());
        command.env("ROUTE_TIMEOUT", ROUTE_TIMEOUT).env("OPERATORS", format!("{OPERATORS}:0"));
        command.envs(variable);
        let log = File::create(dir.join("envoy.log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let (address, operators) = eventually("Envoy listens", async || {
            let log = || fs::read_to_string(dir.join("envoy.log")).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "Envoy ended: {}", log());
            Some((listening(child.id())?, listening_at(child.id(), OPERATORS)?))
        })
        .await;
        let config = fs::read_to_string(dir.join("envoy.yaml")).unwrap();
        for name in ["timeout", "grpc_timeout_header_max"] {
            assert!(config.contains(&format!(" {name}: {ROUTE_TIMEOUT}")), "{config}");
        }
        Self { child, address, operators, client }
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(
        &self,
        request: Request<Full<bytes::Bytes>>,
    ) -> (http::response::Parts, bytes::Bytes) {
        let (parts, body) = self.client.request(request).await.unwrap().into_parts();
        (parts, body.collect().await.unwrap().to_bytes())
    }

    /// Sends a request with these headers; the answer has JSON.
    pub async fn json(
        &self,
        address: SocketAddr,
        (method, path): (Method, &str),
        headers: &[(&str, &str)],
        body: Option<&Json>,
    ) -> Answer {
        let mut request = Request::builder().method(method);
        request = request.uri(format!("http://{address}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
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
        self.json(self.address, (Method::GET, path), &[], None).await
    }

    pub async fn post(&self, path: &str, body: &Json) -> Answer {
        self.json(self.address, (Method::POST, path), &[], Some(body)).await
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
