//! Processes killed again and again under load. A few rounds each in `make test`; `make soak` sets `FAULT_ROUNDS`
//! and prints what `docs/reliability.md` keeps.
#![expect(clippy::print_stdout, reason = "its counts are kept")]

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::block_in_place;
use yoink::app::Role;

use crate::harness::{
    Answers, Binary, BuyerLoad, RunningLoad, Schedule, Service, TestEnv, eventually, product,
};

/// Units of the products that do not sell out.
const SUPPLY: i64 = 10_000_000;

/// Many buyers of products with many units in both partitions, and of one with few; each records its answers.
async fn start_buyers(env: &TestEnv, service: &Service, schedule: &Schedule) -> RunningLoad {
    let plenty = [env.product_in(0).await, env.product_in(1).await];
    for id in &plenty {
        service.create(product(id, SUPPLY)).await;
    }
    service.create(product("scarce", 300)).await;
    let products = [&plenty[0], &plenty[1], &plenty[0], "scarce"];
    let buyers = BuyerLoad::seeded("buyer", 12, &products, schedule.seed());
    buyers.paced(Duration::from_millis(3)).start(vec![service.channel()])
}

/// Asserts that every answer is kept; prints the totals.
async fn settle(
    (what, kills): (&str, usize),
    (env, service): (&TestEnv, &Service),
    answers: Answers,
    schedule: &Schedule,
) {
    let accepted = answers.accepted();
    let account = answers.assert_all_answers_kept(env, service).await;
    let doubled = "SELECT count(*) - count(DISTINCT (product_id, user_id, request_id))
                     FROM reservations WHERE state = 'confirmed'";
    let oversold = "SELECT sum(greatest(0, n - supply))::bigint FROM products JOIN
                    (SELECT product_id, count(*) AS n FROM reservations
                      WHERE state = 'confirmed' GROUP BY product_id) stored USING (product_id)";
    let (doubled, oversold) = (env.count(doubled).await, env.count(oversold).await);
    let (confirmed, lost, seed) = (account.confirmed, account.lost.len(), schedule.seed());
    println!(
        "| {what} | {kills} | {accepted} | {confirmed} | {lost} | {doubled} | {oversold} | {seed} |"
    );
    assert_eq!((lost, doubled, oversold), (0, 0, 0), "seed {seed}");
    assert!(confirmed >= accepted, "seed {seed}");
    let partitions = "SELECT count(DISTINCT partition) FROM reservations";
    assert_eq!(env.count(partitions).await, 2, "both partitions sold, seed {seed}");
    assert!(env.assert_audit_holds().await.lost.is_empty(), "seed {seed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_redis_kills_with_fsync_always_lose_no_accepted_order() {
    let (mut schedule, rounds) = (Schedule::new(), Schedule::rounds(5));
    let mut env = TestEnv::with_restarted_redis().await;
    let service = env.serve(Role::All, &[]).await;
    let load = start_buyers(&env, &service, &schedule).await;
    for _ in 0..rounds {
        load.sells(1 + schedule.below(60)).await;
        block_in_place(|| {
            env.kill_redis();
            env.restart_redis();
        });
    }
    load.sells(50).await;
    let answers = load.end().await;
    settle(("Redis (`always`)", rounds), (&env, &service), answers, &schedule).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_worker_kills_lose_no_accepted_order() {
    let (mut schedule, rounds) = (Schedule::new(), Schedule::rounds(5));
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    let load = start_buyers(&env, &api, &schedule).await;
    let settings = [("takeover_idle_ms", "300")];
    let stored = async || env.count("SELECT count(*) FROM reservations").await;
    for _ in 0..rounds {
        let mut worker = Binary::serve_as("worker", &env, &settings, None);
        let goal = stored().await + i64::try_from(1 + schedule.below(200)).unwrap();
        eventually("it stores", async || {
            assert!(!worker.has_ended(), "it ended: {}", worker.log());
            (stored().await >= goal).then_some(())
        })
        .await;
        worker.signal(Signal::SIGKILL);
        worker.ended().await;
    }
    let answers = load.end().await;
    let next = env.serve(Role::Worker, &settings).await;
    settle(("a worker", rounds), (&env, &api), answers, &schedule).await;
    next.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_gateway_kills_lose_no_accepted_order() {
    let (mut schedule, rounds) = (Schedule::new(), Schedule::rounds(5));
    let env = TestEnv::new().await;
    let keeper = env.serve(Role::All, &[]).await;
    let load = start_buyers(&env, &keeper, &schedule).await;
    for _ in 0..rounds {
        let mut gateway = Binary::serve_as("api", &env, &[], None);
        load.go_to(vec![gateway.channel().await]);
        load.sells(1 + schedule.below(200)).await;
        gateway.signal(Signal::SIGKILL);
        gateway.ended().await;
    }
    load.go_to(vec![keeper.channel()]);
    load.sells(50).await;
    let answers = load.end().await;
    settle(("a gateway", rounds), (&env, &keeper), answers, &schedule).await;
    keeper.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_postgres_kills_lose_no_accepted_order() {
    let (mut schedule, rounds) = (Schedule::new(), Schedule::rounds(8).div_ceil(4));
    let mut env = TestEnv::with_durable_postgres().await;
    let service = env.serve(Role::All, &[("takeover_idle_ms", "500")]).await;
    let load = start_buyers(&env, &service, &schedule).await;
    for _ in 0..rounds {
        load.sells(1 + schedule.below(100)).await;
        block_in_place(|| {
            let postgres = env.postgres.as_mut().unwrap();
            postgres.kill();
            postgres.restart().unwrap();
        });
    }
    load.sells(50).await;
    let answers = load.end().await;
    settle(("Postgres", rounds), (&env, &service), answers, &schedule).await;
    assert_eq!(
        env.count("SELECT count(*) FROM dead_actions").await,
        0,
        "no order is moved to dead"
    );
    service.stop().await;
}

/// A worker that has connected to both stores: from then on no fault of a store ends it.
async fn started(env: &TestEnv, settings: &[(&'static str, &str)]) -> Binary {
    let mut worker = Binary::serve_as("worker", env, settings, None);
    worker.channel().await;
    worker
}

/// Random faults while a gateway and two workers run.
#[tokio::test(flavor = "multi_thread")]
async fn random_sequence_of_faults_keeps_the_audit_clean() {
    let (mut schedule, rounds) = (Schedule::new(), Schedule::rounds(8).div_ceil(2));
    let (mut env, other) =
        (TestEnv::with_restarted_redis().await, TestEnv::with_durable_postgres().await);
    (env.postgres, env.database) = (other.postgres, other.database);
    let settings = [("takeover_idle_ms", "300")];
    let service = env.serve(Role::All, &settings).await;
    let mut worker = started(&env, &settings).await;
    let load = start_buyers(&env, &service, &schedule).await;
    for _ in 0..rounds {
        load.sells(1 + schedule.below(40)).await;
        let fault = schedule.below(6);
        match fault {
            0 => block_in_place(|| {
                env.kill_redis();
                env.restart_redis();
            }),
            1 => block_in_place(|| {
                let postgres = env.postgres.as_mut().unwrap();
                postgres.kill();
                postgres.restart().unwrap();
            }),
            2 => {
                worker.signal(Signal::SIGKILL);
                worker.ended().await;
                worker = started(&env, &settings).await;
            }
            3 => {
                worker.signal(Signal::SIGSTOP);
                load.sells(20).await;
                worker.signal(Signal::SIGCONT);
            }
            4 => {
                let flush = redis::cmd("SCRIPT").arg("FLUSH").to_owned();
                let () = flush.query_async(&mut env.cli().await).await.unwrap();
            }
            _ => {
                let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                            WHERE application_name = 'yoink'";
                // After a fault before this one they may not have connected again yet.
                eventually("a connection is ended", async || {
                    (env.count(end).await > 0).then_some(())
                })
                .await;
            }
        }
        assert!(!worker.has_ended(), "it ended: {}", worker.log());
    }
    load.sells(50).await;
    let answers = load.end().await;
    settle(("all in turn", rounds), (&env, &service), answers, &schedule).await;
    assert_eq!(
        env.count("SELECT count(*) FROM dead_actions").await,
        0,
        "no order is moved to dead"
    );
    service.stop().await;
}
