//! Products: created and changed in the ledger, applied to Redis, listed with live stock.

use futures_util::{StreamExt as _, future::join_all};
use yoink::{
    app::Role,
    grpc::pb::{
        CreateProductsRequest, GetProductRequest, ListProductsRequest, ListStorefrontRequest,
        PlaceOrderRequest, RestockRequest,
    },
};

use crate::harness::{Service, TestEnv, eventually, product, reason};

async fn stock_of(service: &Service, id: &str) -> Option<i64> {
    let request = GetProductRequest { product_id: id.to_owned() };
    let answer = service.buyers().get_product(request).await.unwrap();
    answer.into_inner().product.unwrap().stock
}

#[tokio::test(flavor = "multi_thread")]
async fn every_product_is_listed_once_ordered_by_id() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    for n in 0..25 {
        service.create(product(&format!("product-{n:02}"), 10 + n)).await;
    }
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListProductsRequest { page_size: 10, page_token };
        let page = service.buyers().list_products(request).await.unwrap().into_inner();
        found.extend(page.products);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..25).map(|n| format!("product-{n:02}")).collect();
    let ids: Vec<&String> = found.iter().map(|product| &product.product_id).collect();
    assert_eq!(ids, expected.iter().collect::<Vec<_>>());
    assert!(found.iter().zip(10..).all(|(product, stock)| product.stock == Some(stock)));
}

#[tokio::test(flavor = "multi_thread")]
async fn buyer_sees_the_stock_after_its_own_purchase() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 200)).await;
    // Each buyer reads directly after buying, while all the others read, too.
    let seen = join_all((0..100).map(|n| {
        let service = &service;
        async move {
            let bought = service.buy("shoe", &format!("user-{n}"), "").await.unwrap();
            (bought.remaining, stock_of(service, "shoe").await.unwrap())
        }
    }));
    for (remaining, stock) in seen.await {
        assert!(stock <= remaining, "{stock} seen after {remaining}");
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (100, 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_concurrent_readers_share_few_redis_calls() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let calls = async || {
        let mut cli = env.cli().await;
        let info: String =
            redis::cmd("INFO").arg("commandstats").query_async(&mut cli).await.unwrap();
        let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap();
        line.split(['=', ',']).nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = calls().await;
    let reads = 2000;
    let seen = join_all((0..reads).map(|_| stock_of(&service, "shoe"))).await;
    assert!(seen.into_iter().all(|stock| stock == Some(10)));
    let asked = calls().await - before;
    assert!(asked < reads / 4, "{asked} scripts for {reads} readers");
}

#[tokio::test(flavor = "multi_thread")]
async fn creating_a_product_again_is_idempotent_and_other_units_are_refused() {
    let env = TestEnv::new().await;
    let app = env.app(&[]).await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.create(product("shoe", 10)).await;
    assert_eq!(stock_of(&service, "shoe").await, Some(10));
    let request = CreateProductsRequest {
        products: vec![yoink::grpc::pb::NewProduct {
            product_id: "shoe".to_owned(),
            name: "Shoe".to_owned(),
            price: Some(yoink::grpc::pb::google::r#type::Money {
                currency_code: "EUR".to_owned(),
                units: 1,
                nanos: 0,
            }),
            units: 11,
            ..Default::default()
        }],
    };
    let status = service.admin().create_products(request).await.unwrap_err();
    assert_eq!(reason(&status), "SUPPLY_DIFFERS");
    drop(app);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_restock_adds_once() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 1)).await;
    service.buy("shoe", "ann", "").await.unwrap();
    assert_eq!(service.refusal("shoe", "bob", "").await, "SOLD_OUT");
    let restock = |units| RestockRequest {
        product_id: "shoe".to_owned(),
        units,
        request_id: "delivery-7".to_owned(),
        ..Default::default()
    };
    let admin = service.admin();
    let answers = join_all((0..8).map(|_| {
        let mut admin = admin.clone();
        async move { admin.restock(restock(5)).await.unwrap().into_inner() }
    }))
    .await;
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
    assert!(answers.iter().all(|answer| answer.supply == 6));
    assert_eq!(stock_of(&service, "shoe").await, Some(5));
    let status = service.admin().restock(restock(6)).await.unwrap_err();
    assert_eq!(reason(&status), "REQUEST_ID_REUSED");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grant_left_by_a_crash_is_applied_to_redis_by_any_process() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 1)).await;
    // As if the process that restocked had died after its commit.
    env.sql()
        .await
        .batch_execute(
            "UPDATE products SET supply = supply + 4, version = nextval('catalogue_version')",
        )
        .await
        .unwrap();
    eventually("the units are for sale", async || {
        (stock_of(&service, "shoe").await == Some(5)).then_some(())
    })
    .await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storefront_contract_is_served() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 500)).await;
    service.create(product("hat", 3)).await;
    let order = PlaceOrderRequest {
        product_id: "shoe".to_owned(),
        user_id: "ann".to_owned(),
        request_id: String::new(),
    };
    let placed = service.storefront().place_order(order).await.unwrap().into_inner();
    assert_eq!(placed.message, "Order accepted for processing");
    let stream = service.storefront().list_storefront(ListStorefrontRequest {}).await.unwrap();
    let items: Vec<_> = stream.into_inner().map(Result::unwrap).collect().await;
    assert_eq!(items.len(), 2);
    let shoe = &items[1];
    assert_eq!((shoe.id.as_str(), shoe.price, shoe.stock), ("shoe", 19.99, Some(499.0)));
    env.assert_audit_holds().await;
}
