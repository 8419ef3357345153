//! More calls than the service accepts: the excess is refused with its reason, and the other calls are not affected.

use std::time::{Duration, Instant};

use futures_util::future::{join_all, select_all};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    grpc::pb::{
        Ack, AuditRequest, PlaceOrderRequest, ProductStatus, ReserveUnitRequest,
        UpdateProductRequest,
    },
};

use crate::harness::{Service, TestEnv, WAIT_MAX, eventually, get, product, reason};

/// The retry delay of a refusal.
fn wait_before(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

fn limited(status: &Status) -> String {
    assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    assert!(wait_before(status).is_some_and(|wait| wait > Duration::ZERO), "{status:?}");
    status.get_details_error_info().unwrap().metadata["limited"].clone()
}

async fn is_healthy(service: &Service) -> bool {
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", service.grpc));
    let mut health = tonic_health::pb::health_client::HealthClient::new(
        channel.unwrap().connect().await.unwrap(),
    );
    let request = tonic_health::pb::HealthCheckRequest::default();
    health.check(request).await.unwrap().into_inner().status == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn address_over_its_rate_is_refused_with_a_retry_delay() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("address_calls_per_second", "5")]).await;
    service.create(product("shoe", 1_000)).await;
    let started = Instant::now();
    let users: Vec<String> = (0..100).map(|n| format!("user-{n}")).collect();
    let answers = join_all(users.iter().map(|user| service.buy("shoe", user, "r"))).await;
    let most = 5 + 5 * (started.elapsed().as_secs() + 1);
    let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((5..=usize::try_from(most).unwrap()).contains(&accepted), "{accepted} of {most}");
    for refused in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(limited(refused), "address");
    }
    assert!(is_healthy(&service).await, "health is not refused");
    for _ in 0..10 {
        service.admin().audit(AuditRequest::default()).await.expect("operators are not refused");
    }
    let confirmed = env.assert_audit_holds().await.products[0].confirmed;
    assert_eq!(usize::try_from(confirmed).unwrap(), accepted);
    let metrics = get(service.http, "/metrics").await;
    let counted = metrics.lines().find_map(|line| {
        let ours = line.starts_with("yoink_shed_total{") && line.contains("RATE_LIMITED");
        ours.then(|| line.rsplit_once(' ')?.1.parse::<usize>().ok())?
    });
    assert_eq!(counted, Some(100 - accepted));
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_address_is_used_only_from_a_trusted_proxy() {
    let env = TestEnv::new().await;
    let shoe = |user: &str, client: &str| {
        let message = ReserveUnitRequest {
            product_id: "shoe".to_owned(),
            user_id: user.to_owned(),
            request_id: String::new(),
            ..Default::default()
        };
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-forwarded-for", client.parse().unwrap());
        request
    };
    let settings = [
        ("address_calls_per_second", "1"),
        ("trusted_proxies", "127.0.0.1"),
        ("authentication", "off"),
    ];
    let behind = env.serve(Role::All, &settings).await;
    behind.create(product("shoe", 1_000)).await;
    let ask = async |service: &Service, n: usize| {
        let client = format!("6.6.6.6, 198.51.100.{n}");
        service.buyers().reserve_unit(shoe("ann", &client)).await.map(drop)
    };
    for n in 0..20 {
        ask(&behind, n).await.expect("each address is a separate client");
    }
    let direct = env.serve(Role::All, &[("address_calls_per_second", "1")]).await;
    let answers = join_all((0..20).map(|n| ask(&direct, n))).await;
    assert!(answers.iter().any(Result::is_err), "an untrusted forwarded address is ignored");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_over_its_rate_is_refused_and_others_are_not() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("user_calls_per_second", "1")]).await;
    service.create(product("shoe", 1_000)).await;
    let answers = join_all((0..30).map(|_| service.buy("shoe", "greedy", ""))).await;
    let refused: Vec<Status> = answers.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|status| limited(status) == "user"));
    let order = || PlaceOrderRequest {
        product_id: "shoe".to_owned(),
        user_id: "greedy".to_owned(),
        request_id: String::new(),
    };
    let orders = join_all((0..5).map(|_| {
        let mut storefront = service.storefront();
        async move { storefront.place_order(order()).await.map(drop) }
    }));
    assert!(orders.await.iter().any(Result::is_err), "both ways count together");
    for n in 0..30 {
        service.buy("shoe", &format!("user-{n}"), "").await.unwrap();
    }
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_overload_is_shed_and_operator_calls_are_answered() {
    let env = TestEnv::with_durable_postgres().await;
    let settings = [("concurrency_max_calls", "4"), ("call_timeout_ms", "600000")];
    let service = env.serve(Role::Api, &settings).await;
    service.create(product("shoe", 100)).await;
    // No worker stores orders: a call that waits for the ledger holds its permit until one does.
    let users: Vec<String> = (0..40).map(|n| format!("user-{n}")).collect();
    let wait = |user| service.buy_with(("shoe", user, "r"), Ack::Ledger);
    let mut calls: Vec<_> = users.iter().map(|user| Box::pin(wait(user))).collect();
    let mut refused = Vec::new();
    while refused.len() < 36 {
        let next = timeout(WAIT_MAX, select_all(calls)).await;
        let (answer, _, rest) = next.expect("fewer than 36 of 40 calls are refused");
        refused.push(answer.expect_err("only refusals are answered"));
        calls = rest;
    }
    for status in &refused {
        assert_eq!(
            (status.code(), reason(status).as_str()),
            (Code::ResourceExhausted, "OVERLOADED")
        );
        assert!(wait_before(status).is_some());
    }
    eventually("four have their units", async || {
        (env.audit().await.products[0].in_orders == 4).then_some(())
    })
    .await;
    assert!(is_healthy(&service).await, "health is not shed");
    // An operator stops the sale and starts it again while every permit of buyers is taken.
    let other = env.serve(Role::Api, &[]).await;
    set(&service, ProductStatus::Stopped).await;
    assert_eq!(service.refusal("shoe", "late", "r").await, "OVERLOADED");
    assert_eq!(other.refusal("shoe", "late", "r").await, "SALE_STOPPED");
    set(&service, ProductStatus::OnSale).await;
    let bought = other.buy("shoe", "late", "r").await.unwrap();
    assert_eq!(bought.remaining, 95);

    // One of the four gives up; then its permit is free, and no other.
    drop(calls.pop());
    eventually("a permit is free", async || service.buy("shoe", "fifth", "r").await.ok()).await;
    let worker = env.serve(Role::Worker, &[]).await;
    let accepted = join_all(calls).await;
    assert!(accepted.iter().all(Result::is_ok), "{accepted:?}");
    eventually("the four permits are free again", async || {
        let users: Vec<String> = (0..4).map(|n| format!("later-{n}")).collect();
        let buys = join_all(users.iter().map(|user| service.buy("shoe", user, "r"))).await;
        buys.iter().all(Result::is_ok).then_some(())
    })
    .await;
    // The call that gave up had a unit by then.
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 4 + 2 + 4);
    worker.stop().await;
}

