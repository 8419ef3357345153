//! Redis sends malformed replies: another program's data is under the keys of the service.

use redis::AsyncCommands as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use yoink::{app::Role, grpc::pb::GetProductRequest};

use crate::harness::{TestEnv, eventually, get, product, reason};

async fn key(env: &TestEnv, name: &str) -> String {
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    format!("{}:{{{partition}}}:{name}", env.prefix)
}

/// Asserts an internal error that is not reported as an unavailable Redis; returns its `applied`.
fn internal(status: &Status) -> String {
    assert_eq!(
        (status.code(), reason(status).as_str()),
        (Code::Internal, "INTERNAL"),
        "{status:?}"
    );
    assert!(!status.message().contains("unavailable"), "{status:?}");
    status.get_details_error_info().unwrap().metadata["applied"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_script_reply_is_an_internal_error() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let bought = service.buy("shoe", "ann", "r").await.unwrap();
    let mut cli = env.cli().await;

    // A remembered request id without a valid reservation id: the script returns it as it is.
    let pattern = format!("{}:*", key(&env, "idempotency").await);
    let windows: Vec<String> = cli.keys(pattern).await.unwrap();
    let remembered: String = cli.hget(&windows[0], "ann/shoe/r").await.unwrap();
    let () = cli.hset(&windows[0], "ann/shoe/r", "nonsense").await.unwrap();
    assert_eq!(internal(&service.buy("shoe", "ann", "r").await.unwrap_err()), "maybe");
    let () = cli.hset(&windows[0], "ann/shoe/r", remembered).await.unwrap();

    // A stock that is not a whole number: the script fails, and so does every reader of it.
    let stock = key(&env, "stock").await;
    for bad in ["many", "12.5", "5.0", "1e3"] {
        let () = cli.hset(&stock, "shoe", bad).await.unwrap();
        assert_eq!(internal(&service.buy("shoe", "bob", "r").await.unwrap_err()), "maybe");
        let request = GetProductRequest { product_id: "shoe".to_owned() };
        internal(&service.buyers().get_product(request).await.unwrap_err());
        let now: String = cli.hget(&stock, "shoe").await.unwrap();
        assert_eq!(now, bad, "nothing was written");
    }
    let () = cli.hset(&stock, "shoe", 9).await.unwrap();

    // A key that is not a stream: a look-up has changed nothing.
    let (orders, aside) = (key(&env, "orders").await, key(&env, "aside").await);
    let mut swap = redis::pipe();
    swap.atomic().rename(&orders, &aside).set(&orders, "x");
    let () = swap.query_async(&mut cli).await.unwrap();
    let status = service.reservation(&bought.reservation_id).await.unwrap_err();
    assert_eq!(internal(&status), "no");
    let () = cli.rename(&aside, &orders).await.unwrap();

    let again = service.buy("shoe", "ann", "r").await.unwrap();
    assert_eq!((again.duplicate, &again.reservation_id), (true, &bought.reservation_id));
    let worker = env.serve(Role::Worker, &[]).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_reports_malformed_redis_replies_and_recovers() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    let (orders, aside) = (key(&env, "orders").await, key(&env, "aside").await);
    let mut swap = redis::pipe();
    swap.atomic().rename(&orders, &aside).set(&orders, "x");
    let () = swap.query_async(&mut env.cli().await).await.unwrap();
    let ready = eventually("readiness names it", async || {
        let ready = get(service.http, "/readyz").await;
        ready.contains("does not understand").then_some(ready)
    })
    .await;
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    assert!(!ready.contains("unavailable"), "{ready}");
    let () = env.cli().await.rename(&aside, &orders).await.unwrap();
    eventually("it is ready again", async || {
        get(service.http, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    service.buy("shoe", "bob", "r").await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8));
}
