//! The public keys of JWTs from a URL: fetched, kept, and replaced.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
    time::timeout,
};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use yoink::{
    app::Role,
    tls::{ClientAuth, Identity, PemFile, ServerTls},
};

use super::{
    REQUIRED, answer, assert_refused, list,
    signer::{Signer, claims},
};
use crate::harness::{Authority, Service, TestEnv, Validity, WAIT_MAX, eventually, get};

/// What the server of an identity provider answers.
#[derive(Clone)]
enum Answers {
    Keys(Vec<Value>),
    /// It closes each connection without an answer.
    Nothing,
    /// It answers with this status and this body.
    Other(u16, String),
}

/// The server of an identity provider.
struct KeyServer {
    address: SocketAddr,
    answers: Arc<Mutex<Answers>>,
    requests: watch::Receiver<usize>,
    _task: AbortOnDropHandle<()>,
}

impl KeyServer {
    async fn start(answers: Answers, tls: Option<ServerTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(Mutex::new(answers));
        let (counter, requests) = watch::channel(0);
        let shared = answers.clone();
        let task = TaskTracker::new().spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                match &tls {
                    None => reply(stream, &shared).await,
                    // A client that refuses the certificate ends the handshake.
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            reply(stream, &shared).await;
                        }
                    }
                }
                counter.send_modify(|count| *count += 1);
            }
        });
        Self { address, answers, requests, _task: AbortOnDropHandle::new(task) }
    }

    fn set(&self, answers: Answers) {
        *self.answers.lock().unwrap() = answers;
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}/keys?v=1", self.address)
    }

    /// Waits until as many connections as this were answered, from the first one on.
    async fn answered(&self, count: usize) {
        let mut requests = self.requests.clone();
        let answered = timeout(WAIT_MAX, requests.wait_for(|answered| *answered >= count)).await;
        assert!(answered.is_ok(), "the server was asked less often than {count} times");
    }
}

async fn reply(mut stream: impl AsyncRead + AsyncWrite + Unpin, answers: &Mutex<Answers>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    assert!(request.starts_with(b"GET /keys?v=1 HTTP/1.1\r\n"), "{}", request.escape_ascii());
    let answers = answers.lock().unwrap().clone();
    let (status, body) = match answers {
        Answers::Keys(keys) => (200, json!({"keys": keys}).to_string()),
        Answers::Nothing => return,
        Answers::Other(status, body) => (status, body),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} x\r\nlocation: /other\r\ncontent-length: {length}\r\n\r\n");
    // A client may have gone.
    drop(stream.write_all(format!("{head}{body}").as_bytes()).await);
    drop(stream.flush().await);
    drop(stream.shutdown().await);
}

