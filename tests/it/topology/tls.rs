//! Several servers of Redis that speak TLS.

use tokio::task::block_in_place;
use yoink::{app::Role, servers::RedisServer};

use super::cluster::{create_products, sells};
use crate::harness::{
    Authority, ClusterOptions, Sentinels, TestEnv, Validity, eventually, product, run_yoink_with,
    try_redis_command,
};

fn authority() -> Authority {
    let authority = Authority::new();
    authority.issue("server", &["127.0.0.1"], Validity::Now);
    authority
}

/// Asserts that the servers are accepted with the authority of the settings, and refused with another one.
fn assert_authority_is_checked(env: &TestEnv) {
    let other = Authority::new().file();
    let other = [("redis_ca_file", other.as_str())];
    for (settings, code, shown) in
        [(&other[..], 2, "UnknownIssuer"), (&[][..], 0, "redis_url = \"rediss+")]
    {
        let args = ["config", "check", "--connect"];
        let done = block_in_place(|| run_yoink_with(env, settings, &args));
        let printed = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        assert_eq!(done.status.code(), Some(code), "{printed}");
        assert!(printed.contains(shown), "{printed}");
    }
}

/// Waits until a server has connections of the service, and all of them use TLS.
async fn is_connected(server: &RedisServer, tls_port: u16) {
    let encrypted = format!(" laddr=127.0.0.1:{tls_port} ");
    eventually("the service is connected over TLS", async || {
        let list = try_redis_command::<String>(&server.admin_url(), &["CLIENT", "LIST"]).await;
        let clients = list.ok()?;
        let mut ours = clients.lines().filter(|line| line.contains(" user=yoink ")).peekable();
        (ours.peek().is_some() && ours.all(|line| line.contains(&encrypted))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_sells_over_tls_and_an_unknown_authority_is_refused() {
    let authority = authority();
    let options = ClusterOptions { tls: Some(&authority), ..ClusterOptions::default() };
    let env = TestEnv::with_cluster(options).await;
    assert_authority_is_checked(&env);
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service, 10).await;
    for product in &products {
        service.buy(product, "ann", "r").await.unwrap();
    }
    for number in 0..3 {
        let cluster = env.redis_cluster();
        is_connected(cluster.node(number), cluster.port(number)).await;
    }
    let report = env.assert_audit_holds().await;
    assert!(report.products.iter().all(|units| (units.confirmed, units.stock) == (1, 9)));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_by_sentinels_is_followed_over_tls() {
    let authority = authority();
    let sentinels = Some(Sentinels::start(Some(&authority)).await);
    let env = TestEnv { sentinels, redis_ca_file: Some(authority.file()), ..TestEnv::new().await };
    assert_authority_is_checked(&env);
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    eventually("the order is stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == 1).then_some(())
    })
    .await;
    let first = env.sentinels().master().await;
    env.sentinels().fail_over().await;
    env.sentinels().failed_over(first).await;
    sells(&service, "shoe", "bob").await;
    let second = env.sentinels().master().await;
    let server = &env.sentinels().servers[second];
    is_connected(server, env.sentinels().server_port(second)).await;
    env.assert_audit_holds().await;
    service.stop().await;
}
