//! Pages of lists: their size, and tokens that only the list that gave them accepts.

use yoink::{
    app::Role,
    grpc::pb::{
        CreateProductsRequest, DeadEntryFilter, ListDeadEntriesRequest, ListProductsRequest,
        ListReservationsRequest, NewProduct, google::r#type::Money,
    },
};

use crate::{
    bad_input::fields,
    harness::{Service, TestEnv, eventually, move_to_dead, product},
};

/// Creates products named `item-<n>`.
async fn create_items(service: &Service, count: usize) {
    let item = |n| NewProduct {
        product_id: format!("item-{n:03}"),
        name: format!("Item {n}"),
        price: Some(Money { currency_code: "EUR".to_owned(), units: 1, nanos: 0 }),
        units: 1,
        ..Default::default()
    };
    let products = (0..count).map(item).collect();
    service.admin().create_products(CreateProductsRequest { products }).await.unwrap();
}

async fn page_of(service: &Service, page_size: i32, page_token: &str) -> (usize, String) {
    let page_token = page_token.to_owned();
    let request = ListProductsRequest { page_size, page_token };
    let page = service.buyers().list_products(request).await.unwrap().into_inner();
    (page.products.len(), page.next_page_token)
}

#[tokio::test(flavor = "multi_thread")]
async fn page_size_above_the_maximum_is_capped_and_a_negative_one_is_refused() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    create_items(&service, 501).await;
    for page_size in [500, 501, i32::MAX] {
        let (count, token) = page_of(&service, page_size, "").await;
        assert_eq!(count, 500, "asked for {page_size}");
        assert_eq!(page_of(&service, page_size, &token).await, (1, String::new()));
    }
    assert_eq!(page_of(&service, 0, "").await.0, 50);
    for page_size in [-1, i32::MIN] {
        let request = ListProductsRequest { page_size, ..Default::default() };
        let status = service.buyers().list_products(request).await.unwrap_err();
        assert_eq!(fields(&status), ["page_size"]);
        let request = ListDeadEntriesRequest { page_size, ..Default::default() };
        let status = service.admin().list_dead_entries(request).await.unwrap_err();
        assert_eq!(fields(&status), ["page_size"]);
        let product_id = "item-000".to_owned();
        let request = ListReservationsRequest { page_size, product_id, ..Default::default() };
        let status = service.admin().list_reservations(request).await.unwrap_err();
        assert_eq!(fields(&status), ["page_size"]);
    }
}

/// Every list refuses this token.
async fn assert_refused_everywhere(service: &Service, token: &str) {
    let page_token = token.to_owned();
    let request = ListProductsRequest { page_token: page_token.clone(), ..Default::default() };
    let status = service.buyers().list_products(request).await.unwrap_err();
    assert_eq!(fields(&status), ["page_token"], "products: {token:?}");
    let product_id = "shoe".to_owned();
    let request = ListReservationsRequest {
        page_token: page_token.clone(),
        product_id,
        ..Default::default()
    };
    let status = service.admin().list_reservations(request).await.unwrap_err();
    assert_eq!(fields(&status), ["page_token"], "reservations: {token:?}");
    let request = ListDeadEntriesRequest { page_token, ..Default::default() };
    let status = service.admin().list_dead_entries(request).await.unwrap_err();
    assert_eq!(fields(&status), ["page_token"], "dead entries: {token:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_page_token_is_refused_by_every_list() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    create_items(&service, 2).await;
    let (_, token) = page_of(&service, 1, "").await;
    let id = "00200001-0000-8000-807e-14e19590ce5a";
    let last = token.len() - 1;
    for made_up in
        ["{", "a b", "\u{202e}", "item-000", "zzz", id, "0/1-1", "9999/1-1", &token[..last]]
    {
        assert_refused_everywhere(&service, made_up).await;
    }
    assert_eq!(page_of(&service, 1, &token).await, (1, String::new()), "its own is accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn page_token_of_another_list_or_other_filters_is_refused() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 9)).await;
    for user in ["ann", "bob"] {
        service.buy("shoe", user, "r").await.unwrap();
    }
    let asked = ListReservationsRequest {
        product_id: "shoe".to_owned(),
        page_size: 1,
        ..Default::default()
    };
    let list = async |request: ListReservationsRequest| {
        service.admin().list_reservations(request).await.map(|answer| answer.into_inner())
    };
    let token = eventually("both are stored", async || {
        let page = list(asked.clone()).await.unwrap();
        (!page.next_page_token.is_empty()).then_some(page.next_page_token)
    })
    .await;
    let asked = ListReservationsRequest { page_token: token.clone(), ..asked };
    assert_eq!(list(asked.clone()).await.unwrap().reservations.len(), 1);
    let user_id = "ann".to_owned();
    let narrower = ListReservationsRequest { user_id, ..asked.clone() };
    assert_eq!(fields(&list(narrower).await.unwrap_err()), ["page_token"]);
    let request = ListProductsRequest { page_token: token.clone(), page_size: 1 };
    let status = service.buyers().list_products(request).await.unwrap_err();
    assert_eq!(fields(&status), ["page_token"]);
    let request = ListDeadEntriesRequest { page_token: token, ..Default::default() };
    let status = service.admin().list_dead_entries(request).await.unwrap_err();
    assert_eq!(fields(&status), ["page_token"]);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letter_page_token_is_valid_only_with_its_filters() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 9)).await;
    let users = ["ann", "bob", "eve"].map(str::to_owned);
    let ids = move_to_dead(&env, &service, ("shoe", Some("23514")), users).await;
    let list = async |request: ListDeadEntriesRequest| {
        service.admin().list_dead_entries(request).await.map(|answer| answer.into_inner())
    };
    let filter = DeadEntryFilter { sqlstate: "23514".to_owned(), ..Default::default() };
    let asked =
        ListDeadEntriesRequest { page_size: 1, filter: Some(filter.clone()), ..Default::default() };
    let page_token = list(asked.clone()).await.unwrap().next_page_token;
    let next = ListDeadEntriesRequest { page_token, ..asked };
    assert_eq!(list(next.clone()).await.unwrap().entries.len(), 1);
    let older_than = Some(prost_types::Duration { seconds: 0, nanos: 1 });
    let with = |filter| ListDeadEntriesRequest { filter: Some(filter), ..next.clone() };
    for other in [
        ListDeadEntriesRequest { filter: None, ..next.clone() },
        with(DeadEntryFilter { product_id: "shoe".to_owned(), ..filter.clone() }),
        with(DeadEntryFilter { older_than, ..filter.clone() }),
        ListDeadEntriesRequest { filter: None, reservation_id: ids[0].to_string(), ..next.clone() },
    ] {
        assert_eq!(fields(&list(other).await.unwrap_err()), ["page_token"]);
    }
}
