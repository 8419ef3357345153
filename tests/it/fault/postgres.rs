//! Postgres cannot store: read-only, down for long, or without a connection to spare. Orders wait, intake
//! stops before memory is used up, no order is lost, and all are stored afterwards.

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tokio::task::block_in_place;
use tokio_postgres::{Client, NoTls, error::SqlState};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;
use tonic_types::StatusExt as _;
use yoink::{app::Role, servers::PostgresServer};

use super::answer_log::AnswerLog;
use crate::harness::{Binary, Service, TestEnv, eventually, product, reason, scratch_dir};

/// An environment with its own Redis and its own Postgres.
async fn own_servers() -> TestEnv {
    let mut env = TestEnv::with_own_redis().await;
    let other = TestEnv::with_own_postgres().await;
    (env.postgres, env.database) = (other.postgres, other.database);
    env
}

async fn key(env: &TestEnv, name: &str) -> String {
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    format!("{}:{{{partition}}}:{name}", env.prefix)
}

async fn length(env: &TestEnv, stream: &str) -> u64 {
    redis::cmd("XLEN").arg(stream).query_async(&mut env.cli().await).await.unwrap()
}

/// No order was given up.
async fn assert_no_dead_actions(env: &TestEnv) {
    let voided = "SELECT count(*) FROM reservations WHERE state = 'voided'";
    assert_eq!(env.count(voided).await, 0);
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_postgres_delays_orders_and_moves_none_to_dead() {
    let env = TestEnv::with_own_postgres().await;
    let settings = [("deliveries_max", "1"), ("takeover_idle_ms", "300")];
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 1_000)).await;
    let (orders, dead) = (key(&env, "orders").await, key(&env, "dead").await);
    let mut worker = Binary::serve_as("worker", &env, &settings, None);
    worker.channel().await;
    let mut answers = AnswerLog::default();
    let mut sell = async |users: std::ops::Range<u32>| {
        for n in users {
            let user = format!("buyer-{n}");
            let bought = api.buy("shoe", &user, "r").await.unwrap();
            answers.note(user, Ok(bought.reservation_id));
        }
    };
    sell(0..20).await;
    env.assert_audit_holds().await;

    let sql = env.sql().await;
    let set = "ALTER SYSTEM SET default_transaction_read_only = on";
    sql.batch_execute(set).await.unwrap();
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    eventually("Postgres writes nothing", async || {
        let write = env.sql().await.batch_execute("CREATE TABLE probe ()").await;
        let refused = write.err()?.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
        refused.then_some(())
    })
    .await;
    sell(20..60).await;
    eventually("the worker has tried to store", async || {
        worker.log().contains("consumption paused: Postgres cannot do this now").then_some(())
    })
    .await;
    assert_eq!((length(&env, &orders).await, length(&env, &dead).await), (40, 0));
    let mut late = Binary::serve_as("worker", &env, &settings, None);
    let status = late.ended().await;
    assert_eq!(status.code(), Some(2), "one that starts now is refused");
    assert!(late.log().contains("read-only"), "{}", late.log());

    sql.batch_execute("SET default_transaction_read_only = off").await.unwrap();
    let reset = "ALTER SYSTEM RESET default_transaction_read_only";
    sql.batch_execute(reset).await.unwrap();
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    eventually("what waited is stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == 60).then_some(())
    })
    .await;
    sell(60..70).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (70, 930));
    assert_eq!(answers.account_for(&env, &report).await, 0);
    assert_no_dead_actions(&env).await;
    worker.signal(Signal::SIGTERM);
    assert!(worker.ended().await.success());
}

/// What Redis uses for the sale, to the byte.
async fn memory(env: &TestEnv) -> u64 {
    let mut cli = env.cli().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut cli).await.unwrap();
    let mut bytes = 0;
    for key in keys {
        let mut usage = redis::cmd("MEMORY");
        usage.arg("USAGE").arg(key).arg("SAMPLES").arg(0);
        bytes += usage.query_async::<u64>(&mut cli).await.unwrap();
    }
    bytes
}

async fn used_memory(env: &TestEnv) -> u64 {
    let info: redis::InfoDict =
        redis::cmd("INFO").arg("memory").query_async(&mut env.cli().await).await.unwrap();
    info.get("used_memory").unwrap()
}

