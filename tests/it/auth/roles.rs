//! The table of roles: every call by every kind of caller, and what is recorded of them.

use std::collections::BTreeSet;

use prost::Message as _;
use tonic::{Request, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use yoink::{
    app::Role,
    domain::CallerRole,
    grpc::pb::{
        AuditRequest, CreateProductsRequest, GetProductRequest, GetReservationRequest,
        ListDeadEntriesRequest, ListProductsRequest, ListReservationsRequest,
        ListStorefrontRequest, NewProduct, PlaceOrderRequest, ReleaseDeadEntriesRequest,
        ReserveUnitRequest, RestockRequest, RetryDeadEntriesRequest, UpdateProductRequest,
        admin_service_client::AdminServiceClient, google::r#type::Money,
        inventory_service_client::InventoryServiceClient,
        storefront_service_client::StorefrontServiceClient,
    },
};

use super::{REQUIRED, answer, create_key, with_token};
use crate::harness::{Service, TestEnv, dead_entries, move_to_dead, product};

/// The rights of no one, the customer of the data, another customer, a service, an operator and an auditor.
const CALLERS: [&str; 6] = ["no one", "ann", "bob", "backend", "operator", "auditor"];

const NONE: &str = "CREDENTIALS_MISSING";
const NO: &str = "ROLE_NOT_ALLOWED";
const HIDDEN: &str = "RESERVATION_NOT_FOUND";
const OK: &str = "OK";

/// The answer to each call, by caller.
#[rustfmt::skip]
const ANSWERS: [(&str, [&str; 6]); 14] = [
    ("yoink.v1.InventoryService/ReserveUnit",      [NONE, OK, NO,     OK, NO, NO]),
    ("yoink.v1.InventoryService/ListProducts",     [NONE, OK, OK,     OK, OK, OK]),
    ("yoink.v1.InventoryService/GetProduct",       [NONE, OK, OK,     OK, OK, OK]),
    ("yoink.v1.InventoryService/GetReservation",   [NONE, OK, HIDDEN, OK, OK, OK]),
    ("yoink.v1.StorefrontService/PlaceOrder",      [NONE, OK, NO,     OK, NO, NO]),
    ("yoink.v1.StorefrontService/ListStorefront",  [NONE, OK, OK,     OK, OK, OK]),
    ("yoink.v1.AdminService/CreateProducts",       [NONE, NO, NO,     NO, OK, NO]),
    ("yoink.v1.AdminService/UpdateProduct",        [NONE, NO, NO,     NO, OK, NO]),
    ("yoink.v1.AdminService/Restock",              [NONE, NO, NO,     NO, OK, NO]),
    ("yoink.v1.AdminService/ListReservations",     [NONE, NO, NO,     NO, OK, OK]),
    ("yoink.v1.AdminService/ListDeadEntries",      [NONE, NO, NO,     NO, OK, OK]),
    ("yoink.v1.AdminService/ReleaseDeadEntries",   [NONE, NO, NO,     NO, OK, NO]),
    ("yoink.v1.AdminService/RetryDeadEntries",     [NONE, NO, NO,     NO, OK, NO]),
    ("yoink.v1.AdminService/Audit",                [NONE, NO, NO,     NO, OK, OK]),
];

/// A call of `InventoryService` or `StorefrontService` for `ann`.
async fn call(
    channel: Channel,
    method: &str,
    token: Option<&str>,
    reservation_id: &str,
) -> Result<(), Status> {
    let mut buyers = InventoryServiceClient::new(channel.clone());
    let mut storefront = StorefrontServiceClient::new(channel.clone());
    let (product_id, user_id) = ("shoe".to_owned(), "ann".to_owned());
    match method {
        "ReserveUnit" => {
            let request = ReserveUnitRequest { product_id, user_id, ..Default::default() };
            buyers.reserve_unit(with_token(request, token)).await.map(drop)
        }
        "ListProducts" => {
            buyers.list_products(with_token(ListProductsRequest::default(), token)).await.map(drop)
        }
        "GetProduct" => {
            buyers.get_product(with_token(GetProductRequest { product_id }, token)).await.map(drop)
        }
        "GetReservation" => {
            let request = GetReservationRequest { reservation_id: reservation_id.to_owned() };
            buyers.get_reservation(with_token(request, token)).await.map(drop)
        }
        "PlaceOrder" => {
            let request = PlaceOrderRequest { product_id, user_id, ..Default::default() };
            storefront.place_order(with_token(request, token)).await.map(drop)
        }
        "ListStorefront" => {
            let request = with_token(ListStorefrontRequest {}, token);
            storefront.list_storefront(request).await.map(drop)
        }
        _ => call_operators(channel, method, token).await,
    }
}

/// A call of `AdminService`.
async fn call_operators(channel: Channel, method: &str, token: Option<&str>) -> Result<(), Status> {
    let mut admin = AdminServiceClient::new(channel);
    let product_id = "shoe".to_owned();
    let selector = dead_entries::all();
    match method {
        "CreateProducts" => {
            let money = Money { currency_code: "EUR".to_owned(), units: 5, nanos: 0 };
            let hat = NewProduct {
                product_id: "hat".to_owned(),
                name: "Hat".to_owned(),
                price: Some(money),
                units: 5,
                ..Default::default()
            };
            let request = CreateProductsRequest { products: vec![hat] };
            admin.create_products(with_token(request, token)).await.map(drop)
        }
        "UpdateProduct" => {
            let name = "Shoe".to_owned();
            let request = UpdateProductRequest { product_id, name, ..Default::default() };
            admin.update_product(with_token(request, token)).await.map(drop)
        }
        "Restock" => {
            let request_id = "delivery-1".to_owned();
            let request = RestockRequest { product_id, units: 1, request_id, ..Default::default() };
            admin.restock(with_token(request, token)).await.map(drop)
        }
        "ListReservations" => {
            let request = ListReservationsRequest { product_id, ..Default::default() };
            admin.list_reservations(with_token(request, token)).await.map(drop)
        }
        "ListDeadEntries" => {
            let request = ListDeadEntriesRequest::default();
            admin.list_dead_entries(with_token(request, token)).await.map(drop)
        }
        "ReleaseDeadEntries" => {
            let request =
                ReleaseDeadEntriesRequest { selector, dry_run: true, ..Default::default() };
            admin.release_dead_entries(with_token(request, token)).await.map(drop)
        }
        "RetryDeadEntries" => {
            let request = RetryDeadEntriesRequest { selector, dry_run: true, ..Default::default() };
            admin.retry_dead_entries(with_token(request, token)).await.map(drop)
        }
        "Audit" => admin.audit(with_token(AuditRequest::default(), token)).await.map(drop),
        _ => panic!("{method} is not called by this test"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_answered_by_the_role_of_its_caller() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 100)).await;
    let reservation_id = service.buy("shoe", "ann", "r").await.unwrap().reservation_id;
    service.stop().await;
    let tokens = [
        None,
        Some(create_key(&env, "ann", CallerRole::Customer)),
        Some(create_key(&env, "bob", CallerRole::Customer)),
        Some(create_key(&env, "backend", CallerRole::Service)),
        Some(create_key(&env, "carol", CallerRole::Operator)),
        Some(create_key(&env, "dave", CallerRole::Auditor)),
    ];
    let service = env.serve(Role::All, &[REQUIRED]).await;
    for (path, expected) in ANSWERS {
        let (_, method) = path.split_once('/').unwrap();
        for ((caller, token), expected) in CALLERS.iter().zip(&tokens).zip(expected) {
            let called = call(service.channel(), method, token.as_deref(), &reservation_id).await;
            assert_eq!(answer(called), expected, "{path} by {caller}");
        }
    }
    // An operation that does not exist is no matter of roles.
    for token in tokens.iter().flatten() {
        let status = call_unknown(service.channel(), token).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unimplemented, "{status:?}");
    }
    // Health is open to everyone.
    for token in &tokens {
        let request = with_token(HealthCheckRequest::default(), token.as_deref());
        HealthClient::new(service.channel()).check(request).await.unwrap();
    }
    env.assert_audit_holds().await;
}

