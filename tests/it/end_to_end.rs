//! The real program, real signals, generated clients.

use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};
use yoink::{
    app::Role,
    grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient},
};

use crate::harness::{
    Binary, BuyerLoad, Dev, TestEnv, eventually, get, processes_under, product, reason, scratch_dir,
};

async fn create(env: &TestEnv, id: &str, units: i64) {
    let stores = env.app(&[]).await.stores().clone();
    let partitions = stores.deployment.partitions;
    stores.ledger.create_products(&[product(id, units)], partitions, "test").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_no_accepted_order() {
    let env = TestEnv::new().await;
    create(&env, "shoe", 1_000_000).await;
    let mut binary = Binary::serve(&env, &[], None);
    let load = BuyerLoad::new("buyer", 50, &["shoe"]).start(vec![binary.channel().await]);
    eventually("orders are coming in", async || {
        (env.count("SELECT count(*) FROM reservations").await > 500).then_some(())
    })
    .await;
    binary.signal(Signal::SIGTERM);
    let status = binary.ended().await;
    assert!(status.success(), "{status}: {}", binary.log());
    // Every accepted order is stored; buyers without an answer repeat the request at the next process.
    let mut next = Binary::serve(&env, &[("takeover_idle_ms", "500")], None);
    load.go_to(vec![next.channel().await]);
    load.sells(50).await;
    let answers = load.end().await;
    assert!(answers.accepted() > 500);
    let keeper = env.serve(Role::Api, &[]).await;
    answers.assert_all_answers_kept(&env, &keeper).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_answers_calls_in_flight_and_does_not_wait_for_endless_ones() {
    for answered in [true, false] {
        let env = TestEnv::with_own_redis().await;
        create(&env, "shoe", 10).await;
        let settings = [("concurrency_max_calls", "1"), ("call_timeout_ms", "600000")];
        let mut binary = Binary::serve(&env, &settings, None);
        let channel = binary.channel().await;
        let redis = env.redis.as_ref().unwrap();
        redis.pause();
        // Two calls for one permit: when one is refused, the other is in flight.
        let buy = |user: &str| {
            let request = ReserveUnitRequest {
                product_id: "shoe".to_owned(),
                user_id: user.to_owned(),
                request_id: "r".to_owned(),
                ..Default::default()
            };
            let mut buyers = InventoryServiceClient::new(channel.clone());
            Box::pin(async move { buyers.reserve_unit(request).await })
        };
        let (refused, _, mut under_way) =
            futures_util::future::select_all([buy("ann"), buy("bob")]).await;
        assert_eq!(reason(&refused.unwrap_err()), "OVERLOADED");
        binary.signal(Signal::SIGTERM);
        eventually("it shuts down", async || binary.log().contains("shutting down").then_some(()))
            .await;
        if answered {
            redis.resume();
            let answer = under_way.remove(0).await;
            assert!(answer.is_ok(), "{answer:?}");
        }
        // However long Redis is silent.
        let status = binary.ended().await;
        assert!(status.success() || !answered, "{status}: {}", binary.log());
        redis.resume();
        let next = env.serve(Role::All, &[("takeover_idle_ms", "500")]).await;
        let report = env.assert_audit_holds().await;
        assert!(!answered || report.products[0].confirmed == 1, "{report:?}");
        next.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_serves_both_of_its_versions() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("reflection", "on")]).await;
    let channel = Channel::from_shared(format!("http://{}", service.grpc)).unwrap();
    let channel = channel.connect().await.unwrap();
    let expected = [
        "grpc.health.v1.Health",
        "yoink.v1.AdminService",
        "yoink.v1.InventoryService",
        "yoink.v1.StorefrontService",
    ];

    use v1::{
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = v1::ServerReflectionRequest { host: String::new(), message_request };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let stream = futures_util::stream::iter([request]);
    let mut answers = client.server_reflection_info(stream).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!()
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    assert!(expected.iter().all(|name| names.iter().any(|found| found == name)), "{names:?}");

    use v1alpha::server_reflection_request::MessageRequest as AlphaRequest;
    let message_request =
        Some(AlphaRequest::FileContainingSymbol("yoink.v1.InventoryService".to_owned()));
    let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let stream = futures_util::stream::iter([request]);
    let mut answers = client.server_reflection_info(stream).await.unwrap().into_inner();
    assert!(answers.next().await.unwrap().unwrap().message_response.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn health_depends_on_redis_and_not_on_postgres() {
    let (mut env, other) = (TestEnv::with_own_redis().await, TestEnv::with_own_postgres().await);
    (env.postgres, env.database) = (other.postgres, other.database);
    let service = env.serve(Role::All, &[]).await;
    let channel = Channel::from_shared(format!("http://{}", service.grpc)).unwrap();
    let health = HealthClient::new(channel.connect().await.unwrap());
    let status = async |name: &str| {
        let request = HealthCheckRequest { service: name.to_owned() };
        health.clone().check(request).await.unwrap().into_inner().status().as_str_name()
    };
    assert_eq!(status("").await, "SERVING");
    assert_eq!(status("yoink.v1.InventoryService").await, "SERVING");
    assert!(get(service.http, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(service.http, "/readyz").await.starts_with("HTTP/1.1 200"));
    let serves = async || {
        status("").await == "SERVING"
            && get(service.http, "/readyz").await.starts_with("HTTP/1.1 200")
    };
    service.create(product("shoe", 10)).await;
    env.postgres.as_mut().unwrap().stop();
    eventually("Postgres is seen to be down", async || {
        get(service.http, "/metrics")
            .await
            .lines()
            .any(|line| {
                line.starts_with("yoink_store_up{")
                    && line.contains("postgres")
                    && line.ends_with(" 0")
            })
            .then_some(())
    })
    .await;
    service.buy("shoe", "ann", "r").await.unwrap();
    assert!(serves().await, "it sells without Postgres");
    env.postgres.as_mut().unwrap().restart().unwrap();
    env.assert_audit_holds().await;
    assert!(serves().await);
    env.redis.as_mut().unwrap().stop();
    eventually("health reports it", async || (status("").await == "NOT_SERVING").then_some(()))
        .await;
    assert!(get(service.http, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(
        get(service.http, "/healthz").await.starts_with("HTTP/1.1 200"),
        "the process is alive"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_keeps_state_refuses_a_second_run_and_stops_its_servers() {
    let here = scratch_dir("dev");
    let mut first = Dev::start(&here);
    first.ready().await;
    let bought = first.buy().await;
    let (_, http) = first.addresses().await;
    assert!(get(http, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(processes_under(&here).len() >= 2, "Redis and Postgres are seen while they run");
    let second = Dev::start(&here).ended().await;
    assert_eq!(second.0.code(), Some(2));
    assert!(second.1.contains("already runs in"), "{}", second.1);
    first.interrupt();
    assert!(first.ended().await.0.success());
    assert_eq!(processes_under(&here), Vec::<String>::new());

    let mut again = Dev::start(&here);
    let duplicate = again.buy().await;
    assert!(duplicate.duplicate, "the order was kept");
    assert_eq!(duplicate.reservation_id, bought.reservation_id);
    again.assert_audit_holds().await;
    // However it ends, its servers end with it.
    again.kill();
    eventually("its servers have ended", async || processes_under(&here).is_empty().then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn demo_prints_its_verdict_and_leaves_no_files_or_processes() {
    let here = scratch_dir("demo");
    let mut demo = std::process::Command::new(env!("CARGO_BIN_EXE_yoink"));
    demo.args(["demo", "--attempts", "2000", "--units", "50", "--buyers", "200"]);
    demo.env("TMPDIR", &here).current_dir(&here);
    let output = tokio::task::spawn_blocking(move || demo.output().unwrap()).await.unwrap();
    let message = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{message}{}", String::from_utf8_lossy(&output.stderr));
    assert!(message.contains("The audit holds"), "{message}");
    assert_eq!(processes_under(&here), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(&here).unwrap().count(), 0, "no file stays");
}
