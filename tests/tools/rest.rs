//! REST through the real Envoy: every row of the outcome table, and the legacy API.

use futures_util::future::join_all;
use serde_json::json;
use tonic::transport::Channel;
use yoink::{
    app::Role,
    domain::{Epoch, ReservationId, Sale},
    grpc::pb::{
        Ack, ProductStatus, ReservationState, ReserveUnitRequest, UpdateProductRequest,
        inventory_service_client::InventoryServiceClient,
    },
};

use crate::{
    envoy::{Answer, Envoy},
    harness::{Service, TestEnv, eventually, product},
};

async fn edge(env: &TestEnv, more: &[(&'static str, &str)]) -> (Service, Envoy) {
    let service = env.serve(Role::All, more).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    (service, envoy)
}

fn reported(answer: &Answer) -> (u16, &str) {
    assert_eq!(answer.headers["content-type"], "application/json", "{answer:?}");
    (answer.status.as_u16(), answer.reason())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_outcome_has_its_status_and_reason() {
    let env = TestEnv::new().await;
    let (service, envoy) = edge(&env, &[]).await;
    let now = jiff::Timestamp::now().as_millisecond();
    let sale = |id: &str, units: i64, change: &dyn Fn(Sale) -> Sale| {
        let mut product = product(id, units);
        product.sale = change(product.sale);
        product
    };
    service.create(product("last", 1)).await;
    service.create(sale("limited", 9, &|s| Sale { per_user_limit: Some(1), ..s })).await;
    service.create(sale("early", 9, &|s| Sale { opens_at_ms: Some(now + 3_600_000), ..s })).await;
    service.create(sale("late", 9, &|s| Sale { closes_at_ms: Some(now - 1), ..s })).await;
    service.create(product("stopped", 9)).await;
    let (product_id, status) = ("stopped".to_owned(), ProductStatus::Stopped.into());
    let stop = UpdateProductRequest { product_id, status, ..Default::default() };
    service.admin().update_product(stop).await.unwrap();

    let bought = envoy.buy("last", "ann", "r").await;
    assert_eq!(bought.status.as_u16(), 202);
    assert_eq!(
        (&bought.body["remaining"], &bought.body["duplicate"]),
        (&json!("0"), &json!(false))
    );
    let again = envoy.buy("last", "ann", "r").await;
    assert_eq!((again.status.as_u16(), &again.body["duplicate"]), (200, &json!(true)));
    assert_eq!(reported(&envoy.buy("last", "bob", "r").await), (409, "SOLD_OUT"));
    assert_eq!(envoy.buy("limited", "ann", "1").await.status.as_u16(), 202);
    let limited = envoy.buy("limited", "ann", "2").await;
    assert_eq!(reported(&limited), (409, "LIMIT_REACHED"));
    assert_eq!(limited.detail("ErrorInfo")["metadata"]["limit"], "1");
    assert_eq!(reported(&envoy.buy("early", "ann", "").await), (409, "SALE_NOT_OPEN"));
    assert_eq!(reported(&envoy.buy("late", "ann", "").await), (409, "SALE_CLOSED"));
    assert_eq!(reported(&envoy.buy("stopped", "ann", "").await), (409, "SALE_STOPPED"));
    assert_eq!(reported(&envoy.buy("ghost", "ann", "").await), (404, "PRODUCT_NOT_FOUND"));
    let bad = envoy.buy("{", "", "").await;
    assert_eq!(reported(&bad), (400, "BAD_FIELD"));
    assert_eq!(bad.detail("BadRequest")["fieldViolations"][0]["field"], "product_id");

    let id = bought.body["reservation"]["reservationId"].as_str().unwrap();
    let found = envoy.get(&format!("/v1/reservations/{id}")).await;
    assert_eq!((found.status.as_u16(), &found.body["reservation"]["userId"]), (200, &json!("ann")));
    let unknown = |epoch| ReservationId::new(0, Epoch(epoch), 77, 1).unwrap();
    let look_up = async |id| envoy.get(&format!("/v1/reservations/{id}")).await;
    assert_eq!(reported(&look_up(unknown(1)).await), (404, "RESERVATION_NOT_FOUND"));
    assert_eq!(reported(&look_up(unknown(9)).await), (404, "LOST_OR_UNKNOWN"));
    let found = envoy.get("/v1/products/last").await;
    assert_eq!((found.status.as_u16(), &found.body["product"]["stock"]), (200, &json!("0")));
    let page = envoy.get("/v1/products?pageSize=2").await;
    assert_eq!(page.body["products"].as_array().unwrap().len(), 2);
    assert_eq!(reported(&envoy.get("/v1/products?pageSize=-1").await), (400, "BAD_FIELD"));
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_reservation_is_201_accepted_one_202_duplicate_200() {
    let env = TestEnv::with_durable_postgres().await;
    let (service, envoy) = edge(&env, &[]).await;
    service.create(product("shoe", 9)).await;
    for (request, ack, status, state) in [
        ("1", "ACK_LEDGER", 201, "RESERVATION_STATE_CONFIRMED"),
        ("2", "ACK_MEMORY", 202, "RESERVATION_STATE_ACCEPTED"),
    ] {
        let order =
            json!({ "productId": "shoe", "userId": "ann", "requestId": request, "ack": ack });
        for status in [status, 200] {
            let bought = envoy.post("/v1/reservations", &order).await;
            let reservation = &bought.body["reservation"];
            assert_eq!((bought.status.as_u16(), &reservation["state"]), (status, &json!(state)));
            assert_eq!(reservation["requestId"], json!(request));
            let shown = ["reservationId", "productId", "userId", "reservedAt"];
            assert!(shown.iter().all(|field| reservation[field].is_string()), "{reservation}");
            assert!(bought.headers.get("x-yoink-http-status").is_none());
        }
    }
    // A native call through the same Envoy keeps its own status.
    let channel = Channel::from_shared(format!("http://{}", envoy.address)).unwrap();
    let mut buyers = InventoryServiceClient::new(channel.connect().await.unwrap());
    let (product_id, user_id) = ("shoe".to_owned(), "bob".to_owned());
    let request =
        ReserveUnitRequest { product_id, user_id, ack: Ack::Ledger.into(), ..Default::default() };
    let answer = buyers.reserve_unit(request).await.unwrap().into_inner();
    assert_eq!(answer.reservation.unwrap().state(), ReservationState::Confirmed);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_backlog_is_429_with_a_retry_delay() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[("backlog_max_entries", "1")]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    service.create(product("shoe", 9)).await;
    assert_eq!(envoy.buy("shoe", "ann", "").await.status.as_u16(), 202);
    let full = envoy.buy("shoe", "ann", "").await;
    assert_eq!(reported(&full), (429, "BACKLOG_FULL"));
    assert_eq!(full.detail("RetryInfo")["retryDelay"], "5s");
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_store_is_503_and_states_whether_the_call_was_applied() {
    let mut env = TestEnv::with_own_redis().await;
    let (service, envoy) = edge(&env, &[("recovery", "manual")]).await;
    service.create(product("shoe", 9)).await;
    env.redis.as_mut().unwrap().kill();
    let away = envoy.buy("shoe", "ann", "r").await;
    assert_eq!(reported(&away), (503, "REDIS_UNAVAILABLE"));
    assert!(away.detail("ErrorInfo")["metadata"]["applied"].is_string());
    env.redis.as_mut().unwrap().restart().unwrap();
    let fenced = eventually("Redis is back, and fenced", async || {
        let answer = envoy.buy("shoe", "ann", "r").await;
        (answer.reason() == "RECOVERING").then_some(answer)
    })
    .await;
    assert_eq!(reported(&fenced), (503, "RECOVERING"));
    let listed = envoy.get("/products").await;
    assert_eq!(listed.body[0]["stock"], json!(null), "absent while its partition recovers");
}

#[tokio::test(flavor = "multi_thread")]
async fn storefront_contract_is_served_over_rest() {
    let env = TestEnv::new().await;
    let (service, envoy) = edge(&env, &[]).await;
    let empty = envoy.get("/products").await;
    assert_eq!(
        (empty.status.as_u16(), empty.body),
        (200, json!([])),
        "a bare array, also an empty one"
    );
    service.create(product("shoe", 500)).await;
    let placed = envoy.post("/orders", &json!({ "productId": "shoe", "userId": "ann" })).await;
    assert_eq!(placed.status.as_u16(), 202);
    assert_eq!(placed.body["message"], "Order accepted for processing");
    assert!(placed.body["reservationId"].is_string());
    let listed = envoy.get("/products").await;
    let expected = json!([{ "id": "shoe", "name": "Product shoe", "price": 19.99, "stock": 499 }]);
    assert_eq!(listed.body, expected, "plain numbers");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_buyers_over_rest_get_exactly_100_units() {
    let env = TestEnv::new().await;
    let (service, envoy) = edge(&env, &[]).await;
    service.create(product("shoe", 100)).await;
    let users: Vec<String> = (0..1000).map(|n| format!("user-{n}")).collect();
    let answers = join_all(users.iter().map(|user| envoy.buy("shoe", user, "r"))).await;
    let count = |status: u16| answers.iter().filter(|a| a.status.as_u16() == status).count();
    assert_eq!((count(202), count(409)), (100, 900));
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (100, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn product_ids_with_colon_plus_or_at_sign_are_found_by_path() {
    let env = TestEnv::new().await;
    let (service, envoy) = edge(&env, &[]).await;
    for id in ["shoe:red", "shoe+blue", "shoe@42", "a:b+c@d"] {
        service.create(product(id, 5)).await;
        let encoded = id.replace(':', "%3A").replace('+', "%2B").replace('@', "%40");
        for path in [id, encoded.as_str()] {
            let answer = envoy.get(&format!("/v1/products/{path}")).await;
            assert_eq!(
                (answer.status.as_u16(), &answer.body["product"]["productId"]),
                (200, &json!(id)),
                "{path}"
            );
        }
        let bought = envoy.buy(id, "gid://shop/Customer/1", "auth0|1/%2F").await;
        assert_eq!(
            (bought.status.as_u16(), &bought.body["reservation"]["userId"]),
            (202, &json!("gid://shop/Customer/1"))
        );
    }
    let page = envoy.get("/v1/products?pageSize=2").await;
    assert_eq!(page.body["products"][1]["productId"], json!("shoe+blue"));
    let token = page.body["nextPageToken"].as_str().unwrap();
    let page = envoy.get(&format!("/v1/products?pageSize=1&pageToken={token}")).await;
    assert_eq!(page.body["products"][0]["productId"], json!("shoe:red"));
    assert_eq!(envoy.get("/v1/products/shoe%2Fred").await.status.as_u16(), 400, "no product id");
    env.assert_audit_holds().await;
}