async fn serve(env: &TestEnv, url: &str, more: &[(&'static str, &str)]) -> Service {
    let settings = [
        REQUIRED,
        ("jwt_jwks_url", url),
        ("jwt_issuer", "https://id.example"),
        ("jwt_audience", "yoink"),
    ];
    env.serve(Role::Api, &[&settings, more].concat()).await
}

fn token(signer: &Signer, id: &str) -> String {
    let header = json!({"alg": signer.algorithm(), "kid": id});
    signer.token_with(&header, &claims(json!({})))
}

#[tokio::test(flavor = "multi_thread")]
async fn new_key_is_fetched_when_a_jwt_names_it() {
    let env = TestEnv::new().await;
    let (old, new) = (Signer::ec(), Signer::ec());
    let server = KeyServer::start(Answers::Keys(vec![old.jwk("a")]), None).await;
    let service = serve(&env, &server.url("http"), &[]).await;
    let (old_token, new_token) = (token(&old, "a"), token(&new, "b"));
    list(service.channel(), Some(&old_token)).await.unwrap();
    server.set(Answers::Keys(vec![old.jwk("a"), new.jwk("b")]));
    // The interval is 5 minutes: the keys are fetched because of the first of these calls.
    eventually("the new key is used", async || {
        list(service.channel(), Some(&old_token)).await.unwrap();
        list(service.channel(), Some(&new_token)).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_in_use_while_their_server_gives_none() {
    let env = TestEnv::new().await;
    let (old, new) = (Signer::ec(), Signer::ec());
    let keeps = async |broken: Answers| {
        let server = KeyServer::start(Answers::Keys(vec![old.jwk("a")]), None).await;
        let service = serve(&env, &server.url("http"), &[]).await;
        server.set(broken);
        assert_refused(list(service.channel(), Some(&token(&new, "b"))).await, "unknown key");
        // The third attempt begins after the second one has failed.
        server.answered(3).await;
        list(service.channel(), Some(&token(&old, "a"))).await.unwrap();
        server.set(Answers::Keys(vec![new.jwk("b")]));
        eventually("the new key is used", async || {
            list(service.channel(), Some(&token(&new, "b"))).await.ok()
        })
        .await;
    };
    // Without the check of the status, the old key would be dropped.
    let keys = json!({"keys": [new.jwk("b")]}).to_string();
    let broken = [
        Answers::Nothing,
        Answers::Other(500, keys.clone()),
        Answers::Other(302, keys),
        Answers::Other(200, "not json".to_owned()),
        Answers::Other(200, r#"{"error": "none"}"#.to_owned()),
        Answers::Other(200, " ".repeat(1024 * 1024 + 1)),
    ];
    join_all(broken.into_iter().map(keeps)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn withdrawn_key_is_refused_also_if_no_other_key_is_left() {
    let env = TestEnv::new().await;
    let (old, new) = (Signer::ec(), Signer::ec());
    let (old_token, new_token) = (token(&old, "a"), token(&new, "b"));
    // A key without an id cannot be used.
    let mut unusable = new.jwk("b");
    unusable.as_object_mut().unwrap().remove("kid");
    let withdraws = async |left: Vec<Value>| {
        let server = KeyServer::start(Answers::Keys(vec![old.jwk("a")]), None).await;
        let service = serve(&env, &server.url("http"), &[]).await;
        list(service.channel(), Some(&old_token)).await.unwrap();
        server.set(Answers::Keys(left));
        assert_refused(list(service.channel(), Some(&new_token)).await, "unknown key");
        // The token was verified before, and is refused nevertheless.
        let refused = eventually("the old key is dropped", async || {
            list(service.channel(), Some(&old_token)).await.err()
        });
        assert_refused(Err(refused.await), "withdrawn");
        let ready = get(service.http, "/readyz").await;
        assert!(ready.contains("200") && ready.contains("no usable key"), "{ready}");
        server.set(Answers::Keys(vec![new.jwk("b")]));
        eventually("the new key is used", async || {
            list(service.channel(), Some(&new_token)).await.ok()
        })
        .await;
        let ready = get(service.http, "/readyz").await;
        assert!(!ready.contains("no usable key"), "{ready}");
    };
    join_all([Vec::new(), vec![unusable]].into_iter().map(withdraws)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_does_not_need_the_server_and_jwts_are_unavailable_until_it_answers() {
    let env = TestEnv::new().await;
    let signer = Signer::ec();
    let server = KeyServer::start(Answers::Nothing, None).await;
    let service = serve(&env, &server.url("http"), &[]).await;
    let token = token(&signer, "a");
    let called = list(service.channel(), Some(&token)).await.unwrap_err();
    assert_eq!(called.code(), tonic::Code::Unavailable);
    // Envoy repeats a call that states `no`, which would not help here.
    assert_eq!(called.metadata().get("x-yoink-applied"), None);
    assert_eq!(answer::<()>(Err(called)), "AUTHENTICATION_UNAVAILABLE");
    for wrong in ["garbage", "a.b.c"] {
        assert_refused(list(service.channel(), Some(wrong)).await, wrong);
    }
    let ready = get(service.http, "/readyz").await;
    assert!(ready.contains("503") && ready.contains("JWTs are refused"), "{ready}");
    server.set(Answers::Keys(vec![signer.jwk("a")]));
    eventually("the keys are used", async || list(service.channel(), Some(&token)).await.ok())
        .await;
    let ready = get(service.http, "/readyz").await;
    assert!(!ready.contains("JWTs are refused"), "{ready}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_must_have_a_certificate_for_its_name_by_an_authority_of_the_settings() {
    let env = TestEnv::new().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let signer = Signer::ec();
    let ca = authority.file();
    for (issuer, name, accepted) in [
        (&authority, "127.0.0.1", "OK"),
        (&authority, "id.example", "AUTHENTICATION_UNAVAILABLE"),
        (&other, "127.0.0.1", "AUTHENTICATION_UNAVAILABLE"),
    ] {
        let issued = issuer.issue("server", &[name], Validity::Now);
        let identity = Identity::new(
            PemFile::new("tls_cert_file", &issued.certificate),
            PemFile::new("tls_key_file", &issued.key),
        );
        let tls = ServerTls::load(identity, ClientAuth::None, None, "http/1.1").unwrap();
        let server = KeyServer::start(Answers::Keys(vec![signer.jwk("a")]), Some(tls)).await;
        let settings = [("jwt_jwks_ca_file", ca.as_str())];
        let service = serve(&env, &server.url("https"), &settings).await;
        server.answered(1).await;
        let called = list(service.channel(), Some(&token(&signer, "a"))).await;
        assert_eq!(answer(called), accepted, "{name}");
        service.stop().await;
    }
}
