//! Postgres fails over asynchronously and loses commits: the partitions are fenced and rebuilt, and the lost orders are counted and named.

use futures_util::future::join_all;
use tokio_postgres::{Client, NoTls};
use tokio_util::task::TaskTracker;
use tonic_types::StatusExt as _;
use yoink::{app::Role, domain::Lost, servers::PostgresServer};

use crate::harness::{
    Proxy, Service, TestEnv, eventually, product, promote, reason, scratch_dir, standby,
};

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    // It ends with its client.
    TaskTracker::new().spawn(connection);
    client
}

/// A primary and its standby, each behind a proxy of its own: `line` for the service, `link` for streaming.
struct Pair {
    env: TestEnv,
    standby: PostgresServer,
    line: Proxy,
    link: Proxy,
}

impl Pair {
    async fn start() -> Self {
        let dir = scratch_dir("primary");
        let mut env = TestEnv::with_own_redis().await;
        let at = dir.clone();
        let settings = ["fsync=off", "max_connections=500"];
        let start = move || PostgresServer::start(&at, &settings).unwrap();
        let primary = tokio::task::spawn_blocking(start).await.unwrap();
        primary.create_database(&env.database).unwrap();
        yoink::ledger::migrate(&primary.owner_url(&env.database).parse().unwrap()).await.unwrap();
        let link = Proxy::postgres(primary.port()).await;
        let port = link.port();
        let copy = move || standby(&dir, port);
        let standby = tokio::task::spawn_blocking(copy).await.unwrap();
        let line = Proxy::postgres(primary.port()).await;
        env.postgres = Some(primary);
        Self { env, standby, line, link }
    }

    /// Waits until the standby holds what the primary holds.
    async fn caught_up(&self) {
        let standby = connect(&self.standby.superuser_url(&self.env.database)).await;
        eventually("the standby has everything", async || {
            let sql = "SELECT count(*) FROM reservations";
            let there: i64 = standby.query_one(sql, &[]).await.ok()?.get(0);
            (there == self.env.count(sql).await).then_some(())
        })
        .await;
    }

    /// The primary dies and the standby is promoted.
    async fn fail_over(mut self) -> (TestEnv, Proxy) {
        let mut primary = self.env.postgres.take().unwrap();
        tokio::task::spawn_blocking(move || primary.kill()).await.unwrap();
        promote(&self.standby).await;
        self.line.point_at(self.standby.port());
        self.env.postgres = Some(self.standby);
        (self.env, self.line)
    }
}

async fn until_rebuilt(env: &TestEnv) {
    eventually("every partition is rebuilt", async || {
        let sql = "SELECT count(*) FROM partitions WHERE epoch > 1 AND status = 'open'";
        (env.count(sql).await == 2).then_some(())
    })
    .await;
}

/// Users who bought by the request id "r": with their reservation ids.
async fn sell(service: &Service, id: &str, users: std::ops::Range<u32>) -> Vec<(String, String)> {
    let mut sold = Vec::new();
    for n in users {
        let user = format!("user-{n}");
        let bought = service.buy(id, &user, "r").await.unwrap();
        sold.push((user, bought.reservation_id));
    }
    sold
}

async fn until_stored(env: &TestEnv, rows: i64) {
    eventually("they are stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == rows).then_some(())
    })
    .await;
    // They are also settled: Redis has none of them any more.
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_lost_in_a_failover_are_detected_counted_named_and_resold() {
    let pair = Pair::start().await;
    let url = pair.line.postgres_url(&pair.env.database);
    let service = pair.env.serve(Role::All, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 60)).await;
    let mut limited = product("hat", 10);
    limited.sale.per_user_limit = Some(1);
    service.create(limited).await;
    let kept = sell(&service, "shoe", 0..25).await;
    service.buy("hat", "keeper", "r").await.unwrap();
    until_stored(&pair.env, 26).await;
    pair.caught_up().await;
    pair.link.cut();
    let lost = sell(&service, "shoe", 25..45).await;
    service.buy("hat", "loser", "r").await.unwrap();
    until_stored(&pair.env, 47).await;

    let (env, _line) = pair.fail_over().await;
    until_rebuilt(&env).await;
    eventually("it sells again", async || service.buy("shoe", "user-0", "r").await.ok()).await;
    for (user, id) in &kept {
        let again = service.buy("shoe", user, "r").await.unwrap();
        assert_eq!((again.duplicate, &again.reservation_id), (true, id), "{user}");
    }
    for (user, id) in &lost {
        let status = service.buy("shoe", user, "r").await.unwrap_err();
        assert_eq!(reason(&status), "LOST_OR_UNKNOWN", "{user}: no second unit is sold silently");
        assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "no");
        assert!(status.message().contains(id), "{}", status.message());
        let status = service.reservation(id).await.unwrap_err();
        assert_eq!(reason(&status), "LOST_OR_UNKNOWN");
    }
    assert_eq!(service.refusal("hat", "loser", "r").await, "LOST_OR_UNKNOWN");
    service.buy("hat", "loser", "r2").await.expect("a lost order does not count for the limit");
    assert_eq!(service.refusal("hat", "keeper", "r2").await, "LIMIT_REACHED");
    // Exactly the units of the lost orders are for sale again.
    let users: Vec<String> = (100..160).map(|n| format!("user-{n}")).collect();
    let buys = join_all(users.iter().map(|user| service.buy("shoe", user, "r"))).await;
    assert_eq!(buys.iter().filter(|answer| answer.is_ok()).count(), 35);
    let report = eventually("what was lost is counted exactly", async || {
        let report = env.assert_audit_holds().await;
        let exact = report.lost.iter().all(|lost| lost.exact);
        exact.then_some(report)
    })
    .await;
    let count: u64 = report.lost.iter().map(|lost: &Lost| lost.count).sum();
    assert_eq!(count, 21, "{:?}", report.lost);
    let shoe = report.products.iter().find(|units| units.product.as_str() == "shoe").unwrap();
    assert_eq!((shoe.confirmed, shoe.stock), (60, 0));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_without_loss_causes_one_rebuild_and_loses_no_order() {
    let pair = Pair::start().await;
    let url = pair.line.postgres_url(&pair.env.database);
    let service = pair.env.serve(Role::All, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 60)).await;
    let kept = sell(&service, "shoe", 0..10).await;
    until_stored(&pair.env, 10).await;
    pair.caught_up().await;
    let (env, _line) = pair.fail_over().await;
    until_rebuilt(&env).await;
    eventually("it sells again", async || service.buy("shoe", "user-0", "r").await.ok()).await;
    for (user, id) in &kept {
        let again = service.buy("shoe", user, "r").await.unwrap();
        assert_eq!((again.duplicate, &again.reservation_id), (true, id), "{user}");
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.lost.len()), (10, 0));
    assert_eq!(env.count("SELECT max(epoch) FROM partitions").await, 2, "one rebuild each");
    service.stop().await;
}
