//! The schema changes while a process runs: its prepared statements are prepared again, so that an operator's stop
//! takes effect, orders are stored, and buyers find them.

use yoink::{
    app::Role,
    grpc::pb::{ProductStatus, UpdateProductRequest},
};

use crate::harness::{Binary, Service, TestEnv, eventually, get, product};

/// What an operator does in an emergency, and afterwards.
pub async fn set_status(service: &Service, status: ProductStatus) -> Result<(), tonic::Status> {
    let request = UpdateProductRequest {
        product_id: "shoe".to_owned(),
        status: status.into(),
        ..UpdateProductRequest::default()
    };
    service.admin().update_product(request).await.map(drop)
}

async fn stored(env: &TestEnv, orders: i64) {
    eventually("the orders are stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == orders).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn column_type_change_while_running_stops_no_emergency_stop_and_no_order() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 100)).await;
    let early = service.buy("shoe", "early", "r").await.unwrap();
    stored(&env, 1).await;
    service.reservation(&early.reservation_id).await.unwrap();

    let sql = env.sql().await;
    for change in [
        "ALTER TABLE products ALTER COLUMN name TYPE varchar(300)",
        "ALTER TABLE reservations ALTER COLUMN user_id TYPE varchar(200)",
        "ALTER TABLE reservations ALTER COLUMN void_reason TYPE varchar(2000)",
    ] {
        sql.batch_execute(change).await.unwrap();
    }
    set_status(&service, ProductStatus::Stopped).await.unwrap();
    assert_eq!(service.refusal("shoe", "ann", "r").await, "SALE_STOPPED");
    set_status(&service, ProductStatus::OnSale).await.unwrap();
    let late = service.buy("shoe", "late", "r").await.unwrap();
    stored(&env, 2).await;
    for bought in [early, late] {
        let found = service.reservation(&bought.reservation_id).await.unwrap();
        assert_eq!(found.state().as_str_name(), "RESERVATION_STATE_CONFIRMED");
    }
    let ready = get(service.http, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with("ok\n"), "{ready}");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_prepared_statements_are_prepared_again_and_orders_are_stored() {
    let env = TestEnv::with_own_redis().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 100)).await;
    let mut worker = Binary::serve_as("worker", &env, &[], None);
    worker.channel().await;
    // Each connection that stores orders drops its prepared statements.
    let sql = "CREATE FUNCTION discard() RETURNS trigger LANGUAGE plpgsql AS
                   $$ BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN NULL; END $$;
               CREATE TRIGGER discard AFTER INSERT ON reservations
                   FOR EACH STATEMENT EXECUTE FUNCTION discard()";
    env.sql().await.batch_execute(sql).await.unwrap();
    for order in 1..=5 {
        api.buy("shoe", &format!("user-{order}"), "r").await.unwrap();
        stored(&env, order).await;
    }
    assert!(!worker.log().contains("consumption paused"), "{}", worker.log());
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_catalogue_is_reported_by_readiness() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 100)).await;
    let sql = env.sql().await;
    sql.batch_execute("ALTER TABLE products RENAME COLUMN version TO edition").await.unwrap();
    eventually("readiness names the catalogue", async || {
        get(service.http, "/readyz").await.contains("the catalogue was not read for").then_some(())
    })
    .await;
    sql.batch_execute("ALTER TABLE products RENAME COLUMN edition TO version").await.unwrap();
    eventually("it is read again", async || {
        get(service.http, "/readyz").await.ends_with("ok\n").then_some(())
    })
    .await;
    env.assert_audit_holds().await;
}
