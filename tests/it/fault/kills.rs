//! Processes are killed under load; every answer that a buyer got is kept.

use std::{os::unix::process::ExitStatusExt as _, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use yoink::app::Role;

use crate::harness::{Binary, BuyerLoad, TestEnv, eventually, product};

#[tokio::test(flavor = "multi_thread")]
async fn killed_gateway_keeps_every_answer_that_a_buyer_received() {
    let env = TestEnv::new().await;
    let keeper = env.serve(Role::All, &[]).await;
    keeper.create(product("shoe", 100_000)).await;
    keeper.create(product("boot", 100_000)).await;
    let mut api = Binary::serve_as("api", &env, &[], None);
    let buyers = BuyerLoad::new("buyer", 8, &["shoe", "boot"]).paced(Duration::from_millis(2));
    let load = buyers.start(vec![api.channel().await]);
    for _ in 0..3 {
        load.sells(150).await;
        api.signal(Signal::SIGKILL);
        assert_eq!(api.ended().await.signal(), Some(Signal::SIGKILL as i32));
        eventually("buyers lose their answers", async || (load.open() > 0).then_some(())).await;
        api = Binary::serve_as("api", &env, &[], None);
        load.go_to(vec![api.channel().await]);
    }
    load.sells(150).await;
    let answers = load.end().await;
    assert!(answers.accepted() >= 600);
    // Checked with a process that gave none of the answers.
    answers.assert_all_answers_kept(&env, &keeper).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_postgres_backend_loses_no_order() {
    let env = TestEnv::with_own_postgres().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 100_000)).await;
    let load = BuyerLoad::new("buyer", 4, &["shoe"]).start(vec![service.channel()]);
    for _ in 0..2 {
        load.sells(150).await;
        // All connections of a Postgres end when one backend is killed; this one sees it.
        let witness = env.sql().await;
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'yoink' LIMIT 1";
        eventually("a backend of the service is killed", async || {
            let backend = witness.query_opt(sql, &[]).await.unwrap()?;
            // It may have ended by itself since.
            kill(Pid::from_raw(backend.get(0)), Signal::SIGKILL).ok()
        })
        .await;
        eventually("Postgres ends all connections", async || witness.is_closed().then_some(()))
            .await;
        load.sells(150).await;
        let before = env.count("SELECT count(*) FROM reservations").await;
        eventually("orders are stored again", async || {
            (env.count("SELECT count(*) FROM reservations").await > before).then_some(())
        })
        .await;
    }
    let account = load.end().await.assert_all_answers_kept(&env, &service).await;
    assert!(account.confirmed >= 600);
    assert_eq!(env.count("SELECT count(*) FROM reservations WHERE state = 'voided'").await, 0);
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);
}
