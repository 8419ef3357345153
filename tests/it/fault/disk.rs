//! A disk is full: what cannot be written is refused as a whole, and work continues when there is space again.

use tokio::task::block_in_place;
use tonic::Code;
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    servers::{AppendFsync, PostgresServer, RedisServer},
};

use super::{answer_log::AnswerLog, small_disk::SmallDisk};
use crate::harness::{
    Binary, Service, TestEnv, eventually, get, product, reason, scratch_dir, try_redis_cli,
};

/// A Redis whose directory is a small disk.
async fn redis_on(disk: &SmallDisk, fsync: AppendFsync) -> TestEnv {
    let mut env = TestEnv::new().await;
    let wrapper = disk.wrapper();
    let wrapper = wrapper.each_ref().map(String::as_str);
    let start = || RedisServer::start_under(disk.dir(), fsync, &wrapper).unwrap();
    env.redis = Some(block_in_place(start));
    env
}

/// Buys until the disk is full and a buyer is refused; the answers of the others are recorded.
async fn buy_until_refused(service: &Service, answers: &mut AnswerLog) -> tonic::Status {
    for n in 0..2_000 {
        let user = format!("buyer-full-{n}");
        let answer = service.buy("shoe", &user, "r").await;
        let status = answer.as_ref().err().cloned();
        answers.note(user, answer.map(|bought| bought.reservation_id));
        if let Some(status) = status {
            return status;
        }
    }
    panic!("never refused")
}

