//! Processes are killed under load; every answer that a buyer got is kept.

use std::{os::unix::process::ExitStatusExt as _, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use yoink::app::Role;

use crate::harness::{Binary, Crowd, Yard, eventually, product};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_api_keeps_every_answer_that_a_buyer_got() {
    let yard = Yard::new().await;
    let keeper = yard.serve(Role::All, &[]).await;
    keeper.create(product("shoe", 100_000)).await;
    keeper.create(product("boot", 100_000)).await;
    let mut api = Binary::serve_as("api", &yard, &[], None);
    let crowd = Crowd::new("buyer", 8, &["shoe", "boot"]).paced(Duration::from_millis(2));
    let rush = crowd.rush(vec![api.channel().await]);
    for _ in 0..3 {
        rush.sells(150).await;
        api.signal(Signal::SIGKILL);
        assert_eq!(api.ended().await.signal(), Some(Signal::SIGKILL as i32));
        eventually("buyers lose their answers", async || (rush.open() > 0).then_some(())).await;
        api = Binary::serve_as("api", &yard, &[], None);
        rush.go_to(vec![api.channel().await]);
    }
    rush.sells(150).await;
    let answers = rush.end().await;
    assert!(answers.accepted() >= 600);
    // By another process than those that gave the answers.
    answers.honoured(&yard, &keeper).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backend_of_postgres_costs_nobody_an_order() {
    let yard = Yard::with_own_postgres().await;
    let service = yard.serve(Role::All, &[]).await;
    service.create(product("shoe", 100_000)).await;
    let rush = Crowd::new("buyer", 4, &["shoe"]).rush(vec![service.channel()]);
    for _ in 0..2 {
        rush.sells(150).await;
        // All connections of a Postgres end when one backend is killed; this one sees it.
        let witness = yard.sql().await;
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'yoink' LIMIT 1";
        eventually("a backend of the service is killed", async || {
            let backend = witness.query_opt(sql, &[]).await.unwrap()?;
            // It may have ended by itself since.
            kill(Pid::from_raw(backend.get(0)), Signal::SIGKILL).ok()
        })
        .await;
        eventually("Postgres ends all", async || witness.is_closed().then_some(())).await;
        rush.sells(150).await;
        let before = yard.count("SELECT count(*) FROM reservations").await;
        eventually("orders are stored again", async || {
            (yard.count("SELECT count(*) FROM reservations").await > before).then_some(())
        })
        .await;
    }
    let account = rush.end().await.honoured(&yard, &service).await;
    assert!(account.confirmed >= 600);
    assert_eq!(yard.count("SELECT count(*) FROM reservations WHERE state = 'voided'").await, 0);
    assert_eq!(yard.count("SELECT count(*) FROM dead_actions").await, 0);
}
