//! A loss is announced also while the partition that lost it cannot be audited.

use tokio::task::block_in_place;
use yoink::{
    app::Role,
    grpc::pb::{AuditRequest, AuditVerdict},
};

use crate::harness::{TestEnv, eventually, get, product, run_yoink};

fn rebuild(env: &TestEnv) -> String {
    let output = block_in_place(|| run_yoink(env, &["rebuild"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn loss_is_reported_while_its_partition_is_fenced_again() {
    let env = TestEnv::with_own_redis().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 10)).await;
    for user in ["ann", "bob", "cid"] {
        api.buy("shoe", user, "r").await.unwrap();
    }
    let mut cli = env.cli().await;
    let () = redis::cmd("FLUSHALL").query_async(&mut cli).await.unwrap();
    assert!(rebuild(&env).contains("lost exactly 3 of epoch 1"));
    // The partition is fenced again before an audit has run.
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let mut close = redis::cmd("HSET");
    close.arg(format!("{}:{{{partition}}}:meta", env.prefix)).arg("status").arg("closed");
    let _: i64 = close.query_async(&mut cli).await.unwrap();

    let report = api.admin().audit(AuditRequest::default()).await.unwrap().into_inner();
    assert_eq!(report.verdict(), AuditVerdict::Unknown);
    let lost: Vec<_> = report.lost.iter().map(|lost| (lost.count, lost.exact)).collect();
    assert_eq!(lost, [(3, true)]);
    let settings = [("recovery", "manual"), ("audit_interval_ms", "100")];
    let worker = env.serve(Role::Worker, &settings).await;
    eventually("the worker announces it", async || {
        let metrics = get(worker.http, "/metrics").await;
        let gauge = |name: &str, label: &str, value: &str| {
            metrics.lines().any(|line| {
                line.starts_with(name)
                    && line.contains(label)
                    && line.ends_with(&format!(" {value}"))
            })
        };
        let announced = gauge("yoink_lost_reservations{", "\"exact\"", "3");
        (announced && gauge("yoink_audit_unknown{", "", "1")).then_some(())
    })
    .await;

    rebuild(&env);
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.lost.len()), (10, 1));
    worker.stop().await;
}
