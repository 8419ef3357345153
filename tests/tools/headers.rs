//! Headers at the edge: idempotency keys, times to wait, HEAD, and requests that cannot be read.

use std::process::Command;

use http::{HeaderMap, Method, Request, header::HeaderValue};
use http_body_util::Full;
use prost::Message as _;
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, transport::Channel};
use yoink::{
    app::Role,
    grpc::pb::{
        ReserveUnitRequest, ReserveUnitResponse, inventory_service_client::InventoryServiceClient,
    },
};

use crate::{
    envoy::{Answer, Envoy},
    harness::{Bought, TestEnv, eventually, product},
};

fn shoe() -> ReserveUnitRequest {
    let (product_id, user_id) = ("shoe".to_owned(), "ann".to_owned());
    ReserveUnitRequest { product_id, user_id, ..Default::default() }
}

/// Posts a body with the header, once for each key.
async fn post(envoy: &Envoy, path: &str, body: &str, keys: &[&[u8]]) -> Answer {
    let request = Request::post(format!("http://{}{path}", envoy.address));
    let mut request = request.header("content-type", "application/json");
    for key in keys {
        request = request.header("idempotency-key", HeaderValue::from_bytes(key).unwrap());
    }
    let (parts, body) = envoy.send(request.body(Full::from(body.to_owned())).unwrap()).await;
    let body = serde_json::from_slice(&body).unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// The fields that a refusal names.
fn fields(answer: &Answer) -> Vec<&str> {
    assert_eq!((answer.status.as_u16(), &answer.body["code"]), (400, &json!(3)), "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    let violations = answer.detail("BadRequest")["fieldViolations"].as_array();
    let violations = violations.into_iter().flatten();
    violations.map(|violation| violation["field"].as_str().unwrap()).collect()
}

async fn channel(envoy: &Envoy) -> Channel {
    let channel = Channel::from_shared(format!("http://{}", envoy.address)).unwrap();
    channel.connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_takes_one_unit_over_rest_grpc_and_grpc_web() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 10)).await;
    let order = json!({ "productId": "shoe", "userId": "ann" }).to_string();
    let first = post(&envoy, "/v1/reservations", &order, &[b"order-1"]).await;
    assert_eq!((first.status.as_u16(), &first.body["duplicate"]), (202, &json!(false)));
    let id = first.body["reservation"]["reservationId"].as_str().unwrap();
    for key in ["order-1", "\"order-1\""] {
        let again = post(&envoy, "/v1/reservations", &order, &[key.as_bytes()]).await;
        let reservation = &again.body["reservation"];
        assert_eq!((again.status.as_u16(), &reservation["reservationId"]), (200, &json!(id)));
        assert_eq!(reservation["requestId"], json!("order-1"));
    }
    let again = post(&envoy, "/orders", &order, &[b"order-1"]).await;
    assert_eq!((again.status.as_u16(), &again.body["reservationId"]), (202, &json!(id)));
    let both = json!({ "productId": "shoe", "userId": "ann", "requestId": "order-1" });
    let again = post(&envoy, "/v1/reservations", &both.to_string(), &[b"order-1"]).await;
    assert_eq!(again.body["reservation"]["reservationId"], json!(id), "both, and equal");

    let mut native = tonic::Request::new(shoe());
    native.metadata_mut().insert("idempotency-key", "order-1".parse().unwrap());
    let mut buyers = InventoryServiceClient::new(channel(&envoy).await);
    let again = Bought::from(buyers.reserve_unit(native).await.unwrap().into_inner());
    assert_eq!((again.reservation_id.as_str(), again.duplicate), (id, true));

    let message = shoe().encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    let path = "/yoink.v1.InventoryService/ReserveUnit";
    let web = Request::post(format!("http://{}{path}", envoy.address))
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .header("idempotency-key", "order-1")
        .body(Full::from(frame))
        .unwrap();
    let (_, body) = envoy.send(web).await;
    let length = usize::try_from(u32::from_be_bytes(body[1..5].try_into().unwrap())).unwrap();
    let again = Bought::from(ReserveUnitResponse::decode(&body[5..5 + length]).unwrap());
    assert_eq!((again.reservation_id.as_str(), again.duplicate), (id, true));
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (9, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_conflicting_idempotency_key_is_refused_by_field() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 10)).await;
    let long = "x".repeat(1000);
    let order = json!({ "productId": "shoe", "userId": "ann" }).to_string();
    for path in ["/v1/reservations", "/orders"] {
        for keys in [
            [b"".as_slice()].as_slice(),
            &[b"a b"],
            &[b"\"a"],
            &["schlüssel".as_bytes()],
            &[b"\xff"],
            &[long.as_bytes()],
            &[b"a", b"b"],
        ] {
            let refused = post(&envoy, path, &order, keys).await;
            assert_eq!(fields(&refused), ["idempotency-key"], "{keys:?}");
        }
        let other = json!({ "productId": "shoe", "userId": "ann", "requestId": "a" });
        let refused = post(&envoy, path, &other.to_string(), &[b"b"]).await;
        assert_eq!(fields(&refused), ["request_id"]);
    }
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].stock, 10, "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_allows_the_idempotency_key_and_exposes_retry_after() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    let request = Request::options(format!("http://{}/orders", envoy.address))
        .header("origin", "http://localhost:3000")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "idempotency-key")
        .body(Full::default())
        .unwrap();
    let headers = envoy.send(request).await.0.headers;
    let lists = |headers: &HeaderMap, name: &str, word: &str| {
        headers[name].to_str().unwrap().split(", ").any(|listed| listed == word)
    };
    assert!(lists(&headers, "access-control-allow-headers", "idempotency-key"));
    assert!(lists(&headers, "access-control-allow-methods", "HEAD"));
    let request = Request::get(format!("http://{}/products", envoy.address))
        .header("origin", "http://localhost:3000")
        .body(Full::default())
        .unwrap();
    let headers = envoy.send(request).await.0.headers;
    for exposed in ["retry-after", "grpc-retry-pushback-ms"] {
        assert!(lists(&headers, "access-control-expose-headers", exposed), "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_429_and_unavailable_is_503_with_retry_after() {
    let mut env = TestEnv::with_own_redis().await;
    let settings = [("backlog_max_entries", "1"), ("recovery", "manual")];
    let service = env.serve(Role::Api, &settings).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 9)).await;
    assert_eq!(envoy.buy("shoe", "ann", "").await.status.as_u16(), 202);
    let full = envoy.buy("shoe", "ann", "").await;
    assert_eq!((full.status.as_u16(), full.reason()), (429, "BACKLOG_FULL"));
    assert_eq!(full.detail("RetryInfo")["retryDelay"], "5s");
    assert_eq!(full.headers["retry-after"], "5");
    assert_eq!(full.headers["grpc-retry-pushback-ms"], "5000");
    env.redis.as_mut().unwrap().kill();
    env.redis.as_mut().unwrap().restart().unwrap();
    let fenced = eventually("Redis is back, and fenced", async || {
        let answer = envoy.buy("shoe", "ann", "r").await;
        (answer.reason() == "RECOVERING").then_some(answer)
    })
    .await;
    assert_eq!(fenced.status.as_u16(), 503);
    assert_eq!(fenced.headers["retry-after"], "1");
    let missing = envoy.get("/v1/products/nothing").await;
    assert_eq!(missing.status.as_u16(), 404);
    assert!(missing.headers.get("retry-after").is_none(), "waiting does not help");
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_answers_for_an_unavailable_service_with_retry_after() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    let mut buyers = InventoryServiceClient::new(channel(&envoy).await);
    service.stop().await;
    let down = envoy.buy("shoe", "ann", "r").await;
    assert_eq!((down.status.as_u16(), &down.body["code"]), (503, &json!(14)));
    assert_eq!(down.headers["retry-after"], "1");
    let status = buyers.reserve_unit(shoe()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
}

