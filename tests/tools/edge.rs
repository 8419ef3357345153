//! Native gRPC, gRPC-Web and CORS through the edge, and the calls that it refuses.

use http::{Method, Request};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message as _;
use serde_json::json;
use tonic::{Code, transport::Channel};
use yoink::{
    app::Role,
    grpc::pb::{
        AuditRequest, ListStorefrontRequest, ReserveUnitRequest, ReserveUnitResponse,
        admin_service_client::AdminServiceClient, inventory_service_client::InventoryServiceClient,
        storefront_service_client::StorefrontServiceClient,
    },
};

use crate::{
    envoy::Envoy,
    harness::{TestEnv, product, reason},
};

fn shoe(user: &str) -> ReserveUnitRequest {
    ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: user.to_owned(),
        request_id: "r".to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn native_grpc_passes_unchanged_and_operator_calls_are_refused() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 1)).await;
    let channel = Channel::from_shared(format!("http://{}", envoy.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut buyers = InventoryServiceClient::new(channel.clone());
    let bought = buyers.reserve_unit(shoe("ann")).await.unwrap().into_inner();
    assert_eq!(bought.remaining, 0);
    let status = buyers.reserve_unit(shoe("bob")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "SOLD_OUT"));
    let mut storefront = StorefrontServiceClient::new(channel.clone());
    let mut items =
        storefront.list_storefront(ListStorefrontRequest {}).await.unwrap().into_inner();
    assert_eq!(items.message().await.unwrap().unwrap().id, "shoe");
    assert!(items.message().await.unwrap().is_none());
    let refused =
        AdminServiceClient::new(channel).audit(AuditRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_web_calls_pass() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 5)).await;
    let message = shoe("ann").encode_to_vec();
    // A frame: no compression, the length, the message.
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    let uri = format!("http://{}/yoink.v1.InventoryService/ReserveUnit", envoy.address);
    let request = Request::post(uri)
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .body(Full::from(frame))
        .unwrap();
    let (parts, body) = envoy.send(request).await;
    assert_eq!(parts.status.as_u16(), 200, "not 202: that is for REST");
    assert_eq!(parts.headers["content-type"], "application/grpc-web+proto");
    let length = usize::try_from(u32::from_be_bytes(body[1..5].try_into().unwrap())).unwrap();
    let answer = ReserveUnitResponse::decode(&body[5..5 + length]).unwrap();
    assert_eq!(answer.remaining, 4);
    let trailers = String::from_utf8_lossy(&body[5 + length + 5..]).into_owned();
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_routes_are_refused_in_the_error_format() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 5)).await;
    for (path, status, code) in
        [("/nonsense", 404, 5), ("/v1/products?nonsense=1", 400, 3), ("/v1/orders", 404, 5)]
    {
        let answer = envoy.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["code"]),
            (status, &json!(code)),
            "{path}"
        );
    }
    let send = async |method: Method, path: &str, body: String| {
        let uri = format!("http://{}{path}", envoy.address);
        let request = Request::builder().method(method).uri(uri);
        let request = request.header("content-type", "application/json");
        envoy.send(request.body(Full::from(body)).unwrap()).await.0.status.as_u16()
    };
    assert_eq!(send(Method::DELETE, "/v1/products", String::new()).await, 404);
    assert_eq!(send(Method::POST, "/orders", "{\"productId\":".to_owned()).await, 400);
    assert_eq!(send(Method::POST, "/orders", "x".repeat(20_000)).await, 413);
    assert_eq!(envoy.get("/products").await.body[0]["stock"], json!(5), "nothing was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_allows_pages_of_this_machine_and_no_others() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    let preflight = async |origin: &str| {
        let request = Request::options(format!("http://{}/orders", envoy.address))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .body(Full::default())
            .unwrap();
        envoy.send(request).await.0.headers.get("access-control-allow-origin").cloned()
    };
    assert_eq!(preflight("http://localhost:3000").await.unwrap(), "http://localhost:3000");
    assert_eq!(preflight("https://evil.example").await, None);
}