/// Every accepted buyer gets the same answer again.
async fn each_keeps_the_answer(service: &Service, answers: &AnswerLog) {
    for (user, id) in &answers.accepted {
        let again = service.buy("shoe", user, "r").await.unwrap();
        assert_eq!((again.duplicate, &again.reservation_id), (true, id), "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_redis_disk_refuses_whole_calls_and_recovers_by_itself() {
    let Some(disk) = SmallDisk::new(16) else { return };
    let env = redis_on(&disk, AppendFsync::Everysec).await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10_000)).await;
    let mut answers = AnswerLog::default();
    disk.fill();
    let status = buy_until_refused(&service, &mut answers).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "REDIS_UNAVAILABLE"));
    assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "no");
    assert!(
        status.get_details_error_info().is_some_and(|_| status.get_details_retry_info().is_some())
    );
    let info: redis::InfoDict =
        redis::cmd("INFO").arg("persistence").query_async(&mut env.cli().await).await.unwrap();
    assert_eq!(info.get::<String>("aof_last_write_status").as_deref(), Some("err"));
    eventually("it is not ready, with the reason", async || {
        let ready = get(service.http, "/readyz").await;
        (ready.starts_with("HTTP/1.1 503") && ready.contains("append-only file")).then_some(())
    })
    .await;
    // Nothing needs to be written to answer these.
    each_keeps_the_answer(&service, &answers).await;
    for n in 0..20 {
        assert_eq!(
            service.refusal("shoe", &format!("buyer-no-{n}"), "r").await,
            "REDIS_UNAVAILABLE"
        );
    }
    let report = env.audit().await;
    let units = &report.products[0];
    assert!(report.violations.is_empty(), "nothing is done in part: {:?}", report.violations);
    let accepted = i64::try_from(answers.accepted.len()).unwrap();
    assert_eq!(units.stock, 10_000 - accepted, "refused calls take no unit");

    disk.clear();
    eventually("it sells again", async || service.buy("shoe", "late", "r").await.ok()).await;
    eventually("it is ready again", async || {
        get(service.http, "/readyz").await.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    let report = env.assert_audit_holds().await;
    assert_eq!(answers.account_for(&env, &report).await, 0);
    assert_eq!(report.products[0].confirmed, accepted + 1);
    assert_eq!(env.count("SELECT max(epoch) FROM partitions").await, 1, "without a rebuild");
    each_keeps_the_answer(&service, &answers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_that_exits_on_a_full_disk_has_lost_nothing_after_restart() {
    let Some(disk) = SmallDisk::new(16) else { return };
    let mut env = redis_on(&disk, AppendFsync::Always).await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10_000)).await;
    let mut answers = AnswerLog::default();
    for n in 0..50 {
        let user = format!("buyer-early-{n}");
        let id = service.buy("shoe", &user, "r").await.unwrap().reservation_id;
        answers.note(user, Ok(id));
    }
    disk.fill();
    let status = buy_until_refused(&service, &mut answers).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "REDIS_UNAVAILABLE"));
    // Redis 7 ends itself; one that does not refuses every write.
    let url = env.redis().admin_url();
    eventually("Redis has ended, or logs why it writes nothing", async || {
        let Ok(mut cli) = try_redis_cli(&url).await else { return Some(()) };
        let refused: Result<(), _> =
            redis::cmd("SET").arg("probe").arg(1).query_async(&mut cli).await;
        refused.is_err_and(|error| error.code() == Some("MISCONF")).then_some(())
    })
    .await;
    assert_eq!(service.refusal("shoe", "buyer-no", "r").await, "REDIS_UNAVAILABLE");

    disk.clear();
    block_in_place(|| env.redis.as_mut().unwrap().restart().unwrap());
    eventually("it sells again", async || service.buy("shoe", "late", "r").await.ok()).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(answers.account_for(&env, &report).await, 0, "always loses nothing");
    each_keeps_the_answer(&service, &answers).await;
    // A buyer with an unknown outcome repeats the request and has one reservation.
    for user in &answers.open {
        service.buy("shoe", user, "r").await.unwrap();
    }
    let report = env.assert_audit_holds().await;
    let users = "SELECT count(DISTINCT user_id) FROM reservations";
    assert_eq!(report.products[0].confirmed, env.count(users).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_postgres_disk_delays_orders_and_loses_none() {
    let Some(disk) = SmallDisk::new(4) else { return };
    let dir = scratch_dir("postgres");
    let wrapper = disk.wrapper();
    let wrapper = wrapper.each_ref().map(String::as_str);
    let start = || PostgresServer::start_under(&dir, &["fsync=off"], &wrapper).unwrap();
    let postgres = block_in_place(start);
    let mut env = TestEnv::with_own_redis().await;
    block_in_place(|| postgres.create_database(&env.database)).unwrap();
    yoink::ledger::migrate(&postgres.owner_url(&env.database).parse().unwrap()).await.unwrap();
    env.postgres = Some(postgres);
    let sql = env.sql().await;
    let tablespace = format!("CREATE TABLESPACE small LOCATION '{}'", disk.dir().display());
    sql.batch_execute(&tablespace).await.unwrap();
    sql.batch_execute("ALTER TABLE reservations SET TABLESPACE small").await.unwrap();

    let settings = [("backlog_max_entries", "200"), ("deliveries_max", "1")];
    let api = env.serve(Role::Api, &settings).await;
    api.create(product("shoe", 10_000)).await;
    let mut worker = Binary::serve_as("worker", &env, &settings, None);
    worker.channel().await;
    let mut answers = AnswerLog::default();
    disk.fill();
    let status = buy_until_refused(&api, &mut answers).await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::ResourceExhausted, "BACKLOG_FULL")
    );
    assert!(status.get_details_retry_info().is_some());
    eventually("Postgres logs the reason", async || {
        let log = std::fs::read_to_string(dir.join("postgres.log")).unwrap();
        log.contains("No space left on device").then_some(())
    })
    .await;
    eventually("the worker logs it", async || {
        worker.log().contains("Postgres cannot do this now").then_some(())
    })
    .await;
    assert_eq!(env.audit().await.products[0].in_dead, 0, "no order is moved to dead");

    disk.clear();
    eventually("it sells again", async || api.buy("shoe", "late", "r").await.ok()).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(answers.account_for(&env, &report).await, 0);
    let accepted = i64::try_from(answers.accepted.len()).unwrap();
    assert_eq!(report.products[0].confirmed, accepted + 1);
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);
}
