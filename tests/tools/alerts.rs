//! Each alert fires on its fault, and clears when the fault is removed.

use futures_util::future::join_all;
use yoink::{
    app::Role,
    grpc::pb::{ListReservationsRequest, ReleaseDeadEntriesRequest},
};

use crate::{
    harness::{Authority, Service, TestEnv, Validity, dead_entries, product, run_yoink},
    prometheus::{Prometheus, alerts},
    running_load::RunningLoad,
};

async fn selling(env: &TestEnv, role: Role, more: &[(&'static str, &str)]) -> Service {
    let service = env.serve(role, more).await;
    service.create(product("shoe", 1_000_000)).await;
    service
}

#[test]
fn every_alert_is_tested_and_has_a_runbook() {
    let document = include_str!("../../docs/operations.md");
    for alert in alerts() {
        assert!(include_str!("alerts.rs").contains(&format!("fires(\"{alert}\")")), "{alert}");
        assert!(document.contains(&format!("\n### {alert}\n")), "{alert} has no runbook");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn service_that_does_not_answer_fires_its_alert() {
    let env = TestEnv::new().await;
    // The port stays the test's while no service answers there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    port.set_nonblocking(true).unwrap();
    let config = env.config(&[]);
    let start = async || {
        let http = tokio::net::TcpListener::from_std(port.try_clone().unwrap()).unwrap();
        Service::start_on(&config, Role::All, http).await
    };
    let service = start().await;
    let service_address = service.http;
    let watch = Prometheus::watching(service_address).await;
    service.stop().await;
    watch.fires("YoinkDown").await;
    watch.announces(&format!("{service_address} does not answer a scrape")).await;
    let again = start().await;
    watch.clears().await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_missing_from_discovery_fires_its_alert() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    let watch = Prometheus::watching(service.http).await;
    watch.finds(&[]);
    watch.fires("YoinkDown").await;
    watch.announces("No process answers a scrape").await;
    watch.finds(&[service.http]);
    watch.clears().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_down_fires_its_alert() {
    let mut env = TestEnv::with_own_redis().await;
    let service = selling(&env, Role::All, &[]).await;
    let watch = Prometheus::watching(service.http).await;
    env.redis.as_mut().unwrap().kill();
    watch.fires("YoinkRedisDown").await;
    env.redis.as_mut().unwrap().restart().unwrap();
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_down_fires_its_alert() {
    let mut env = TestEnv::with_own_postgres().await;
    let service = selling(&env, Role::All, &[]).await;
    let watch = Prometheus::watching(service.http).await;
    env.postgres.as_mut().unwrap().stop();
    watch.fires("YoinkPostgresDown").await;
    env.postgres.as_mut().unwrap().restart().unwrap();
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_awaiting_rebuild_fires_its_alert() {
    let mut env = TestEnv::with_own_redis().await;
    let service = selling(&env, Role::All, &[("recovery", "manual")]).await;
    let watch = Prometheus::watching(service.http).await;
    let redis = env.redis.as_mut().unwrap();
    redis.kill();
    redis.restart().unwrap();
    watch.fires("YoinkPartitionFenced").await;
    let rebuilt = run_yoink(&env, &["rebuild"]);
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unit_without_a_grant_fires_its_alert() {
    let env = TestEnv::new().await;
    let service = selling(&env, Role::All, &[("audit_interval_ms", "200")]).await;
    let watch = Prometheus::watching(service.http).await;
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let stock = format!("{}:{{{partition}}}:stock", env.prefix);
    let forge = async |units: i64| {
        let mut command = redis::cmd("HINCRBY");
        command.arg(&stock).arg("shoe").arg(units);
        let _: i64 = command.query_async(&mut env.cli().await).await.unwrap();
    };
    forge(1).await;
    watch.fires("YoinkAuditViolated").await;
    forge(-1).await;
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_without_access_to_a_partition_fires_its_alert() {
    let env = TestEnv::new().await;
    let settings = [("audit_interval_ms", "200"), ("recovery", "manual")];
    let service = selling(&env, Role::All, &settings).await;
    let watch = Prometheus::watching(service.http).await;
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let mut close = redis::cmd("HSET");
    close.arg(format!("{}:{{{partition}}}:meta", env.prefix)).arg("status").arg("closed");
    let _: i64 = close.query_async(&mut env.cli().await).await.unwrap();
    watch.fires("YoinkAuditIncomplete").await;
    let rebuilt = run_yoink(&env, &["rebuild"]);
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stderr));
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_that_was_not_audited_for_long_fires_its_alert() {
    let env = TestEnv::new().await;
    let auditing = [("audit_interval_ms", "200")];
    let worker = selling(&env, Role::All, &auditing).await;
    // Its time stays, and no other worker audits.
    let watch = Prometheus::watching(worker.http).await;
    watch
        .until("an audit is known", async || {
            let audited = watch.query("yoink_audit_last_timestamp_seconds").await;
            (!audited.is_empty()).then_some(())
        })
        .await;
    worker.stop().await;
    let silent = env.serve(Role::All, &[("audit_interval_ms", "0")]).await;
    watch.finds(&[silent.http]);
    watch.fires("YoinkAuditOld").await;
    let worker = env.serve(Role::All, &auditing).await;
    watch.finds(&[silent.http, worker.http]);
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_reservations_fire_their_alert() {
    let env = TestEnv::with_own_redis().await;
    let api = selling(&env, Role::Api, &[]).await;
    let worker = env.serve(Role::Worker, &[("audit_interval_ms", "200")]).await;
    let watch = Prometheus::watching(worker.http).await;
    // Nothing is stored before Redis has lost it.
    let sql = env.sql().await;
    sql.batch_execute("BEGIN; LOCK TABLE reservations IN ACCESS EXCLUSIVE MODE").await.unwrap();
    api.buy("shoe", "ann", "r").await.unwrap();
    let () = redis::cmd("FLUSHALL").query_async(&mut env.cli().await).await.unwrap();
    watch
        .until("a rebuild has begun", async || {
            let waiting = env.count("SELECT count(*) FROM partitions WHERE epoch = 1").await;
            (waiting == 0).then_some(())
        })
        .await;
    sql.batch_execute("ROLLBACK").await.unwrap();
    watch.fires("YoinkReservationsLost").await;
    watch.clears().await;
    assert_eq!(env.assert_audit_holds().await.lost.len(), 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_without_a_worker_fire_their_alert() {
    let env = TestEnv::new().await;
    let service = selling(&env, Role::All, &[]).await;
    let watch = Prometheus::watching(service.http).await;
    let sql = env.sql().await;
    sql.batch_execute("ALTER TABLE reservations RENAME COLUMN user_id TO uid").await.unwrap();
    service.buy("shoe", "ann", "r").await.unwrap();
    watch.fires("YoinkConsumptionPaused").await;
    sql.batch_execute("ALTER TABLE reservations RENAME COLUMN uid TO user_id").await.unwrap();
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_refused_with_an_unlisted_code_fires_its_alert() {
    let env = TestEnv::new().await;
    let service = selling(&env, Role::All, &[]).await;
    let watch = Prometheus::watching(service.http).await;
    let sql = env.sql().await;
    let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                       $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
                   CREATE TRIGGER refuse BEFORE INSERT ON reservations
                       FOR EACH ROW EXECUTE FUNCTION refuse()";
    sql.batch_execute(trigger).await.unwrap();
    service.buy("shoe", "ann", "r").await.unwrap();
    watch.fires("YoinkUnlistedSqlstate").await;
    sql.batch_execute("DROP TRIGGER refuse ON reservations").await.unwrap();
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_orders_fire_their_alert() {
    let env = TestEnv::new().await;
    let service = selling(&env, Role::Api, &[]).await;
    let watch = Prometheus::watching(service.http).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    watch.fires("YoinkOrdersWaiting").await;
    let worker = env.serve(Role::Worker, &[]).await;
    watch.clears().await;
    env.assert_audit_holds().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filling_backlog_fires_its_alert() {
    let env = TestEnv::new().await;
    let service = selling(&env, Role::Api, &[("backlog_max_entries", "10")]).await;
    let watch = Prometheus::watching(service.http).await;
    for n in 0..6 {
        service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
    }
    watch.fires("YoinkBacklogFilling").await;
    let worker = env.serve(Role::Worker, &[]).await;
    watch.clears().await;
    env.assert_audit_holds().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unstorable_orders_fire_their_alert() {
    let env = TestEnv::new().await;
    let settings = [("deliveries_max", "1"), ("dead_letter_release", "manual")];
    let service = selling(&env, Role::All, &settings).await;
    let watch = Prometheus::watching(service.http).await;
    let poison = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'bad')";
    env.sql().await.batch_execute(poison).await.unwrap();
    service.buy("shoe", "bad", "r").await.unwrap();
    watch.fires("YoinkDeadEntries").await;
    let all = ReleaseDeadEntriesRequest {
        selector: dead_entries::all(),
        actor: "ann".to_owned(),
        reason: "a test".to_owned(),
        ..Default::default()
    };
    service.admin().release_dead_entries(all).await.unwrap();
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_calls_fire_their_alert() {
    let mut env = TestEnv::with_own_redis().await;
    let service = selling(&env, Role::All, &[]).await;
    let watch = Prometheus::watching(service.http).await;
    let load = RunningLoad::on(&service, "shoe");
    env.redis.as_mut().unwrap().kill();
    watch.fires("YoinkFailing").await;
    env.redis.as_mut().unwrap().restart().unwrap();
    watch.clears().await;
    load.stop().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_calls_fire_their_alert() {
    let env = TestEnv::with_own_redis().await;
    let service = selling(&env, Role::All, &[]).await;
    let watch = Prometheus::watching(service.http).await;
    let load = RunningLoad::on(&service, "shoe");
    let mut cli = env.cli().await;
    // Redis repeatedly does not run for most of a second.
    let stand_still = async {
        let mut beat = tokio::time::interval(std::time::Duration::from_millis(900));
        loop {
            beat.tick().await;
            let mut pause = redis::cmd("CLIENT");
            let () = pause.arg("PAUSE").arg(800).query_async(&mut cli).await.unwrap();
        }
    };
    tokio::select! {
        () = watch.fires("YoinkSlow") => {}
        () = stand_still => {}
    }
    watch.clears().await;
    load.stop().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_calls_fire_their_alert() {
    let env = TestEnv::new().await;
    let service = selling(&env, Role::All, &[("address_calls_per_second", "1")]).await;
    let watch = Prometheus::watching(service.http).await;
    let load = RunningLoad::on(&service, "shoe");
    watch.fires("YoinkShedding").await;
    load.stop().await;
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_fire_their_alert() {
    let env = TestEnv::new().await;
    let service = selling(&env, Role::All, &[("connections_max", "12")]).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    let watch = Prometheus::watching(service.http).await;
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", service.grpc));
    let endpoint = endpoint.unwrap();
    let mut held = Vec::new();
    // The service's own client has one already.
    for _ in 0..11 {
        held.push(endpoint.connect().await.unwrap());
    }
    watch.fires("YoinkConnectionsFilling").await;
    let one_more = endpoint.connect().await;
    watch.fires("YoinkConnectionsLimited").await;
    drop((held, one_more));
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_without_free_connections_fires_its_alert() {
    let env = TestEnv::new().await;
    let service = selling(&env, Role::Api, &[]).await;
    let watch = Prometheus::watching(service.http).await;
    let sql = env.sql().await;
    sql.batch_execute("BEGIN; LOCK TABLE reservations IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let list = || async {
        let product_id = "shoe".to_owned();
        let request = ListReservationsRequest { product_id, ..Default::default() };
        // Refused, or kept waiting.
        drop(service.admin().list_reservations(request).await);
    };
    let many = async {
        loop {
            join_all((0..40).map(|_| list())).await;
        }
    };
    tokio::select! {
        () = watch.fires("YoinkLedgerConnectionsExhausted") => {}
        () = many => {}
    }
    sql.batch_execute("ROLLBACK").await.unwrap();
    watch.clears().await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_files_that_cannot_be_used_fire_their_alert() {
    let env = TestEnv::new().await;
    let client = Authority::new().issue("client", &[], Validity::Now);
    let (cert, key) = client.texts();
    let url = format!("{}?sslcert={cert}&sslkey={key}", env.postgres_url());
    let service = env.serve(Role::All, &[("postgres_url", &url)]).await;
    let watch = Prometheus::watching(service.http).await;
    let good = std::fs::read(key).unwrap();
    std::fs::write(key, "broken").unwrap();
    watch.fires("YoinkTlsFilesRefused").await;
    std::fs::write(key, good).unwrap();
    watch.clears().await;
    service.stop().await;
}