/// What a page sends without asking first has one of three content types, or none.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_and_other_content_types_reach_no_call() {
    const HERE: &str = "http://localhost:3000";
    const ELSEWHERE: &str = "https://evil.example";
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 5)).await;
    let order = json!({ "productId": "shoe", "userId": "ann", "requestId": "r" }).to_string();
    let send = async |address, (method, path): (&str, &str), body: &str, headers: &[_]| {
        let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, body) = envoy.send(request.body(Full::from(body.to_owned())).unwrap()).await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let code = body.get("code").cloned();
        (parts.status.as_u16(), code.map_or(0, |code| code.as_u64().unwrap()))
    };
    let json = ("content-type", "application/json");
    let others = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""];
    for (address, call, body, here) in [
        (envoy.address, ("POST", "/v1/reservations"), order.as_str(), Some(HERE)),
        (envoy.address, ("POST", "/orders"), &order, Some(HERE)),
        (envoy.operators, ("POST", "/v1/admin/products/shoe/restock"), r#"{"units": "1"}"#, None),
        (envoy.operators, ("PATCH", "/v1/admin/products/shoe"), r#"{"name": "Hat"}"#, None),
    ] {
        for origin in [ELSEWHERE, "null", "http://localhost.evil.example", ""] {
            let found = send(address, call, body, &[("origin", origin), json]).await;
            assert_eq!(found, (403, 7), "{call:?} of a page of {origin:?}");
        }
        for other in others {
            let mut headers = vec![("content-type", other)];
            headers.extend(here.map(|here| ("origin", here)));
            assert_eq!(send(address, call, body, &headers).await, (415, 3), "{call:?} as {other}");
        }
        assert_eq!(send(address, call, body, &[]).await, (415, 3), "{call:?} without a type");
    }
    let restock = ("POST", "/v1/admin/products/shoe/restock");
    assert_eq!(send(envoy.operators, restock, "{}", &[("origin", HERE), json]).await, (403, 7));
    assert_eq!(envoy.get("/v1/products/shoe").await.body["product"]["stock"], json!("5"));
    let utf8 = ("content-type", "Application/JSON; charset=utf-8");
    let page = [("origin", HERE), utf8];
    let found = send(envoy.address, ("POST", "/v1/reservations"), &order, &page).await;
    assert_eq!(found, (202, 0), "a page of this machine");
    let delivery = r#"{"units": "1", "requestId": "delivery-1"}"#;
    assert_eq!(send(envoy.operators, restock, delivery, &[utf8]).await, (200, 0));
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_service_is_503_in_the_error_format() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.stop().await;
    let answer = envoy.buy("shoe", "ann", "r").await;
    assert_eq!((answer.status.as_u16(), &answer.body["code"]), (503, &json!(14)));
}

#[tokio::test(flavor = "multi_thread")]
async fn service_takes_the_client_address_only_from_envoy() {
    let env = TestEnv::new().await;
    let settings = [
        ("address_calls_per_second", "1"),
        ("trusted_proxies", "127.0.0.1"),
        ("authentication", "off"),
    ];
    let service = env.serve(Role::All, &settings).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 1_000)).await;
    // Envoy calls from 127.0.0.1; its clients are others.
    let order = async |client: [u8; 4], forwarded: &str| {
        let mut connector = HttpConnector::new();
        connector.set_local_address(Some(client.into()));
        let client =
            Client::builder(TokioExecutor::new()).build::<_, Full<bytes::Bytes>>(connector);
        let request = Request::post(format!("http://{}/orders", envoy.address))
            .header("content-type", "application/json")
            .header("x-forwarded-for", forwarded)
            .body(Full::from(json!({ "productId": "shoe", "userId": "ann" }).to_string()));
        client.request(request.unwrap()).await.unwrap().status().as_u16()
    };
    for client in 2..12 {
        assert_eq!(order([127, 0, 0, client], "127.0.0.99").await, 202, "each has its own calls");
    }
    let load = (0..10).map(|n| order([127, 0, 0, 99], ["1.1.1.1", "2.2.2.2"][n % 2]));
    let statuses = futures_util::future::join_all(load).await;
    assert!(
        statuses.contains(&429),
        "the x-forwarded-for header of a client is not used: {statuses:?}"
    );
    env.assert_audit_holds().await;
}
