//! Long lists through the edge: each is complete, or visibly incomplete.

use std::process::Command;

use http::Request;
use http_body_util::Full;
use prost::Message as _;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};
use yoink::{
    app::Role,
    grpc::pb::{
        CreateProductsRequest, ListStorefrontRequest, ListStorefrontResponse, NewProduct,
        google::r#type::Money,
    },
};

use crate::{
    envoy::Envoy,
    harness::{Service, TestEnv, reason},
};

/// Creates products `item-00000`, `item-00001` and so on, with the longest names there are: 200
/// characters of four bytes.
async fn create_items(service: &Service, count: usize) {
    let item = |n| NewProduct {
        product_id: format!("item-{n:05}"),
        name: "\u{1d4b3}".repeat(200),
        price: Some(Money { currency_code: "EUR".to_owned(), units: 19, nanos: 990_000_000 }),
        units: 100,
        ..Default::default()
    };
    let items: Vec<_> = (0..count).map(item).collect();
    for products in items.chunks(1000) {
        let request = CreateProductsRequest { products: products.to_vec() };
        service.admin().create_products(request).await.unwrap();
    }
}

fn ids(list: &Json) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

/// A body of gRPC-Web: its messages, and its trailers.
fn web_frames(mut body: &[u8]) -> (Vec<&[u8]>, String) {
    let (mut messages, mut trailers) = (Vec::new(), String::new());
    while let Some((head, rest)) = body.split_at_checked(5) {
        let length = u32::from_be_bytes(head[1..].try_into().unwrap());
        let (frame, rest) = rest.split_at(length.try_into().unwrap());
        body = rest;
        if head[0] & 0x80 == 0 {
            messages.push(frame);
        } else {
            trailers = String::from_utf8(frame.to_vec()).unwrap();
        }
    }
    (messages, trailers)
}

async fn list_by_grpc_web(envoy: &Envoy) -> (Vec<ListStorefrontResponse>, String) {
    let path = "/yoink.v1.StorefrontService/ListStorefront";
    let request = Request::post(format!("http://{}{path}", envoy.address))
        .header("content-type", "application/grpc-web+proto")
        .header("x-grpc-web", "1")
        .body(Full::from(vec![0; 5]))
        .unwrap();
    let (_, body) = envoy.send(request).await;
    let (messages, trailers) = web_frames(&body);
    let decode = |message: &[u8]| ListStorefrontResponse::decode(message).unwrap();
    (messages.into_iter().map(decode).collect(), trailers)
}

/// Reads a list a little at a time, with a small buffer; returns the whole answer.
async fn list_slowly(envoy: &Envoy) -> Vec<u8> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut connection = socket.connect(envoy.address).await.unwrap();
    let request = "GET /products HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    connection.write_all(request.as_bytes()).await.unwrap();
    let (mut answer, mut part) = (Vec::new(), [0; 2048]);
    loop {
        match connection.read(&mut part).await.unwrap() {
            0 => return answer,
            count => answer.extend_from_slice(&part[..count]),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_of_10000_products_is_complete_20_times_out_of_20() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("call_timeout_ms", "60000")]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    create_items(&service, 10_000).await;
    let expected: Vec<String> = (0..10_000).map(|n| format!("item-{n:05}")).collect();
    for _ in 0..20 {
        let list = envoy.get("/products").await;
        assert_eq!(list.status.as_u16(), 200);
        assert_eq!(ids(&list.body), expected);
    }
    let (items, trailers) = list_by_grpc_web(&envoy).await;
    assert_eq!(items.iter().map(|item| &item.id).collect::<Vec<_>>(), Vec::from_iter(&expected));
    assert!(trailers.contains("grpc-status:0"), "{trailers}");
    let slow = list_slowly(&envoy).await;
    assert!(slow.ends_with(b"]\r\n0\r\n\r\n"), "a slow reader gets the whole list, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_500_products_with_the_longest_names_is_complete() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    create_items(&service, 501).await;
    for size in [500, 501, 2_000_000_000] {
        let page = envoy.get(&format!("/v1/products?pageSize={size}")).await;
        assert_eq!(page.status.as_u16(), 200, "{size}");
        let products = page.body["products"].as_array().unwrap();
        assert_eq!(products.len(), 500, "{size}");
        let whole = |p: &Json| p["name"].as_str().unwrap().chars().count() == 200;
        assert!(products.iter().all(whole));
        let token = page.body["nextPageToken"].as_str().unwrap();
        let last = envoy.get(&format!("/v1/products?pageSize={size}&pageToken={token}")).await;
        assert_eq!(last.body["products"].as_array().unwrap().len(), 1);
    }
}

/// The result of curl for a list: its exit code, and the body that it got.
fn curl(envoy: &Envoy, protocol: &str) -> (i32, String) {
    let url = format!("http://{}/products", envoy.address);
    let run = Command::new("curl").args(["-s", protocol, &url]).output().unwrap();
    (run.status.code().unwrap(), String::from_utf8_lossy(&run.stdout).into_owned())
}

/// Replaces the stock of a product by a value that this program never writes.
async fn corrupt_stock(env: &TestEnv, id: &str) {
    let partition = env.stores().await.deployment.partitions.of(&id.parse().unwrap());
    let key = format!("{}:{{{partition}}}:stock", env.prefix);
    let set = redis::cmd("HSET").arg(key).arg(id).arg("junk").to_owned();
    let added: i64 = set.query_async(&mut env.cli().await).await.unwrap();
    assert_eq!(added, 0, "it had a stock");
}

#[tokio::test(flavor = "multi_thread")]
async fn list_that_fails_midway_is_visibly_incomplete() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    create_items(&service, 1_200).await;
    corrupt_stock(&env, "item-01100").await;
    // By curl: 18 is a body that ended before its end (HTTP/1.1), 92 a stream that was reset (HTTP/2).
    for (protocol, exit) in [("--http1.1", 18), ("--http2-prior-knowledge", 92)] {
        let (code, body) = curl(&envoy, protocol);
        assert_eq!(code, exit, "{protocol}");
        assert!(serde_json::from_str::<Json>(&body).is_err(), "a part never reads as a whole");
    }
    // Clients of gRPC and gRPC-Web read the status, and have what came before.
    let mut items = service.storefront().list_storefront(ListStorefrontRequest {}).await;
    let items = items.as_mut().unwrap().get_mut();
    for _ in 0..1_000 {
        items.message().await.unwrap().unwrap();
    }
    assert_eq!(reason(&items.message().await.unwrap_err()), "INTERNAL");
    let (items, trailers) = list_by_grpc_web(&envoy).await;
    assert_eq!(items.len(), 1_000);
    assert!(trailers.contains("grpc-status:13"), "{trailers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn list_that_fails_at_once_is_an_error_with_its_status() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    create_items(&service, 2).await;
    corrupt_stock(&env, "item-00001").await;
    let list = envoy.get("/products").await;
    assert_eq!((list.status.as_u16(), list.reason()), (500, "INTERNAL"));
    assert_eq!(list.body["code"], json!(13));
}
