//! Certificates of clients: which are accepted, and that each connection is verified.

use rustls::{
    ALL_VERSIONS, HandshakeKind,
    version::{TLS12, TLS13},
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

use super::listeners::{SecureService, ask, client_config, handshake, https};
use crate::harness::{Authority, Issued, TestEnv, Validity, get};

/// Why the listener refuses a client with this certificate: the alert of TLS, which may follow the client's handshake.
async fn refusal(
    service: &SecureService,
    authority: &Authority,
    client: Option<&Issued>,
) -> String {
    let config = client_config(ALL_VERSIONS, authority, "h2", client);
    let stream = TcpStream::connect(service.grpc).await.unwrap();
    let refused = match handshake(stream, config).await {
        Ok(mut stream) => stream.read(&mut [0; 1]).await.map(drop),
        Err(error) => Err(error),
    };
    refused.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_are_verified_where_they_are_asked_for() {
    let env = TestEnv::new().await;
    let (authority, clients, other) = (Authority::new(), Authority::new(), Authority::new());
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let valid = clients.issue("valid", &["ann.example"], Validity::Now);
    let expired = clients.issue("expired", &["ann.example"], Validity::Expired);
    let foreign = other.issue("foreign", &["ann.example"], Validity::Now);
    let ca = clients.file();
    for (mode, without) in [("required", "CertificateRequired"), ("optional", "")] {
        let settings = [("tls_client_ca_file", ca.as_str()), ("grpc_client_auth", mode)];
        let service = SecureService::start(&env, &server, &settings).await;
        let with = [None, Some(&valid), Some(&expired), Some(&foreign)];
        let alerts = [without, "", "CertificateExpired", "UnknownCA"];
        for (issued, alert) in with.into_iter().zip(alerts) {
            let mut tls = authority.trusted_by_client("127.0.0.1");
            if let Some(issued) = issued {
                tls = tls.identity(issued.identity());
            }
            assert_eq!(service.answers(tls).await, alert.is_empty(), "{mode}: {issued:?}");
            if !alert.is_empty() {
                let refused = refusal(&service, &authority, issued).await;
                assert!(refused.contains(alert), "{mode}: {refused}");
            }
        }
        // The other listener does not ask.
        let healthy = https(service.http, &authority, "/healthz").await.unwrap();
        assert!(healthy.starts_with("HTTP/1.1 200 OK"), "{healthy}");
        service.stop().await;
    }
    let settings = [("tls_client_ca_file", ca.as_str()), ("http_client_auth", "required")];
    let service = SecureService::start(&env, &server, &settings).await;
    assert!(https(service.http, &authority, "/metrics").await.is_err(), "without a certificate");
    assert!(service.answers(authority.trusted_by_client("127.0.0.1")).await);
    service.stop().await;
    let service = SecureService::start(&env, &server, &[("http_tls", "off")]).await;
    let healthy = get(service.http, "/healthz").await;
    assert!(healthy.starts_with("HTTP/1.1 200 OK"), "{healthy}");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_presents_its_certificate_for_each_connection() {
    let env = TestEnv::new().await;
    let (authority, clients) = (Authority::new(), Authority::new());
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let client = clients.issue("client", &["ann.example"], Validity::Now);
    let ca = clients.file();
    // Without a certificate of the client, the second connection resumes: so these clients can.
    for (mode, second) in [
        ("none", HandshakeKind::Resumed),
        ("optional", HandshakeKind::Full),
        ("required", HandshakeKind::Full),
    ] {
        let settings = [("http_client_auth", mode), ("tls_client_ca_file", ca.as_str())];
        let given = if mode == "none" { &settings[..1] } else { &settings[..] };
        let service = SecureService::start(&env, &server, given).await;
        for version in [&TLS12, &TLS13] {
            let config = client_config(&[version], &authority, "http/1.1", Some(&client));
            for kind in [HandshakeKind::Full, second] {
                let stream = TcpStream::connect(service.http).await.unwrap();
                let mut stream = handshake(stream, config.clone()).await.unwrap();
                let found = stream.get_ref().1.handshake_kind();
                assert_eq!(found, Some(kind), "{mode}, {version:?}");
                // The answer follows the tickets of the session.
                let healthy = ask(&mut stream, "/healthz").await.unwrap();
                assert!(healthy.starts_with("HTTP/1.1 200 OK"), "{mode}: {healthy}");
            }
        }
        service.stop().await;
    }
}
