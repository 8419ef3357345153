//! Per-user limits, sale windows, emergency stop.

use futures_util::future::join_all;
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    domain::Sale,
    grpc::pb::{ProductStatus, UpdateProductRequest},
};

use crate::harness::{TestEnv, eventually, product};

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_never_exceed_the_limit_per_user() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let mut shoe = product("shoe", 100);
    shoe.sale = Sale { per_user_limit: Some(2), ..shoe.sale };
    service.create(shoe).await;
    let answers = join_all((0..40).map(|n| service.buy("shoe", ["ann", "bob"][n % 2], ""))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 4);
    assert_eq!(service.refusal("shoe", "ann", "new").await, "LIMIT_REACHED");
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn sale_window_follows_the_clock_of_redis() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let now = jiff::Timestamp::now().as_millisecond();
    let window = |id: &str, opens: Option<i64>, closes: Option<i64>| {
        let mut product = product(id, 10);
        product.sale = Sale { opens_at_ms: opens, closes_at_ms: closes, ..product.sale };
        product
    };
    let hour = 3_600_000;
    service.create(window("early", Some(now + hour), None)).await;
    service.create(window("late", None, Some(now - hour))).await;
    service.create(window("open", Some(now - hour), Some(now + hour))).await;
    assert_eq!(service.refusal("early", "ann", "").await, "SALE_NOT_OPEN");
    let status = service.buy("late", "ann", "").await.unwrap_err();
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.reason, "SALE_CLOSED");
    let closed_at: jiff::Timestamp = info.metadata["closes_at"].parse().unwrap();
    assert_eq!(closed_at.as_millisecond(), now - hour);
    service.buy("open", "ann", "").await.unwrap();
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emergency_stop_is_one_call_and_can_be_reverted() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let first = service.buy("shoe", "ann", "r1").await.unwrap();
    let set = async |status: ProductStatus| {
        let product_id = "shoe".to_owned();
        let request =
            UpdateProductRequest { product_id, status: status.into(), ..Default::default() };
        service.admin().update_product(request).await.unwrap()
    };
    set(ProductStatus::Stopped).await;
    assert_eq!(service.refusal("shoe", "bob", "").await, "SALE_STOPPED");
    let again = service.buy("shoe", "ann", "r1").await.unwrap();
    assert_eq!(
        again.reservation_id, first.reservation_id,
        "a repeated request gets its first answer"
    );
    set(ProductStatus::OnSale).await;
    service.buy("shoe", "bob", "").await.unwrap();
    set(ProductStatus::Retired).await;
    assert_eq!(service.refusal("shoe", "bob", "").await, "SALE_CLOSED");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limit_set_later_counts_new_units_and_after_a_rebuild_all_confirmed_ones() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 100)).await;
    for user in ["ann", "bob"] {
        for n in 0..2 {
            service.buy("shoe", user, &format!("early-{n}")).await.unwrap();
        }
    }
    let limit = UpdateProductRequest {
        product_id: "shoe".to_owned(),
        per_user_limit: 3,
        update_mask: Some(prost_types::FieldMask { paths: vec!["per_user_limit".to_owned()] }),
        ..Default::default()
    };
    service.admin().update_product(limit).await.unwrap();
    // What ann has bought before does not count.
    for n in 0..3 {
        service.buy("shoe", "ann", &format!("later-{n}")).await.unwrap();
    }
    assert_eq!(service.refusal("shoe", "ann", "more").await, "LIMIT_REACHED");
    env.assert_audit_holds().await;

    let () = redis::cmd("FLUSHALL").query_async(&mut env.cli().await).await.unwrap();
    // The ledger has two orders of bob from before the limit: one more is allowed.
    eventually("it sells again", async || service.buy("shoe", "bob", "last").await.ok()).await;
    assert_eq!(service.refusal("shoe", "bob", "more").await, "LIMIT_REACHED");
    assert_eq!(service.refusal("shoe", "ann", "more").await, "LIMIT_REACHED", "she has five");
    for n in 0..3 {
        service.buy("shoe", "cid", &format!("r{n}")).await.unwrap();
    }
    assert_eq!(service.refusal("shoe", "cid", "more").await, "LIMIT_REACHED");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (11, 89));
}
