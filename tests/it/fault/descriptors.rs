//! More connections than descriptors: health answers, connected buyers buy, and little CPU is used.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::transport::Channel;
use yoink::{
    app::Role,
    grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient},
};

use crate::harness::{Binary, TestEnv, WAIT_MAX, eventually, get, product};

/// Ticks of `/proc/<pid>/stat` in a second, on every Linux.
const TICKS: f64 = 100.0;
/// The share of one core that a process may use while it cannot accept connections.
const CORE_SHARE_MAX: f64 = 0.5;

/// Processor time of a process so far, in seconds.
fn processor_seconds(of: &Binary) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", of.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / TICKS
}

/// Calls repeatedly for two seconds; the process must not use most of a core for that.
async fn costs_little(process: &Binary, mut ask: impl AsyncFnMut(u32)) {
    let (started, before) = (Instant::now(), processor_seconds(process));
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    for n in 0..20 {
        ticks.tick().await;
        tokio::time::timeout(WAIT_MAX, ask(n)).await.unwrap();
    }
    let share = (processor_seconds(process) - before) / started.elapsed().as_secs_f64();
    assert!(share < CORE_SHARE_MAX, "{share} of a core");
}

async fn buy(over: &Channel, user: &str) {
    let request = ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: user.to_owned(),
        request_id: "r".to_owned(),
        ..Default::default()
    };
    InventoryServiceClient::new(over.clone()).reserve_unit(request).await.unwrap();
}

async fn connect(at: SocketAddr, connections: usize, word: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut connection = TcpStream::connect(at).await.unwrap();
        // A connection that was closed at once has no reader.
        drop(connection.write_all(word).await);
        held.push(connection);
    }
    held
}

/// A counter of one listener.
async fn counted(http: SocketAddr, name: &str, listener: &str) -> u64 {
    let scrape = get(http, "/metrics").await;
    let line = scrape.lines().find(|line| {
        line.starts_with(&format!("{name}{{")) && line.contains(&format!("listener=\"{listener}\""))
    });
    line.unwrap_or_else(|| panic!("no {name} of {listener}"))
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

async fn is_ready(http: SocketAddr) {
    let ready = get(http, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_descriptors_do_not_affect_health_or_connected_buyers() {
    let env = TestEnv::new().await;
    let keeper = env.serve(Role::All, &[]).await;
    keeper.create(product("shoe", 1000)).await;
    // The soft limit is raised to the hard one; otherwise these connections would not fit.
    let mut api = Binary::serve_under(&["prlimit", "--nofile=64:256"], "api", &env, &[]);
    let connected = api.channel().await;
    let (grpc, http) = (api.address().unwrap(), api.http_address().unwrap());
    buy(&connected, "first").await;

    let held = connect(grpc, 500, b"").await;
    eventually("the connections over the limit are closed", async || {
        (counted(http, "yoink_connections_limited_total", "grpc").await > 300).then_some(())
    })
    .await;
    let slow = connect(http, 300, b"GET /re").await;
    eventually("the oldest are closed", async || {
        (counted(http, "yoink_connections_limited_total", "http").await > 200).then_some(())
    })
    .await;
    costs_little(&api, async |n| {
        is_ready(http).await;
        buy(&connected, &format!("user-{n}")).await;
    })
    .await;
    assert_eq!(counted(http, "yoink_accept_failures_total", "grpc").await, 0);
    let message = api.log();
    assert_eq!(message.matches("too many connections").count(), 2, "{message}");
    assert!(message.contains("instead of connections_max = 10000"), "{message}");

    drop((held, slow));
    eventually("connections are accepted again", async || {
        (counted(http, "yoink_connections", "grpc").await < 10).then_some(())
    })
    .await;
    buy(&api.channel().await, "late").await;
    env.assert_audit_holds().await;
}

/// Sets the soft limit of a process that runs.
fn limit_descriptors(of: &Binary, soft: &str) {
    let mut command = Command::new("prlimit");
    command.arg("--pid").arg(of.pid().to_string()).arg(format!("--nofile={soft}:"));
    assert!(command.status().unwrap().success());
}

/// Sends a request over a connection that stays open.
async fn ask_again(http: &mut TcpStream, path: &str) -> String {
    http.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    // The head may come alone; the body has at least one line.
    while !answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('\n')) {
        let mut bytes = [0; 4096];
        let read = http.read(&mut bytes).await.unwrap();
        assert!(read > 0, "closed after {answer:?}");
        answer.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn process_out_of_descriptors_waits_logs_once_and_recovers() {
    let env = TestEnv::new().await;
    let keeper = env.serve(Role::All, &[]).await;
    keeper.create(product("shoe", 1000)).await;
    let mut api = Binary::serve_as("api", &env, &[], None);
    let connected = api.channel().await;
    let (grpc, http) = (api.address().unwrap(), api.http_address().unwrap());
    // Answered once, so both connections are certainly accepted: one that waits in the backlog never would be.
    buy(&connected, "first").await;
    let mut asking = TcpStream::connect(http).await.unwrap();
    assert!(ask_again(&mut asking, "/readyz").await.starts_with("HTTP/1.1 200"));

    // Fewer than it has open: it cannot open any further descriptor.
    limit_descriptors(&api, "4");
    let mut waiting = connect(grpc, 20, b"").await;
    waiting.extend(connect(http, 20, b"").await);
    eventually("it logs it", async || {
        (api.log().matches("cannot accept connections").count() == 2).then_some(())
    })
    .await;
    costs_little(&api, async |n| {
        assert!(ask_again(&mut asking, "/readyz").await.starts_with("HTTP/1.1 200"));
        buy(&connected, &format!("user-{n}")).await;
    })
    .await;
    assert_eq!(api.log().matches("cannot accept connections").count(), 2, "not at each attempt");

    limit_descriptors(&api, "1024");
    is_ready(http).await;
    buy(&api.channel().await, "late").await;
    drop(waiting);
    env.assert_audit_holds().await;
}
