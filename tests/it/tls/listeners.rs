//! TLS of both listeners, and who is refused.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    ALL_VERSIONS, ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, block_in_place},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Channel, ClientTlsConfig};
use yoink::{
    app::{App, Listeners, Role},
    grpc::pb::{
        ListProductsRequest, ReserveUnitRequest, inventory_service_client::InventoryServiceClient,
    },
};

use crate::harness::{
    Authority, Issued, TestEnv, Validity, WAIT_MAX, eventually, product, run_yoink_with,
};

/// A running service whose listeners use TLS.
pub(super) struct SecureService {
    pub(super) grpc: SocketAddr,
    pub(super) http: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
}

impl SecureService {
    /// With one product, `shoe`.
    pub(super) async fn start(
        env: &TestEnv,
        server: &Issued,
        more: &[(&'static str, &str)],
    ) -> Self {
        let (cert, key) = server.texts();
        let settings = [&[("tls_cert_file", cert), ("tls_key_file", key)], more].concat();
        let bind = || TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners { grpc: bind().await.unwrap(), http: bind().await.unwrap() };
        let app = App::build(&env.config(&settings), Role::All, listeners).await.unwrap();
        app.create_products(&[product("shoe", 1_000_000)]).await.unwrap();
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let (grpc, http) = (address(&app.listeners.grpc), address(&app.listeners.http));
        let stop = CancellationToken::new();
        let running = TaskTracker::new().spawn(app.run(stop.clone()));
        Self { grpc, http, stop, running }
    }

    /// A client of gRPC. Fails when the handshake does; a service that wants another certificate may be found only by the
    /// first call.
    pub(super) async fn channel(
        &self,
        tls: ClientTlsConfig,
    ) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Channel::from_shared(format!("https://{}", self.grpc)).unwrap();
        endpoint.tls_config(tls)?.connect().await
    }

    /// Whether a client can connect and list the products.
    pub(super) async fn answers(&self, tls: ClientTlsConfig) -> bool {
        match self.channel(tls).await {
            Ok(channel) => lists(channel, WAIT_MAX).await,
            Err(_) => false,
        }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
    }
}

/// Whether a client can list the products within a deadline, as every client should have one. With TLS 1.3 a connection is
/// refused after the handshake of its client, so it may end while the client sends its first request. Then the client of
/// tonic can wait without an end: hyper 1.12 puts the request into a channel of tokio whose receiver is dropped at the same
/// moment (hyperium/hyper#4122), where it stays until the next call. Without this service, with a server that refuses every
/// handshake, 2 of 20,000 calls waited, and the next call of their channel ended them.
pub(super) async fn lists(channel: Channel, deadline: Duration) -> bool {
    let mut client = InventoryServiceClient::new(channel);
    let listed = timeout(deadline, client.list_products(ListProductsRequest::default())).await;
    matches!(listed, Ok(Ok(_)))
}

/// A client that speaks these versions, trusts this authority, offers this protocol, and presents this certificate. With
/// the same configuration, it resumes sessions.
pub(super) fn client_config(
    versions: &[&'static SupportedProtocolVersion],
    authority: &Authority,
    protocol: &str,
    identity: Option<&Issued>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.file()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let chain = vec![CertificateDer::from_pem_file(&issued.certificate).unwrap()];
            let key = PrivateKeyDer::from_pem_file(&issued.key).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.into()];
    Arc::new(config)
}

/// The handshake with the address that was connected to.
pub(super) async fn handshake(
    stream: TcpStream,
    config: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
    TlsConnector::from(config).connect(name, stream).await
}

/// A connection that trusts this authority, and offers this protocol.
pub(super) async fn connect(
    address: SocketAddr,
    authority: &Authority,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = client_config(ALL_VERSIONS, authority, protocol, None);
    handshake(TcpStream::connect(address).await?, config).await
}

/// The answer to the last request of a connection.
pub(super) async fn ask(stream: &mut TlsStream<TcpStream>, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The answer of the HTTP listener.
pub(super) async fn https(
    address: SocketAddr,
    authority: &Authority,
    path: &str,
) -> std::io::Result<String> {
    ask(&mut connect(address, authority, "http/1.1").await?, path).await
}

/// The value of this metric of a listener.
async fn metric(http: SocketAddr, authority: &Authority, name: &str, listener: &str) -> u64 {
    let metrics = https(http, authority, "/metrics").await.unwrap();
    let start = format!("{name}{{");
    let label = format!("listener=\"{listener}\"");
    let line = metrics.lines().find(|line| line.starts_with(&start) && line.contains(&label));
    line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap()
}

pub(super) fn request(user: &str) -> ReserveUnitRequest {
    ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: user.to_owned(),
        request_id: "r".to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_with_tls_serve_clients_that_verify_them_and_refuse_others() {
    let env = TestEnv::new().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let server = authority.issue("server", &["127.0.0.1", "shop.example"], Validity::Now);
    let service = SecureService::start(&env, &server, &[]).await;
    let channel = service.channel(authority.trusted_by_client("shop.example")).await.unwrap();
    let mut client = InventoryServiceClient::new(channel);
    let answer = client.reserve_unit(request("ann")).await.unwrap().into_inner();
    assert_eq!(answer.remaining, 999_999);
    let healthy = https(service.http, &authority, "/healthz").await.unwrap();
    assert!(healthy.starts_with("HTTP/1.1 200 OK"), "{healthy}");

    assert!(!service.answers(other.trusted_by_client("shop.example")).await, "another authority");
    assert!(!service.answers(authority.trusted_by_client("bank.example")).await, "another name");
    let plain = Channel::from_shared(format!("http://{}", service.grpc)).unwrap();
    let listed = match plain.connect().await {
        Ok(channel) => lists(channel, WAIT_MAX).await,
        Err(_) => false,
    };
    assert!(!listed, "a client without TLS is answered");
    let mut plain = TcpStream::connect(service.http).await.unwrap();
    plain
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // An alert of TLS, or nothing if the connection was reset.
    let _ended = plain.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.contains("HTTP"), "{answer}");
    for (address, protocol) in [(service.grpc, "http/1.1"), (service.http, "h2")] {
        let refused = connect(address, &authority, protocol).await.unwrap_err().to_string();
        assert!(refused.contains("NoApplicationProtocol"), "{refused}");
    }
    eventually("the failed handshakes are counted", async || {
        let name = "yoink_tls_handshake_failures_total";
        (metric(service.http, &authority, name, "grpc").await >= 4).then_some(())
    })
    .await;
    env.assert_audit_holds().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_certificate_of_the_service_is_refused_by_its_clients() {
    let env = TestEnv::new().await;
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"], Validity::Expired);
    let service = SecureService::start(&env, &server, &[]).await;
    let refused = connect(service.grpc, &authority, "h2").await.unwrap_err().to_string();
    assert!(refused.contains("expired"), "{refused}");
    service.stop().await;
    let (cert, key) = server.texts();
    let settings = [("tls_cert_file", cert), ("tls_key_file", key)];
    let done = block_in_place(|| run_yoink_with(&env, &settings, &["config", "check"]));
    let printed = String::from_utf8(done.stdout).unwrap();
    assert!(printed.contains("# warning: the certificate of tls_cert_file"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_finish_their_handshake_delay_no_others_and_are_limited() {
    let env = TestEnv::new().await;
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let service = SecureService::start(&env, &server, &[("connections_max", "3")]).await;
    let silent = || async { TcpStream::connect(service.grpc).await.unwrap() };
    let mut unfinished = vec![silent().await, silent().await];
    let channel = service.channel(authority.trusted_by_client("127.0.0.1")).await.unwrap();
    let mut client = InventoryServiceClient::new(channel);
    client.reserve_unit(request("ann")).await.unwrap();
    eventually("connections without a handshake count towards the limit", async || {
        unfinished.push(silent().await);
        let name = "yoink_connections_limited_total";
        (metric(service.http, &authority, name, "grpc").await > 0).then_some(())
    })
    .await;
    // They are closed after the time limit of the handshake, which is not measured here.
    for mut stream in unfinished {
        let closed = tokio::time::timeout(WAIT_MAX, stream.read(&mut [0; 1])).await;
        assert_eq!(closed.unwrap().unwrap_or(0), 0);
    }
    client.reserve_unit(request("bob")).await.unwrap();
    service.stop().await;
}

/// Asks for far more than the buffers of a connection hold, and reads nothing. Returns the connection and the requests.
async fn client_that_does_not_read(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> (TlsStream<TcpStream>, usize) {
    const REQUESTS: usize = 1_000;
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = handshake(stream, config).await.unwrap();
    let requests = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(REQUESTS);
    stream.write_all(requests.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    (stream, REQUESTS)
}

#[tokio::test(flavor = "multi_thread")]
async fn http_connections_whose_clients_do_not_read_are_ended_for_newer_ones() {
    let env = TestEnv::new().await;
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let service = SecureService::start(&env, &server, &[]).await;
    let config = client_config(ALL_VERSIONS, &authority, "http/1.1", None);
    let mut unread = Vec::new();
    for _ in 0..3 {
        unread.push(client_that_does_not_read(service.http, config.clone()).await);
    }
    let mut idle = Vec::new();
    for _ in 0..70 {
        idle.push(connect(service.http, &authority, "http/1.1").await.unwrap());
    }
    // Each request for the metrics is one more connection, which ends the oldest; that one is counted until it has ended.
    eventually("there are no more connections than the limit", async || {
        let open = metric(service.http, &authority, "yoink_connections", "http").await;
        (open <= 64).then_some(())
    })
    .await;
    for (mut stream, requests) in unread {
        let (mut answers, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        // It ends with an error, too: the service has not read all requests.
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            answers.extend_from_slice(&buffer[..read]);
        }
        let answers = String::from_utf8_lossy(&answers).matches("HTTP/1.1 200").count();
        assert!(answers < requests, "all of {requests} requests were answered");
    }
    drop(idle);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_reported_by_config_check_and_refuse_a_start() {
    let env = TestEnv::new().await;
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let other = authority.issue("other", &["127.0.0.1"], Validity::Now);
    let (cert, key) = server.texts();
    let empty = authority.dir().join("empty.pem");
    std::fs::write(&empty, "nothing\n").unwrap();
    let empty = empty.to_str().unwrap();
    let cert_key = |cert, key| vec![("tls_cert_file", cert), ("tls_key_file", key)];
    let with_ca = |ca| {
        let auth = [("tls_client_ca_file", ca), ("grpc_client_auth", "required")];
        [cert_key(cert, key), auth.to_vec()].concat()
    };
    for (settings, why) in [
        (
            cert_key("/no/such.pem", key),
            "tls_cert_file cannot be used: /no/such.pem cannot be read",
        ),
        (
            cert_key(cert, "/no/such.key"),
            "tls_key_file cannot be used: /no/such.key cannot be read",
        ),
        (cert_key(empty, key), "has no certificate in PEM format"),
        (cert_key(cert, empty), "has no private key in PEM format"),
        (cert_key(cert, other.texts().1), "is not the key of the certificate in tls_cert_file"),
        (with_ca(empty), "tls_client_ca_file cannot be used"),
    ] {
        for args in [&["config", "check"][..], &["serve"]] {
            let done = block_in_place(|| run_yoink_with(&env, &settings, args));
            let message = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(2), "{message}");
            assert!(message.contains(why), "{why}: {message}");
            assert!(!message.contains("PRIVATE KEY-----"), "{message}");
        }
    }
    let done = block_in_place(|| run_yoink_with(&env, &cert_key(cert, key), &["config", "check"]));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn load_generator_verifies_the_service_and_presents_its_certificate() {
    let env = TestEnv::new().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let client = authority.issue("client", &["load.example"], Validity::Now);
    let (ca, other_ca) = (authority.file(), other.file());
    let settings = [("tls_client_ca_file", ca.as_str()), ("grpc_client_auth", "required")];
    let service = SecureService::start(&env, &server, &settings).await;
    let target = service.grpc.to_string();
    let run = |flags: &[&str]| {
        let args = ["load", "--target", &target, "--products", "shoe", "--calls", "100"];
        let done = block_in_place(|| run_yoink_with(&env, &[], &[&args, flags].concat()));
        let printed = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        (done.status.code().unwrap(), printed)
    };
    let (cert, key) = client.texts();
    let metrics = format!("https://{}/metrics", service.http);
    let identity = ["--tls-cert", cert, "--tls-key", key, "--metrics-url", &metrics];
    let (code, printed) = run(&[&["--tls-ca", ca.as_str()], identity.as_slice()].concat());
    assert_eq!(code, 0, "{printed}");
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 100, "{printed}");
    let (code, printed) = run(&[&["--tls-ca", other_ca.as_str()], identity.as_slice()].concat());
    assert!(code == 2 && printed.contains("UnknownIssuer"), "{printed}");
    service.stop().await;
}