async fn head_and_body(envoy: &Envoy, method: Method, path: &str) -> (HeaderMap, u16, usize) {
    let request = Request::builder().method(method).uri(format!("http://{}{path}", envoy.address));
    let (parts, body) = envoy.send(request.body(Full::default()).unwrap()).await;
    let mut headers = parts.headers;
    for changing in ["date", "x-envoy-upstream-service-time"] {
        headers.remove(changing);
    }
    (headers, parts.status.as_u16(), body.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn head_answers_like_get_without_the_body() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 5)).await;
    let bought = service.buy("shoe", "ann", "").await.unwrap();
    env.assert_audit_holds().await;
    let reservation = format!("/v1/reservations/{}", bought.reservation_id);
    for (path, status) in [
        ("/products", 200),
        ("/v1/products", 200),
        ("/v1/products/shoe", 200),
        (reservation.as_str(), 200),
        ("/v1/products/nothing", 404),
        ("/v1/products?pageSize=-1", 400),
        ("/nonsense", 404),
        // Only POST is there.
        ("/orders", 404),
        ("/v1/reservations", 404),
    ] {
        let head = head_and_body(&envoy, Method::HEAD, path).await;
        let get = head_and_body(&envoy, Method::GET, path).await;
        assert_eq!((head.1, head.2), (status, 0), "{path}");
        assert_eq!((head.0, head.1), (get.0, get.1), "{path}");
        let url = format!("http://{}{path}", envoy.address);
        let curl = Command::new("curl").args(["-sS", "--max-time", "60", "-I", &url]).output();
        let curl = curl.unwrap();
        assert!(curl.status.success(), "{path}: {}", String::from_utf8_lossy(&curl.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_is_reusable_after_a_head_request() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 5)).await;
    for path in ["/products", "/v1/products", "/v1/products/nothing", "/nonsense", "/orders"] {
        let mut connection = tokio::net::TcpStream::connect(envoy.address).await.unwrap();
        let requests = format!(
            "HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n\
             GET /v1/products/shoe HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        );
        connection.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = String::new();
        connection.read_to_string(&mut answers).await.unwrap();
        let (_, second) = answers.split_once("\r\n\r\n").unwrap();
        assert!(second.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answers}");
        assert!(second.contains("{\"product\":{\"productId\":\"shoe\""), "{path}: {answers}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unparsable_request_names_the_field_without_echoing_input() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 5)).await;
    for (body, field) in [
        (r#"{"productId":5,"userId":"ann"}"#, "product_id"),
        (r#"{"product_id":true}"#, "product_id"),
        (r#"{"productId":"shoe","userId":1.5}"#, "user_id"),
        (r#"{"ack":"hostile\" \u202e text"}"#, "ack"),
        (r#"{"ack":{"hostile":1}}"#, "ack"),
    ] {
        let refused = post(&envoy, "/v1/reservations", body, &[]).await;
        assert_eq!(fields(&refused), [field], "{body}");
        assert_eq!(refused.reason(), "BAD_FIELD");
        assert!(!refused.body.to_string().contains("hostile"), "{refused:?}");
    }
    let long = "9".repeat(400);
    for (query, field) in [
        ("pageSize=abc", "page_size"),
        ("page_size=hostile", "page_size"),
        ("pageSize=99999999999", "page_size"),
        (&format!("pageSize={long}"), "page_size"),
        ("pageSize=-1", "page_size"),
        ("pageToken=hostile", "page_token"),
        ("nonsense=1", "nonsense"),
    ] {
        let refused = envoy.get(&format!("/v1/products?{query}")).await;
        assert_eq!(fields(&refused), [field], "{query}");
        assert!(!refused.body.to_string().contains("hostile"), "{refused:?}");
    }
    for body in [
        "{\"productId\":",
        "[]",
        "\"hostile\"",
        "{\"productId\":\"hostile\" \"b\":1}",
        "{\"userId\":[\"hostile\"]}",
        "{\"productId\":\"\\ud800 hostile\"}",
    ] {
        let refused = post(&envoy, "/v1/reservations", body, &[]).await;
        assert_eq!(fields(&refused), Vec::<&str>::new(), "{body}");
        assert_eq!(refused.reason(), "UNREADABLE_MESSAGE", "{body}");
        assert!(!refused.body.to_string().contains("hostile"), "{refused:?}");
    }
    let listed: Json = envoy.get("/products").await.body;
    assert_eq!(listed[0]["stock"], json!(5), "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_request_refused_by_envoy_has_the_error_format() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    let long = "x".repeat(20_000);
    for (name, value, status, code) in
        [("x-long", long.as_str(), 431, 11), ("under_score", "1", 400, 3)]
    {
        let request = Request::get(format!("http://{}/products", envoy.address));
        let request = request.header(name, value).body(Full::default()).unwrap();
        let (parts, body) = envoy.send(request).await;
        let body: Json = serde_json::from_slice(&body).unwrap();
        assert_eq!((parts.status.as_u16(), &body["code"]), (status, &json!(code)), "{name}");
    }
}