/// Buys as 32 at once, under new names; all are refused because the backlog is full.
async fn all_are_refused(service: &Service, round: u32, times: u32) {
    for group in 0..times / 32 {
        let users: Vec<String> = (0..32).map(|n| format!("no-{round}-{group}-{n}")).collect();
        for answer in join_all(users.iter().map(|user| service.buy("shoe", user, "r"))).await {
            let status = answer.unwrap_err();
            assert_eq!(
                (status.code(), reason(&status).as_str()),
                (Code::ResourceExhausted, "BACKLOG_FULL")
            );
            assert!(status.get_details_retry_info().is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_postgres_outage_under_load_stops_at_the_backlog_limit() {
    let mut env = own_servers().await;
    let settings = [("backlog_max_entries", "2000"), ("deliveries_max", "1")];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 1_000_000)).await;
    let orders = key(&env, "orders").await;
    let enough = CancellationToken::new();
    let outage = async {
        eventually("more than 100 orders are stored", async || {
            (env.count("SELECT count(*) FROM reservations").await > 100).then_some(())
        })
        .await;
        block_in_place(|| env.postgres.as_mut().unwrap().stop());
        eventually("the backlog is full", async || {
            (length(&env, &orders).await >= 2_000).then_some(())
        })
        .await;
        enough.cancel();
    };
    let (answers, ()) = tokio::join!(AnswerLog::on(&service, "shoe", 32, &enough), outage);
    all_are_refused(&service, 0, 320).await;
    let (data, used) = (memory(&env).await, used_memory(&env).await);
    all_are_refused(&service, 1, 3_200).await;
    assert_eq!(length(&env, &orders).await, 2_000);
    // It is less if Redis has finished resizing a hash table since.
    assert!(memory(&env).await <= data, "refusals leave nothing behind");
    // Beside the data there are only buffers, whose size does not depend on how many ask.
    let grown = used_memory(&env).await.saturating_sub(used);
    assert!(grown < 1_000_000, "{grown} bytes more for 3,200 refusals");

    block_in_place(|| env.postgres.as_mut().unwrap().restart().unwrap());
    eventually("it sells again", async || service.buy("shoe", "late", "r").await.ok()).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(answers.account_for(&env, &report).await, 0);
    let accepted = i64::try_from(answers.accepted.len()).unwrap();
    assert_eq!(report.products[0].confirmed, accepted + 1);
    assert_no_dead_actions(&env).await;
}

/// Takes every connection that Postgres has, including those of others: no one else can connect until the test
/// gives some back.
async fn take_all(url: &str) -> Vec<Client> {
    let url = format!("{url}?application_name=taker");
    let mut taken = Vec::new();
    eventually("every connection is the test's", async || {
        loop {
            match tokio_postgres::connect(&url, NoTls).await {
                Ok((client, connection)) => {
                    // It ends with its client.
                    TaskTracker::new().spawn(connection);
                    taken.push(client);
                }
                Err(error) => {
                    assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS), "{error:?}");
                    break;
                }
            }
        }
        if taken.len() == MAX_CONNECTIONS {
            return Some(());
        }
        // Every other session is ended, also one that connected a moment ago.
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                      WHERE backend_type = 'client backend' AND application_name <> 'taker'";
        taken[0].batch_execute(others).await.unwrap();
        None
    })
    .await;
    taken
}

/// A line in the log of the Postgres whose connections are exhausted.
const MAX_CONNECTIONS: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn postgres_without_free_connections_delays_orders_and_loses_none() {
    let mut env = TestEnv::with_own_redis().await;
    let dir = scratch_dir("postgres");
    let most = format!("max_connections={MAX_CONNECTIONS}");
    let few = ["fsync=off", &most, "superuser_reserved_connections=0"];
    let postgres = block_in_place(|| PostgresServer::start(&dir, &few).unwrap());
    block_in_place(|| postgres.create_database(&env.database)).unwrap();
    yoink::ledger::migrate(&postgres.owner_url(&env.database).parse().unwrap()).await.unwrap();
    env.postgres = Some(postgres);
    let settings = [("backlog_max_entries", "200"), ("deliveries_max", "1")];
    let api = env.serve(Role::Api, &settings).await;
    api.create(product("shoe", 10_000)).await;
    let orders = key(&env, "orders").await;
    let mut worker = Binary::serve_as("worker", &env, &settings, None);
    worker.channel().await;
    let mut answers = AnswerLog::default();
    for n in 0..5 {
        let user = format!("buyer-early-{n}");
        let id = api.buy("shoe", &user, "r").await.unwrap().reservation_id;
        answers.note(user, Ok(id));
    }
    // It stores them, so that a later order can only lack a connection.
    env.assert_audit_holds().await;
    let taken = take_all(&env.superuser_url()).await;
    let enough = CancellationToken::new();
    let full = async {
        eventually("the backlog is full", async || {
            (length(&env, &orders).await >= 200).then_some(())
        })
        .await;
        enough.cancel();
    };
    let (more, ()) = tokio::join!(AnswerLog::on(&api, "shoe", 8, &enough), full);
    answers.add(more);
    all_are_refused(&api, 0, 64).await;
    eventually("the worker logs it", async || {
        worker.log().contains("consumption paused: Postgres cannot do this now").then_some(())
    })
    .await;
    eventually("Postgres logs it", async || {
        let log = std::fs::read_to_string(dir.join("postgres.log")).unwrap();
        log.contains("too many clients already").then_some(())
    })
    .await;
    let ours: i64 =
        taken[0].query_one("SELECT count(*) FROM reservations", &[]).await.unwrap().get(0);
    assert_eq!(ours, 5, "nothing was stored meanwhile");

    drop(taken);
    eventually("it sells again", async || api.buy("shoe", "late", "r").await.ok()).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(answers.account_for(&env, &report).await, 0);
    let accepted = i64::try_from(answers.accepted.len()).unwrap();
    assert_eq!(report.products[0].confirmed, accepted + 1);
    assert_no_dead_actions(&env).await;
}
