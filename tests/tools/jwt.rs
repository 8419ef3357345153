//! Envoy's own check of JWTs, with the files and the command that docs/operations.md names.

use std::{fs, path::Path, process::Command};

use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::{Code, Request, transport::Channel};
use yoink::{
    app::Role,
    domain::CallerRole,
    grpc::pb::{ListProductsRequest, inventory_service_client::InventoryServiceClient},
    tls::{ClientAuth, Identity, PemFile, ServerTls},
};

use crate::{
    authentication::create_key,
    envoy::{Answer, Envoy},
    harness::{Authority, TestEnv, Validity, eventually, scratch_dir},
    signer::{Signer, claims, now},
};

/// The server of the identity provider: its keys, over TLS as `id.example`.
struct KeyServer {
    port: u16,
    /// Of its authority.
    ca: String,
    _task: AbortOnDropHandle<()>,
}

impl KeyServer {
    async fn start(keys: &Json) -> Self {
        let authority = Authority::new();
        let issued = authority.issue("id", &["id.example"], Validity::Now);
        let identity = Identity::new(
            PemFile::new("tls_cert_file", &issued.certificate),
            PemFile::new("tls_key_file", &issued.key),
        );
        let tls = ServerTls::load(identity, ClientAuth::None, None, "http/1.1").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let body = keys.to_string();
        let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length:";
        let reply = format!("{head} {}\r\n\r\n{body}", body.len());
        let task = TaskTracker::new().spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = tls.accept(stream).await else { continue };
                let mut request = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    request.push(byte);
                    if request.ends_with(b"\r\n\r\n") {
                        break;
                    }
                }
                let line = b"GET /.well-known/jwks.json HTTP/1.1\r\n";
                assert!(request.starts_with(line), "{}", request.escape_ascii());
                // Envoy may have closed the connection.
                drop(stream.write_all(reply.as_bytes()).await);
                drop(stream.shutdown().await);
            }
        });
        Self { port, ca: authority.file(), _task: AbortOnDropHandle::new(task) }
    }
}

/// The deployed configuration after the documented command, with the addresses of this identity provider.
fn configuration(provider: &KeyServer) -> std::path::PathBuf {
    let dir = scratch_dir("jwt");
    let deployed = dir.join("deploy/envoy");
    fs::create_dir_all(&deployed).unwrap();
    for file in ["envoy.yaml", "jwt-filter.yaml", "jwt-cluster.yaml"] {
        let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/envoy").join(file);
        fs::copy(text, deployed.join(file)).unwrap();
    }
    let cluster = deployed.join("jwt-cluster.yaml");
    let mut text = fs::read_to_string(&cluster).unwrap();
    for (example, here) in [
        (
            "address: id.example, port_value: 443",
            format!("address: 127.0.0.1, port_value: {}", provider.port),
        ),
        ("/etc/ssl/certs/ca-certificates.crt", provider.ca.clone()),
    ] {
        assert_eq!(text.matches(example).count(), 1, "{example}");
        text = text.replace(example, &here);
    }
    fs::write(cluster, text).unwrap();
    let document = include_str!("../../docs/operations.md");
    let mut lines = document
        .lines()
        .filter(|line| line.starts_with("    sed ") && line.contains("jwt-filter.yaml"));
    let (line, None) = (lines.next().unwrap(), lines.next()) else { panic!("one command") };
    let done = Command::new("sh").args(["-euc", line]).current_dir(&dir).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    deployed.join("envoy.yaml")
}

async fn list(envoy: &Envoy, header: Option<(&str, &str)>) -> Answer {
    let path = (http::Method::GET, "/v1/products");
    envoy.json(envoy.address, path, header.as_slice(), None).await
}

/// The status of the same call over gRPC.
async fn list_by_grpc(channel: Channel, token: Option<&str>) -> Code {
    let mut request = Request::new(ListProductsRequest::default());
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let answer = InventoryServiceClient::new(channel).list_products(request).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_refuses_calls_without_a_valid_jwt_by_the_documented_configuration() {
    let (signer, other) = (Signer::ec(), Signer::ec());
    let keys = json!({"keys": [signer.jwk("a")]});
    let provider = KeyServer::start(&keys).await;
    let env = TestEnv::new().await;
    let file = scratch_dir("jwks").join("jwks.json");
    fs::write(&file, keys.to_string()).unwrap();
    let service = env
        .serve(
            Role::All,
            &[
                ("authentication", "required"),
                ("jwt_jwks_file", file.to_str().unwrap()),
                ("jwt_issuer", "https://id.example"),
                ("jwt_audience", "yoink"),
                ("jwt_algorithms", "ES256"),
            ],
        )
        .await;
    let envoy = Envoy::with_configuration(service.grpc, &configuration(&provider)).await;
    let channel = Channel::from_shared(format!("http://{}", envoy.address)).unwrap();
    let channel = channel.connect().await.unwrap();

    let valid = signer.token(&claims(json!({})));
    let bearer = format!("Bearer {valid}");
    // The service requires authentication: the token has reached it, once Envoy has fetched the keys.
    eventually("a valid JWT is accepted", async || {
        (list(&envoy, Some(("authorization", &bearer))).await.status == 200).then_some(())
    })
    .await;
    let expired = signer.token(&claims(json!({"exp": now() - 3600, "nbf": now() - 7200})));
    let endless = signer.token(&claims(json!({"exp": null})));
    let audience = signer.token(&claims(json!({"aud": ["other"]})));
    let issuer = signer.token(&claims(json!({"iss": "https://other.example"})));
    let forged = other.token(&claims(json!({})));
    for (what, token, status, code) in [
        ("none", None, 401, Code::Unauthenticated),
        ("no JWT", Some("garbage"), 401, Code::Unauthenticated),
        ("expired", Some(expired.as_str()), 401, Code::Unauthenticated),
        ("without an expiry", Some(&endless), 401, Code::Unauthenticated),
        ("wrong audience", Some(&audience), 403, Code::PermissionDenied),
        ("wrong issuer", Some(&issuer), 401, Code::Unauthenticated),
        ("signed by another", Some(&forged), 401, Code::Unauthenticated),
    ] {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let header = bearer.as_deref().map(|value| ("authorization", value));
        let answer = list(&envoy, header).await;
        assert_eq!(answer.status.as_u16(), status, "{what}: {answer:?}");
        // Envoy answers it: an answer of the service has this header.
        assert!(!answer.headers.contains_key("x-envoy-upstream-service-time"), "{what}");
        assert_eq!(answer.body["code"], code as i32, "{what}: {answer:?}");
        assert!(status != 401 || answer.headers.contains_key("www-authenticate"), "{what}");
        assert_eq!(list_by_grpc(channel.clone(), token).await, code, "{what}");
    }

    assert_eq!(list_by_grpc(channel, Some(&valid)).await, Code::Ok);
    let key = create_key(&env, "backend", CallerRole::Service);
    let answered = async |key: &str| {
        let answer = list(&envoy, Some(("x-api-key", key))).await;
        assert!(answer.headers.contains_key("x-envoy-upstream-service-time"), "{answer:?}");
        (answer.status.as_u16(), answer.reason().to_owned())
    };
    assert_eq!(answered("garbage").await, (401, "CREDENTIALS_INVALID".to_owned()));
    // A process reads changed keys once a second.
    eventually("the key is accepted", async || (answered(&key).await.0 == 200).then_some(())).await;
}
