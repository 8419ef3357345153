//! What a page in a browser can send to the gRPC listener without being allowed to by it.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header::CONTENT_TYPE};
use prost::Message as _;
use tokio::task::JoinSet;

use super::listeners::{SecureService, connect, request};
use crate::harness::{Authority, TestEnv, Validity};

#[tokio::test(flavor = "multi_thread")]
async fn content_types_that_a_page_may_send_without_being_asked_reach_no_call() {
    let env = TestEnv::new().await;
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let service = SecureService::start(&env, &server, &[]).await;
    let stream = connect(service.grpc, &authority, "h2").await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(async move { connection.await.unwrap() });
    let ask = async |method: Method, kind: Option<&str>, user: &str| {
        let uri = format!("https://{}/yoink.v1.InventoryService/ReserveUnit", service.grpc);
        let mut asked = Request::builder().method(method).uri(uri);
        asked = asked.header("origin", "https://other.example");
        if let Some(kind) = kind {
            asked = asked.header(CONTENT_TYPE, kind);
        }
        let mut client = client.clone().ready().await.unwrap();
        let (answer, mut body) = client.send_request(asked.body(()).unwrap(), false).unwrap();
        let message = request(user).encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let message = [&[0], length.as_slice(), &message].concat();
        // A request that is refused by its head may be answered before its message is sent.
        let _sent = body.send_data(Bytes::from(message), true);
        let answer = answer.await.unwrap();
        let allows = |headers: &HeaderMap| {
            headers.keys().any(|name| name.as_str().starts_with("access-control"))
        };
        assert!(!allows(answer.headers()), "{answer:?}");
        answer.status().as_u16()
    };
    for kind in [
        None,
        Some("text/plain"),
        Some("text/plain;charset=UTF-8"),
        Some("application/x-www-form-urlencoded"),
        Some("multipart/form-data; boundary=x"),
        Some("application/json"),
    ] {
        assert_eq!(ask(Method::POST, kind, "ann").await, 415, "{kind:?}");
    }
    // The question of a browser whether a page may send another content type.
    assert_eq!(ask(Method::OPTIONS, None, "ann").await, 415);
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 0);
    assert_eq!(ask(Method::POST, Some("application/grpc"), "bob").await, 200);
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 1);
    drop(client);
    service.stop().await;
}
