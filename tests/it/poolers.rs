//! A pooler between the service and Postgres. One that keeps a backend per connection works;
//! one that does not is refused before anything is done.

use tokio::task::block_in_place;
use yoink::{
    app::Role,
    grpc::pb::{ProductStatus, UpdateProductRequest},
    servers::PostgresServer,
};

use crate::harness::{
    PgBouncer, TestEnv, eventually, product, reason, run_yoink_with, scratch_dir, shared,
};

/// Locks that are held outside of a transaction of the catalogue.
const ADVISORY: &str = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
                         WHERE locktype = 'advisory' AND d.datname = current_database()";

#[tokio::test(flavor = "multi_thread")]
async fn session_pooling_sells_stores_rebuilds_and_leaves_no_lock() {
    tokio::task::spawn_blocking(shared).await.unwrap();
    let env = TestEnv::with_own_redis().await;
    let pooler = PgBouncer::start(shared().postgres.port(), "session").await;
    let url = pooler.url(&env.database);
    let migrated = block_in_place(|| run_yoink_with(&env, &[("postgres_url", &url)], &["migrate"]));
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let service = env.serve(Role::All, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 100)).await;
    for n in 0..10 {
        service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
    }
    env.assert_audit_holds().await;
    let flushed = redis::cmd("FLUSHALL").exec_async(&mut env.cli().await).await;
    flushed.unwrap();
    eventually("it sells again", async || service.buy("shoe", "late", "r").await.ok()).await;
    eventually("no lock is left", async || (env.count(ADVISORY).await == 0).then_some(())).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (11, 89));
}

#[tokio::test(flavor = "multi_thread")]
async fn session_pooling_keeps_the_connection_timeouts() {
    let dir = scratch_dir("postgres");
    let mut env = TestEnv::with_own_redis().await;
    let postgres = block_in_place(|| PostgresServer::start(&dir, &["fsync=off"]).unwrap());
    block_in_place(|| postgres.create_database(&env.database)).unwrap();
    let pooler = PgBouncer::start(postgres.port(), "session").await;
    let url = pooler.url(&env.database);
    yoink::ledger::migrate(&url.parse().unwrap()).await.unwrap();
    env.postgres = Some(postgres);
    let service = env.serve(Role::Api, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 100)).await;
    let blocker = env.sql().await;
    blocker
        .batch_execute("BEGIN; LOCK TABLE supply_changes IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let stop = UpdateProductRequest {
        product_id: "shoe".to_owned(),
        status: ProductStatus::Stopped.into(),
        ..UpdateProductRequest::default()
    };
    let restock = yoink::grpc::pb::RestockRequest {
        product_id: "shoe".to_owned(),
        units: 1,
        request_id: "more".to_owned(),
        ..Default::default()
    };
    let refused = service.admin().restock(restock).await.unwrap_err();
    assert_eq!(reason(&refused), "LEDGER_UNAVAILABLE");
    // The logger of Postgres is another process and writes with a delay.
    eventually("the log of Postgres shows the reason", async || {
        let log = std::fs::read_to_string(dir.join("postgres.log")).unwrap();
        log.contains("canceling statement due to lock timeout").then_some(())
    })
    .await;
    blocker.batch_execute("ROLLBACK").await.unwrap();
    service.admin().update_product(stop).await.unwrap();
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_pooling_is_refused_by_every_command_and_named() {
    tokio::task::spawn_blocking(shared).await.unwrap();
    let env = TestEnv::new().await;
    for mode in ["transaction", "statement"] {
        let pooler = PgBouncer::start(shared().postgres.port(), mode).await;
        let url = pooler.url(&env.database);
        for command in ["migrate", "serve", "audit", "rebuild", "export"] {
            let refused =
                block_in_place(|| run_yoink_with(&env, &[("postgres_url", &url)], &[command]));
            let message = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(2), "{mode}, {command}: {message}");
            for name in ["postgres_url", "pool_mode = session"] {
                assert!(message.contains(name), "{mode}, {command}: {message}");
            }
        }
        assert_eq!(env.count(ADVISORY).await, 0);
    }
}
