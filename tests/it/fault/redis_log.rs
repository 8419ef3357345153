//! Redis's log: on a slow disk, torn, deleted. What is lost is counted, and nothing is sold twice.

use std::{process::Command, time::Duration};

use futures_util::future::join_all;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    grpc::pb::ReserveUnitRequest,
    servers::{AppendFsync, RedisServer},
};

use super::answer_log::AnswerLog;
use crate::harness::{
    TestEnv, can_trace, eventually, processes_under, product, reason, run_yoink, scratch_dir,
};

/// A Redis whose disk takes so long to make something durable, from its third time on: it must start.
async fn with_slow_disk(fsync: AppendFsync, delay: &str) -> Option<TestEnv> {
    if !block_in_place(|| can_trace("a slow disk")) {
        return None;
    }
    let mut env = TestEnv::new().await;
    let dir = scratch_dir("redis");
    let inject = format!("inject=fdatasync:delay_enter={delay}:when=3+");
    // -D: Redis is our child, and strace ends with it.
    let strace = ["strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &inject];
    env.redis = Some(block_in_place(|| RedisServer::start_under(&dir, fsync, &strace).unwrap()));
    Some(env)
}

/// A number of `INFO persistence`.
async fn persistence(env: &TestEnv, name: &str) -> u64 {
    let mut info = redis::cmd("INFO");
    let info: redis::InfoDict =
        info.arg("persistence").query_async(&mut env.cli().await).await.unwrap();
    info.get(name).unwrap()
}

/// How much of its log a Redis has written.
fn log_size(redis: &RedisServer) -> u64 {
    let files = std::fs::read_dir(redis.dir().join("appendonlydir")).unwrap().flatten();
    files.map(|file| file.metadata().unwrap().len()).sum()
}

/// Waits until every gateway has reported its marks of the first epoch.
async fn all_have_reported(env: &TestEnv) {
    eventually("every gateway has reported its marks", async || {
        let silent = "SELECT count(*) FROM reported_marks WHERE epoch = 1 AND seq < 0";
        (env.count(silent).await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_on_a_slow_disk_loses_no_more_than_is_reported() {
    let Some(mut env) = with_slow_disk(AppendFsync::Everysec, "5s").await else { return };
    // No worker stores orders: what Redis loses is lost.
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 1_000_000)).await;
    let enough = CancellationToken::new();
    let crash = async {
        eventually("writes are put off", async || {
            (persistence(&env, "aof_delayed_fsync").await > 0).then_some(())
        })
        .await;
        let redis = env.redis.as_ref().unwrap();
        eventually("Redis is paused with orders that are only in memory", async || {
            let written = log_size(redis);
            let waiting = persistence(&env, "aof_buffer_length").await;
            redis.pause();
            eventually("it is paused", async || redis.is_paused().then_some(())).await;
            // What waited to be written is still in memory if nothing was written since.
            if waiting > 0 && log_size(redis) == written {
                return Some(());
            }
            redis.resume();
            None
        })
        .await;
        block_in_place(|| env.redis.as_mut().unwrap().kill());
        enough.cancel();
    };
    let (answers, ()) = tokio::join!(AnswerLog::on(&api, "shoe", 8, &enough), crash);
    let dir = env.redis.as_ref().unwrap().dir().to_owned();
    eventually("strace is gone, too", async || processes_under(&dir).is_empty().then_some(()))
        .await;
    block_in_place(|| env.redis.as_mut().unwrap().restart().unwrap());
    let worker = env.serve(Role::Worker, &[]).await;
    eventually("it sells again", async || api.buy("shoe", "late", "r").await.ok()).await;
    all_have_reported(&env).await;
    let report = env.assert_audit_holds().await;
    let lost = answers.account_for(&env, &report).await;
    assert!(lost > 0, "{} orders were accepted", answers.accepted.len());
    let units = &report.products[0];
    assert_eq!(units.confirmed + units.stock, 1_000_000, "the units of the lost are back");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fsync_always_on_a_slow_disk_loses_nothing_and_sheds_overload() {
    let Some(mut env) = with_slow_disk(AppendFsync::Always, "100ms").await else { return };
    let service = env.serve(Role::All, &[("concurrency_max_calls", "16")]).await;
    service.create(product("shoe", 1_000_000)).await;
    let mut monitor = redis::cmd("CONFIG");
    monitor.arg("SET").arg("latency-monitor-threshold").arg(90);
    let () = monitor.query_async(&mut env.cli().await).await.unwrap();
    // It is not made durable within this deadline, so it is not answered within it either.
    let slow = eventually("a call is admitted", async || {
        let request = ReserveUnitRequest {
            product_id: "shoe".to_owned(),
            user_id: "hasty".to_owned(),
            request_id: "r".to_owned(),
            ..Default::default()
        };
        let answer = service.reserve_within(Duration::from_millis(30), request).await;
        let status = answer.expect_err("it is too slow");
        (status.code() == Code::DeadlineExceeded).then_some(status)
    })
    .await;
    assert_eq!(slow.get_details_error_info().unwrap().metadata["applied"], "maybe");

    let enough = CancellationToken::new();
    let crash = async {
        eventually("some are stored", async || {
            (env.count("SELECT count(*) FROM reservations").await > 100).then_some(())
        })
        .await;
        let mut latest = redis::cmd("LATENCY");
        latest.arg("LATEST");
        let latest: Vec<(String, u64, u64, u64)> =
            latest.query_async(&mut env.cli().await).await.unwrap();
        assert!(latest.iter().any(|(event, ..)| event == "aof-fsync-always"), "{latest:?}");
        block_in_place(|| {
            let redis = env.redis.as_mut().unwrap();
            redis.kill();
            redis.restart().unwrap();
        });
        eventually("it sells again", async || service.buy("shoe", "late", "r").await.ok()).await;
        enough.cancel();
    };
    let (answers, ()) = tokio::join!(AnswerLog::on(&service, "shoe", 64, &enough), crash);
    assert!(answers.refused["OVERLOADED"] > 0, "{:?}", answers.refused);
    all_have_reported(&env).await;
    let report = env.assert_audit_holds().await;
    let accepted: Vec<&String> = answers.accepted.values().collect();
    let stored = "SELECT count(*) FROM reservations WHERE reservation_id::text = ANY($1)";
    let stored = env.sql().await.query_one(stored, &[&accepted]).await.unwrap();
    assert_eq!(stored.get::<_, i64>(0), i64::try_from(accepted.len()).unwrap());
    assert_eq!(answers.account_for(&env, &report).await, 0, "always loses nothing");
    // The buyer with the short deadline repeats its call: all that Redis accepted is stored by now.
    let hasty = "SELECT count(*) FROM reservations WHERE user_id = 'hasty'";
    let was_taken = env.count(hasty).await == 1;
    let again =
        eventually("the call is admitted", async || service.buy("shoe", "hasty", "r").await.ok());
    assert_eq!(again.await.duplicate, was_taken);
    env.assert_audit_holds().await;
    assert_eq!(env.count(hasty).await, 1);
}

/// The offset of the last transaction in a log, which must end with it.
fn last_transaction(log: &[u8]) -> usize {
    assert!(log.ends_with(b"*1\r\n$4\r\nEXEC\r\n"), "{}", String::from_utf8_lossy(log));
    let multi = b"*1\r\n$5\r\nMULTI\r\n";
    log.windows(multi.len()).rposition(|window| window == multi).unwrap()
}

/// Truncates a log inside its last transaction; `keep` returns how much of its length is kept; returns how many
/// reservations that script took.
fn truncate_in_last_batch(redis: &RedisServer, keep: impl Fn(usize) -> usize) -> usize {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ls -t *.incr.aof | head -1"])
        .current_dir(redis.dir().join("appendonlydir"));
    let name = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let path = redis.dir().join("appendonlydir").join(name.trim());
    let log = std::fs::read(&path).unwrap();
    let start = last_transaction(&log);
    let script = String::from_utf8_lossy(&log[start..]).into_owned();
    let batch = script.matches("XADD").count();
    assert!(batch > 1, "several reservations are one script: {script}");
    std::fs::write(&path, &log[..start + keep(log.len() - start)]).unwrap();
    batch
}

/// Truncates a log inside the script that took a whole batch; `keep` returns how much of the script's length
/// is kept.
async fn sell_after_truncation(keep: impl Fn(usize) -> usize) {
    const BATCH: usize = 20;
    let mut env = TestEnv::with_own_redis().await;
    let most = (BATCH + 1).to_string();
    let api = env.serve(Role::Api, &[("concurrency_max_calls", &most)]).await;
    api.create(product("shoe", 100)).await;
    for n in 0..5 {
        api.buy("shoe", &format!("early-{n}"), "r").await.unwrap();
    }
    // While Redis is paused, one call is in flight and the others wait behind it.
    let users: Vec<String> = (0..=BATCH).map(|n| format!("user-{n}")).collect();
    // The call that checks for a free permit holds one itself for a moment: a call that it displaces is repeated.
    let buys = users.iter().map(|user| {
        let api = &api;
        eventually("the call is admitted", async move || match api.buy("shoe", user, "r").await {
            Err(status) if reason(&status) == "OVERLOADED" => None,
            answered => Some(answered),
        })
    });
    let redis = env.redis.as_ref().unwrap();
    redis.pause();
    let let_go = async {
        // When no permit is left, all calls are in flight.
        eventually("all calls are in progress", async || {
            let status = api.buy("shoe", "", "r").await.unwrap_err();
            (reason(&status) == "OVERLOADED").then_some(())
        })
        .await;
        redis.resume();
    };
    let (answers, ()) = tokio::join!(join_all(buys), let_go);
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();

    let redis = env.redis.as_mut().unwrap();
    block_in_place(|| redis.kill());
    let batch = truncate_in_last_batch(redis, keep);
    block_in_place(|| redis.restart().unwrap());

    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let orders = format!("{}:{{{partition}}}:orders", env.prefix);
    let length: usize =
        redis::cmd("XLEN").arg(orders).query_async(&mut env.cli().await).await.unwrap();
    assert_eq!(length, 5 + BATCH + 1 - batch, "the whole script is gone, and nothing else");
    let status = eventually("Redis answers again", async || {
        let status = api.buy("shoe", "late", "r").await.unwrap_err();
        (reason(&status) != "REDIS_UNAVAILABLE").then_some(status)
    })
    .await;
    assert_eq!(reason(&status), "RECOVERING", "it is noticed before the next accept");
    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stdout));
    all_have_reported(&env).await;
    let lost = env.audit().await.lost;
    let exactly =
        lost.iter().map(|lost| (lost.count, lost.exact, lost.epoch.0)).collect::<Vec<_>>();
    assert_eq!(exactly, [(u64::try_from(batch).unwrap(), true, 1)]);

    let worker = env.serve(Role::Worker, &[]).await;
    let late = eventually("it sells again", async || api.buy("shoe", "late", "r").await.ok());
    assert!(!late.await.duplicate);
    let report = env.assert_audit_holds().await;
    let kept = 5 + BATCH + 1 - batch;
    assert_eq!(report.products[0].confirmed, i64::try_from(kept).unwrap() + 1);
    let mut gone = 0;
    for answer in &answers {
        match api.reservation(&answer.reservation_id).await {
            Ok(found) => assert_eq!(found.state().as_str_name(), "RESERVATION_STATE_CONFIRMED"),
            Err(status) => {
                assert_eq!(reason(&status), "LOST_OR_UNKNOWN");
                gone += 1;
            }
        }
    }
    assert_eq!(gone, batch);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn torn_log_loses_a_whole_batch_or_nothing_and_counts_it() {
    let head = "*1\r\n$5\r\nMULTI\r\n".len();
    tokio::join!(
        sell_after_truncation(move |_| head + 3),
        sell_after_truncation(|length| length / 2),
        sell_after_truncation(|length| length - 1),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_with_deleted_directory_is_rebuilt_and_counts_every_answer() {
    let mut env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 3_000)).await;
    let enough = CancellationToken::new();
    let vanish = async {
        eventually("more than 200 orders are stored", async || {
            (env.count("SELECT count(*) FROM reservations").await > 200).then_some(())
        })
        .await;
        let redis = env.redis.as_mut().unwrap();
        let data = redis.dir().join("appendonlydir");
        std::fs::remove_dir_all(&data).unwrap();
        block_in_place(|| {
            redis.kill();
            assert!(!data.exists(), "nothing is left to load");
            redis.restart().unwrap();
        });
        eventually("all that is left is sold by the rebuilt Redis", async || {
            let refusal = service.buy("shoe", "later", "").await.err()?;
            (reason(&refusal) == "SOLD_OUT").then_some(())
        })
        .await;
        enough.cancel();
    };
    let (answers, ()) = tokio::join!(AnswerLog::on(&service, "shoe", 8, &enough), vanish);
    all_have_reported(&env).await;
    let report = env.assert_audit_holds().await;
    answers.account_for(&env, &report).await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (3_000, 0));
    assert!(env.count("SELECT max(epoch) FROM partitions").await > 1, "it was rebuilt");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_script_flush_loses_and_doubles_nothing() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 1_000_000)).await;
    let enough = CancellationToken::new();
    let flush = async {
        let mut cli = env.cli().await;
        let cached = |info: &redis::InfoDict| info.get::<u64>("number_of_cached_scripts").unwrap();
        let (mut flushes, mut ticks) = (0, tokio::time::interval(Duration::from_millis(2)));
        while flushes < 200 || env.count("SELECT count(*) FROM reservations").await < 300 {
            ticks.tick().await;
            let mut step = redis::pipe();
            step.atomic().cmd("INFO").arg("memory").cmd("SCRIPT").arg("FLUSH").ignore();
            step.cmd("INFO").arg("memory");
            let (before, after): (redis::InfoDict, redis::InfoDict) =
                step.query_async(&mut cli).await.unwrap();
            assert_eq!(cached(&after), 0);
            flushes += u64::from(cached(&before) > 0);
        }
        enough.cancel();
    };
    let (answers, ()) = tokio::join!(AnswerLog::on(&service, "shoe", 8, &enough), flush);
    let report = env.assert_audit_holds().await;
    assert_eq!(answers.account_for(&env, &report).await, 0);
    assert!(!answers.accepted.is_empty());
    for (user, id) in answers.accepted.iter().take(20) {
        let again = service.buy("shoe", user, "r").await.unwrap();
        assert_eq!((again.duplicate, &again.reservation_id), (true, id));
    }
    env.assert_audit_holds().await;
}
