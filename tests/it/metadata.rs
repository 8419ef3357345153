//! The metadata of calls and answers: idempotency keys, retry delays, encodings.

use prost::Message;
use tonic::{Code, Request, Status, codec::CompressionEncoding::Gzip, metadata::MetadataValue};
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    grpc::pb::{
        CreateProductsRequest, ListProductsRequest, ListProductsResponse, NewProduct,
        PlaceOrderRequest, ReserveUnitRequest, RestockRequest,
    },
};

use crate::{
    bad_input::fields,
    harness::{Bought, Service, TestEnv, product, reason},
};

/// A request with the header, once for each value.
fn keyed<T>(message: T, keys: &[&[u8]]) -> Request<T> {
    let mut request = Request::new(message);
    for key in keys {
        request.metadata_mut().append("idempotency-key", MetadataValue::try_from(*key).unwrap());
    }
    request
}

async fn buy(service: &Service, request_id: &str, keys: &[&[u8]]) -> Result<Bought, Status> {
    let message = ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        request_id: request_id.to_owned(),
        ..Default::default()
    };
    Ok(service.buyers().reserve_unit(keyed(message, keys)).await?.into_inner().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn idempotency_key_metadata_is_used_as_the_request_id() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let first = buy(&service, "", &[b"order-1"]).await.unwrap();
    assert!(!first.duplicate);
    for (field, keys) in [
        ("", [b"order-1".as_slice()].as_slice()),
        ("", &[b"\"order-1\""]),
        ("order-1", &[]),
        ("order-1", &[b"order-1"]),
        ("order-1", &[b"\"order-1\""]),
        ("", &[b"order-1", b"\"order-1\""]),
    ] {
        let again = buy(&service, field, keys).await.unwrap();
        assert!(again.duplicate, "{field:?} {keys:?}");
        assert_eq!(again.reservation_id, first.reservation_id);
    }
    // The other call that takes a unit remembers the same request ids.
    let order = PlaceOrderRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        request_id: String::new(),
    };
    let placed = service.storefront().place_order(keyed(order, &[b"order-1"])).await.unwrap();
    assert_eq!(placed.into_inner().reservation_id, first.reservation_id);
    let restock =
        || RestockRequest { product_id: "shoe".to_owned(), units: 5, ..Default::default() };
    for duplicate in [false, true] {
        let restocked = service.admin().restock(keyed(restock(), &[b"delivery-1"])).await.unwrap();
        let restocked = restocked.into_inner();
        assert_eq!((restocked.supply, restocked.duplicate), (15, duplicate));
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (14, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_or_conflicting_idempotency_key_is_refused_and_takes_nothing() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let long = "x".repeat(1000);
    for keys in [
        [b"".as_slice()].as_slice(),
        &[b"\"\""],
        &[b"\"order-1"],
        &[b"order 1"],
        &["schlüssel".as_bytes()],
        &[b"\xff\xfe"],
        &[long.as_bytes()],
        &[b"order-1", b"order-2"],
    ] {
        let status = buy(&service, "", keys).await.unwrap_err();
        assert_eq!(fields(&status), ["idempotency-key"], "{keys:?}");
        let restock =
            RestockRequest { product_id: "shoe".to_owned(), units: 5, ..Default::default() };
        let status = service.admin().restock(keyed(restock, keys)).await.unwrap_err();
        assert_eq!(fields(&status), ["idempotency-key"], "{keys:?}");
    }
    let status = buy(&service, "order-1", &[b"order-2"]).await.unwrap_err();
    assert_eq!(fields(&status), ["request_id"]);
    let restock = RestockRequest {
        product_id: "shoe".to_owned(),
        units: 5,
        request_id: "delivery-1".to_owned(),
        ..Default::default()
    };
    let status = service.admin().restock(keyed(restock, &[b"delivery-2"])).await.unwrap_err();
    assert_eq!(fields(&status), ["request_id"]);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].supply), (10, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_refusal_gives_the_same_retry_delay_in_three_ways() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[("backlog_max_entries", "1")]).await;
    service.create(product("shoe", 9)).await;
    buy(&service, "", &[]).await.unwrap();
    let status = buy(&service, "", &[]).await.unwrap_err();
    assert_eq!(reason(&status), "BACKLOG_FULL");
    let number = |name: &str| -> u128 {
        status.metadata().get(name).unwrap().to_str().unwrap().parse().unwrap()
    };
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert_eq!(number("grpc-retry-pushback-ms"), wait.as_millis());
    assert_eq!(number("retry-after"), wait.as_nanos().div_ceil(1_000_000_000));
    let status = service.buy("ghost", "ann", "").await.unwrap_err();
    assert!(status.metadata().get("retry-after").is_none(), "waiting does not help");
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn gzip_requests_are_accepted_and_responses_are_not_compressed() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let mut operators = service.admin().send_compressed(Gzip);
    let new = NewProduct {
        product_id: "shoe".to_owned(),
        name: "Shoe ".repeat(30),
        price: Some(yoink::grpc::pb::google::r#type::Money {
            currency_code: "EUR".to_owned(),
            units: 1,
            nanos: 0,
        }),
        units: 10,
        ..Default::default()
    };
    let request = CreateProductsRequest { products: vec![new] };
    operators.create_products(request).await.unwrap();
    let message = ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        ..Default::default()
    };
    let mut buyers = service.buyers().send_compressed(Gzip).accept_compressed(Gzip);
    let answer = buyers.reserve_unit(message).await.unwrap();
    assert!(answer.metadata().get("grpc-encoding").is_none());
    assert_eq!(answer.into_inner().remaining, 9);
    let order = PlaceOrderRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        request_id: String::new(),
    };
    service.storefront().send_compressed(Gzip).place_order(order).await.unwrap();
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gzip_bomb_is_refused_by_its_decompressed_size() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    // Ten megabytes of zeros: about ten kilobytes of gzip, less than a request may have.
    let zeros = "\0".repeat(10_000_000);
    let message = ReserveUnitRequest { user_id: zeros.clone(), ..Default::default() };
    let status = service.buyers().send_compressed(Gzip).reserve_unit(message).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::OutOfRange, "MESSAGE_TOO_LARGE"),
        "{status:?}"
    );
    let order = PlaceOrderRequest { user_id: zeros.clone(), ..Default::default() };
    let mut storefront = service.storefront().send_compressed(Gzip);
    let status = storefront.place_order(order).await.unwrap_err();
    assert_eq!(reason(&status), "MESSAGE_TOO_LARGE");
    let products = vec![NewProduct { name: zeros, ..Default::default() }];
    let mut operators = service.admin().send_compressed(Gzip);
    let status = operators.create_products(CreateProductsRequest { products }).await.unwrap_err();
    assert_eq!(reason(&status), "MESSAGE_TOO_LARGE");
    service.buy("shoe", "ann", "").await.unwrap();
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_encoding_is_unimplemented_and_lists_the_supported_ones() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    for encoding in ["deflate", "zstd", "br"] {
        let mut request = Request::new(ListProductsRequest::default());
        request.metadata_mut().insert("grpc-encoding", encoding.parse().unwrap());
        let status = service.buyers().list_products(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{encoding}");
        assert_eq!(status.metadata().get("grpc-accept-encoding").unwrap(), "gzip,identity");
    }
}

/// Sends a message to a call that expects another one.
async fn mistyped<T: Message + 'static>(service: &Service, path: &str, message: T) -> Status {
    let mut client = tonic::client::Grpc::new(service.channel());
    client.ready().await.unwrap();
    let path = path.parse().unwrap();
    let codec = tonic_prost::ProstCodec::<T, ListProductsResponse>::default();
    client.unary(Request::new(message), path, codec).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_message_is_invalid_argument_and_names_the_field() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let number = ListProductsRequest { page_size: 5, ..Default::default() };
    let status = mistyped(&service, "/yoink.v1.InventoryService/ReserveUnit", number).await;
    assert_eq!(fields(&status), ["product_id"]);
    let text = NewProduct { product_id: "shoe".to_owned(), ..Default::default() };
    let path = "/yoink.v1.AdminService/CreateProducts";
    let status = mistyped(&service, path, text).await;
    assert!(fields(&status)[0].starts_with("products"), "{status:?}");
}