/// A call that the API does not have.
async fn call_unknown(channel: Channel, token: &str) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = "/yoink.v1.AdminService/NoSuchMethod".parse().unwrap();
    client.unary(with_token((), Some(token)), path, codec).await.map(drop)
}

#[test]
fn answers_are_expected_for_every_call_of_the_api() {
    let set = prost_types::FileDescriptorSet::decode(yoink::grpc::DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|file| {
        file.service
            .iter()
            .map(|service| (format!("{}.{}", file.package(), service.name()), service))
    });
    let calls: BTreeSet<String> = services
        .flat_map(|(name, service)| {
            service.method.iter().map(move |method| format!("{name}/{}", method.name()))
        })
        .collect();
    let expected = BTreeSet::from(ANSWERS.map(|(path, _)| path.to_owned()));
    assert_eq!(expected, calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn customer_without_user_id_buys_for_itself() {
    let env = TestEnv::new().await;
    let plain = env.serve(Role::Api, &[]).await;
    plain.create(product("shoe", 10)).await;
    let key = create_key(&env, "auth0|ann", CallerRole::Customer);
    let service = env.serve(Role::All, &[REQUIRED]).await;
    let request = |user_id: &str| ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: user_id.to_owned(),
        request_id: "r".to_owned(),
        ..Default::default()
    };
    let reserve = async |user_id: &str| {
        let request = with_token(request(user_id), Some(&key));
        service.buyers().reserve_unit(request).await.map(|answer| answer.into_inner())
    };
    let first = reserve("").await.unwrap();
    assert_eq!(first.reservation.unwrap().user_id, "auth0|ann");
    assert!(reserve("auth0|ann").await.unwrap().duplicate, "the same user and request");
    assert_eq!(answer(reserve("auth0|bob").await), NO);
    let order = PlaceOrderRequest {
        product_id: "shoe".to_owned(),
        request_id: "r2".to_owned(),
        ..Default::default()
    };
    service.storefront().place_order(with_token(order, Some(&key))).await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 2);
    assert_eq!(env.count("SELECT count(*) FROM reservations WHERE user_id = 'auth0|ann'").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn principal_is_recorded_and_not_the_actor_that_a_client_sends() {
    let env = TestEnv::new().await;
    let plain = env.serve(Role::Api, &[]).await;
    plain.create(product("shoe", 10)).await;
    let ids = move_to_dead(&env, &plain, ("shoe", None), ["ann".to_owned()]).await;
    let key = create_key(&env, "carol", CallerRole::Operator);
    let service = env.serve(Role::Api, &[REQUIRED]).await;
    let actor = || "another operator".to_owned();
    let restock = RestockRequest {
        product_id: "shoe".to_owned(),
        units: 1,
        request_id: "delivery-1".to_owned(),
        actor: actor(),
        ..Default::default()
    };
    service.admin().restock(with_token(restock, Some(&key))).await.unwrap();
    let selector = dead_entries::of(ids);
    let release = ReleaseDeadEntriesRequest { selector, actor: actor(), ..Default::default() };
    let released = service.admin().release_dead_entries(with_token(release, Some(&key))).await;
    assert_eq!(released.unwrap().into_inner().released, 1);
    let sql = env.sql().await;
    for table in ["supply_changes WHERE request_id = 'delivery-1'", "dead_actions"] {
        let rows = sql.query(&format!("SELECT actor FROM {table}"), &[]).await.unwrap();
        let actors: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(actors, ["carol"], "{table}");
    }
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_is_off_with_authentication_and_needs_credentials_if_it_is_on() {
    let env = TestEnv::new().await;
    let keys = CallerRole::ALL.map(|role| create_key(&env, "dave", role));
    let reflect = async |service: &Service, version: &str, token: Option<&str>| {
        let mut client = tonic::client::Grpc::new(service.channel());
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let request: Request<_> = with_token(futures_util::stream::empty::<()>(), token);
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        client.streaming(request, path.parse().unwrap(), codec).await.map(drop)
    };
    let off = env.serve(Role::Api, &[REQUIRED]).await;
    let on = env.serve(Role::Api, &[REQUIRED, ("reflection", "on")]).await;
    for version in ["v1", "v1alpha"] {
        for key in &keys {
            let status = reflect(&off, version, Some(key)).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unimplemented);
            reflect(&on, version, Some(key)).await.unwrap();
        }
        assert_eq!(answer(reflect(&on, version, None).await), NONE);
    }
}
