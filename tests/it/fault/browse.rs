//! Products are listed while Redis is down or silent: without their stock.

use futures_util::StreamExt as _;
use yoink::{
    app::Role,
    grpc::pb::{GetProductRequest, ListProductsRequest, ListStorefrontRequest},
};

use crate::harness::{Service, TestEnv, eventually, product};

/// The stock of the product, as each call that lists products shows it.
async fn reported(service: &Service) -> [Option<i64>; 3] {
    let request = ListProductsRequest::default();
    let listed = service.buyers().list_products(request).await.unwrap().into_inner();
    assert_eq!(listed.products.len(), 1);
    let request = GetProductRequest { product_id: "shoe".to_owned() };
    let one = service.buyers().get_product(request).await.unwrap().into_inner().product.unwrap();
    assert_eq!(one.name, listed.products[0].name);
    let stream = service.storefront().list_storefront(ListStorefrontRequest {}).await.unwrap();
    let items: Vec<_> = stream.into_inner().map(Result::unwrap).collect().await;
    assert_eq!(items.len(), 1);
    let stock = items[0].stock.map(|stock| format!("{stock:.0}").parse().unwrap());
    [listed.products[0].stock, one.stock, stock]
}

#[tokio::test(flavor = "multi_thread")]
async fn products_are_listed_without_stock_while_redis_is_down_or_silent() {
    let mut env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let with_stock = async |units: i64| {
        eventually("the stock is shown", async || {
            (reported(&service).await == [Some(units); 3]).then_some(())
        })
        .await;
    };
    with_stock(10).await;
    env.redis.as_ref().unwrap().pause();
    assert_eq!(reported(&service).await, [None; 3], "a silent Redis");
    env.redis.as_ref().unwrap().resume();
    with_stock(10).await;
    env.redis.as_mut().unwrap().kill();
    assert_eq!(reported(&service).await, [None; 3], "a Redis that is down");
    env.redis.as_mut().unwrap().restart().unwrap();
    with_stock(10).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    with_stock(9).await;
    env.assert_audit_holds().await;
}
