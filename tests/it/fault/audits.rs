//! Long audits: one at a time, and cancelled when the caller is gone.

use std::{pin::pin, time::Duration};

use tonic::Code;
use yoink::{
    app::Role,
    grpc::pb::{AuditRequest, AuditVerdict, ListDeadEntriesRequest},
};

use crate::harness::{TestEnv, eventually, product};

/// Each read of the orders sleeps for ten minutes.
async fn slow_down(env: &TestEnv) {
    let view = "ALTER TABLE reservations RENAME TO orders_aside;
                CREATE VIEW reservations AS SELECT * FROM orders_aside
                 WHERE (SELECT pg_sleep(600)) IS NOT NULL;
                GRANT SELECT ON reservations TO yoink_serve";
    env.sql().await.batch_execute(view).await.unwrap();
}

async fn speed_up(env: &TestEnv) {
    let view = "DROP VIEW reservations; ALTER TABLE orders_aside RENAME TO reservations";
    env.sql().await.batch_execute(view).await.unwrap();
}

/// The connections on which an audit reads now.
async fn reading(env: &TestEnv) -> Vec<i32> {
    let sql = "SELECT pid FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event = 'PgSleep'";
    env.sql().await.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

async fn reads_one(env: &TestEnv, but: Option<i32>) -> i32 {
    eventually("an audit reads", async || match reading(env).await[..] {
        [pid] if Some(pid) != but => Some(pid),
        _ => None,
    })
    .await
}

async fn reads_none(env: &TestEnv) {
    eventually("no audit reads", async || reading(env).await.is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_audit_is_cancelled_in_postgres() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    slow_down(&env).await;
    let mut admin = service.admin();
    tokio::select! {
        answered = admin.audit(AuditRequest::default()) => panic!("{answered:?}"),
        _ = reads_one(&env, None) => {}
    }
    // The caller has disconnected.
    reads_none(&env).await;
    let abandoned = service.audit_within(Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(abandoned.code(), Code::DeadlineExceeded);
    reads_none(&env).await;
    speed_up(&env).await;
    let report = admin.audit(AuditRequest::default()).await.unwrap().into_inner();
    assert_eq!(report.verdict(), AuditVerdict::Holds);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_audits_of_a_process_run_one_after_another() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    slow_down(&env).await;
    let (mut admin, mut other, mut third) = (service.admin(), service.admin(), service.admin());
    let mut later = pin!(other.audit(AuditRequest::default()));
    let first = {
        let mut audit = pin!(admin.audit(AuditRequest::default()));
        let first = tokio::select! {
            answered = &mut audit => panic!("{answered:?}"),
            pid = reads_one(&env, None) => pid,
        };
        // Many other calls are answered meanwhile, and the second audit still waits.
        let watch = async {
            for _ in 0..20 {
                third.list_dead_entries(ListDeadEntriesRequest::default()).await.unwrap();
                assert_eq!(reading(&env).await, [first]);
            }
        };
        tokio::select! {
            answered = &mut audit => panic!("{answered:?}"),
            answered = &mut later => panic!("{answered:?}"),
            () = watch => {}
        }
        first
    };
    // The caller of the first audit has disconnected: the second audit runs.
    tokio::select! {
        answered = &mut later => panic!("{answered:?}"),
        _ = reads_one(&env, Some(first)) => {}
    }
    let stop = async {
        // An operator ends its query; then it reports what it could not read.
        eventually("it is answered", async || {
            let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event = 'PgSleep'";
            env.sql().await.query(sql, &[]).await.unwrap();
            None::<()>
        })
        .await;
    };
    tokio::select! {
        answered = &mut later => {
            assert_eq!(answered.unwrap().into_inner().verdict(), AuditVerdict::Unknown);
        }
        () = stop => {}
    }
    speed_up(&env).await;
    env.assert_audit_holds().await;
}
