//! A long read whose caller is gone is cancelled in Postgres.

use tokio_util::sync::CancellationToken;
use yoink::app::Role;

use crate::harness::{TestEnv, eventually, product};

/// The queries of this program that run in this database.
const RUNNING: &str = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = 'yoink'
                          AND state = 'active' AND wait_event = 'PgSleep'";

#[tokio::test(flavor = "multi_thread")]
async fn audit_is_cancelled_in_postgres_when_its_caller_disconnects() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    service.stop().await;

    let sql = env.sql().await;
    let slow = "ALTER TABLE reservations RENAME TO fast;
                CREATE VIEW reservations AS SELECT fast.* FROM fast, pg_sleep(1000);
                GRANT SELECT ON reservations TO yoink_serve";
    sql.batch_execute(slow).await.unwrap();
    let (stores, gives_up) = (env.stores().await, CancellationToken::new());
    let auditor = &stores.auditor;
    let caller = async {
        eventually("the audit reads", async || (env.count(RUNNING).await == 1).then_some(())).await;
        gives_up.cancel();
    };
    let (audited, ()) = tokio::join!(gives_up.run_until_cancelled(auditor.audit()), caller);
    assert!(audited.is_none(), "it was not done");
    eventually("Postgres has ended it", async || (env.count(RUNNING).await == 0).then_some(()))
        .await;
    let fast = "DROP VIEW reservations; ALTER TABLE fast RENAME TO reservations";
    sql.batch_execute(fast).await.unwrap();
    env.assert_audit_holds().await;
}