/// An operator's change of the sale.
async fn set(service: &Service, status: ProductStatus) {
    let product_id = "shoe".to_owned();
    let request = UpdateProductRequest { product_id, status: status.into(), ..Default::default() };
    // Operators' calls are still answered.
    service.admin().update_product(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_sells_every_unit_once() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("concurrency_max_calls", "8")]).await;
    service.create(product("shoe", 200)).await;
    let (service, mut shed) = (&service, 0);
    let buyers = (0..400).map(|n| async move {
        let (user, mut shed) = (format!("user-{n}"), 0);
        loop {
            match service.buy("shoe", &user, "r").await {
                Ok(_) => return (true, shed),
                Err(status) if reason(&status) == "OVERLOADED" => shed += 1,
                Err(status) => {
                    assert_eq!(reason(&status), "SOLD_OUT");
                    return (false, shed);
                }
            }
        }
    });
    let answers = join_all(buyers).await;
    shed += answers.iter().map(|(_, shed)| shed).sum::<u32>();
    assert!(shed > 0, "the limit was not reached");
    assert_eq!(answers.iter().filter(|(bought, _)| *bought).count(), 200);
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn call_without_a_deadline_gets_the_default_deadline() {
    let env = TestEnv::with_own_redis().await;
    // Long enough to be sent on a busy machine, shorter than the two seconds after which Redis counts as down.
    let service = env.serve(Role::All, &[("call_timeout_ms", "1500")]).await;
    service.create(product("shoe", 10)).await;
    env.redis.as_ref().unwrap().pause();
    let status = service.buy("shoe", "ann", "r").await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED")
    );
    assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "maybe");
    env.redis.as_ref().unwrap().resume();
    eventually("the order is stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == 1).then_some(())
    })
    .await;
    env.assert_audit_holds().await;
}

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_calls_cancelled_at_once_keep_the_connection_open() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    // Raw frames: no client library sends so many before the server reads any.
    let path = b"/yoink.v1.InventoryService/ReserveUnit";
    let mut head = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    head.extend(path);
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    all.extend(frame(SETTINGS, 0, 0, &[]));
    for call in 0..400 {
        all.extend(frame(HEADERS, 0x4, 2 * call + 1, &head));
        all.extend(frame(RST_STREAM, 0, 2 * call + 1, &8u32.to_be_bytes()));
    }
    all.extend(frame(PING, 0, 0, b"are-you?"));
    let mut connection = tokio::net::TcpStream::connect(service.grpc).await.unwrap();
    connection.write_all(&all).await.unwrap();
    loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        connection.read_exact(&mut payload).await.unwrap();
        assert_ne!(head[3], GOAWAY, "{}", String::from_utf8_lossy(&payload));
        if head[3] == PING {
            break assert_eq!(payload, b"are-you?");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_request_head_is_refused_and_the_connection_stays_open() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("header_max_bytes", "4096")]).await;
    service.create(product("shoe", 10)).await;
    let message = ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        request_id: "r".to_owned(),
        ..Default::default()
    };
    let mut request = Request::new(message.clone());
    request.metadata_mut().insert("x-much", "x".repeat(6_000).parse().unwrap());
    let status = service.buyers().reserve_unit(request).await.unwrap_err();
    assert!(status.message().contains("431"), "refused by HTTP/2 itself: {status:?}");
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-little", "x".repeat(1_000).parse().unwrap());
    service.buyers().reserve_unit(request).await.unwrap();
    env.assert_audit_holds().await;
}
