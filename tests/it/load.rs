//! The load generator against a real service: what it counts is what the service did.

use std::{
    collections::HashSet,
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yoink::{
    app::Role,
    grpc::pb,
    load::{self, Call, Choice, Kind, LoadError, Pace, Plan, Report, Second, Users},
};

use crate::harness::{
    Binary, Service, TestEnv, eventually, product, run_yoink, scratch_dir, spawn_yoink,
};

/// 40 callers on 4 connections in two threads, who make these many calls.
fn plan(target: SocketAddr, products: &[&str], calls: u64) -> Plan {
    let mut plan = Plan::new(target.to_string(), products.iter().copied());
    (plan.connections, plan.streams, plan.threads) = (4, 10, 2);
    (plan.calls, plan.duration) = (Some(calls), None);
    plan.timeout = Duration::from_secs(30);
    plan
}

async fn run(plan: Plan) -> Report {
    load::run(plan, CancellationToken::new(), |_| {}).await.unwrap()
}

async fn service(env: &TestEnv, products: &[(&str, i64)]) -> Service {
    let service = env.serve(Role::All, &[]).await;
    for (id, units) in products {
        service.create(product(id, *units)).await;
    }
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_loop_counts_what_the_service_sold() {
    let env = TestEnv::new().await;
    let service = service(&env, &[("shoe", 300)]).await;
    let mut plan = plan(service.grpc, &["shoe"], 1_000);
    plan.keep_accepted_ids = true;
    let mut seconds = Vec::new();
    let stop = CancellationToken::new();
    let report = load::run(plan, stop, |second| seconds.push(second.clone())).await.unwrap();
    assert_eq!((report.calls(), report.accepted(), report.errors()), (1_000, 300, 0));
    assert_eq!((report.outcomes.named("SOLD_OUT"), report.connections.made), (700, 4));
    assert_eq!(report.outcomes.of(Kind::Refused), 700);
    let ids: HashSet<&String> = report.accepted_ids.iter().collect();
    assert_eq!((ids.len(), report.accepted_ids.len()), (300, 300));
    assert_eq!(seconds, report.seconds, "every second was reported");
    let counted: u64 = seconds.iter().map(|second| second.outcomes.total()).sum();
    assert_eq!(counted, 1_000);
    assert!(!report.interrupted && report.latency_max() >= report.latency_at(0.5));

    let confirmed = env.assert_audit_holds().await.products[0].confirmed;
    assert_eq!(confirmed, 300);
    let found = service.reservation(&report.accepted_ids[0]).await.unwrap();
    assert_eq!(found.product_id, "shoe");
}

#[tokio::test(flavor = "multi_thread")]
async fn products_and_users_are_chosen_as_planned() {
    let env = TestEnv::new().await;
    let service = service(&env, &[("hat", 1_000), ("shoe", 1_000)]).await;
    let mut limited = product("ring", 1_000);
    limited.sale.per_user_limit = Some(2);
    service.create(limited).await;

    let mut hot = plan(service.grpc, &["hat", "shoe"], 50);
    hot.product_choice = Choice::Hot;
    assert_eq!(run(hot).await.accepted(), 50);
    // There is no replica here.
    let mut replicated = plan(service.grpc, &["hat"], 10);
    replicated.ack = pb::Ack::Replica;
    let replicated = run(replicated).await;
    assert_eq!(replicated.outcomes.named("ACK_UNAVAILABLE"), 10, "{replicated:?}");
    let uniform = run(plan(service.grpc, &["hat", "shoe"], 200)).await;
    assert_eq!(uniform.accepted(), 200);
    let mut users = plan(service.grpc, &["ring"], 100);
    users.users = Users::Of { count: 1, choice: Choice::Hot };
    users.request_ids = false;
    let users = run(users).await;
    assert_eq!((users.accepted(), users.outcomes.named("LIMIT_REACHED")), (2, 98));

    let report = env.assert_audit_holds().await;
    let confirmed = |id: &str| {
        report.products.iter().find(|units| units.product.as_str() == id).unwrap().confirmed
    };
    let (hats, shoes) = (confirmed("hat"), confirmed("shoe"));
    assert_eq!((hats + shoes, confirmed("ring")), (250, 2));
    assert!(hats > 50 && shoes > 0, "{hats} hats, {shoes} shoes");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_calls_reach_the_health_service_and_sell_nothing() {
    let env = TestEnv::new().await;
    let service = service(&env, &[("shoe", 5)]).await;
    let mut plan = plan(service.grpc, &[], 100);
    plan.call = Call::HealthCheck;
    let report = run(plan).await;
    assert_eq!((report.outcomes.named("ok"), report.errors()), (100, 0));
    assert_eq!(env.assert_audit_holds().await.products[0].stock, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn open_loop_starts_no_call_before_its_time_and_makes_all_of_them() {
    let env = TestEnv::new().await;
    let service = service(&env, &[("shoe", 1_000)]).await;
    let mut plan = plan(service.grpc, &["shoe"], 100);
    // In one thread: which of several takes the last call is open.
    plan.threads = 1;
    plan.pace = Pace::Open { rate: 200.0 };
    plan.warm_up = Duration::from_millis(50);
    let report = run(plan).await;
    // Of 200 a second from 0 on, those of the first 50 ms are the warm-up.
    assert_eq!((report.calls(), report.warm_up_calls, report.not_started), (100, 10, 0));
    assert!(report.elapsed >= Duration::from_micros(495_000), "{:?}", report.elapsed);
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 110);
}

#[tokio::test(flavor = "multi_thread")]
async fn latency_of_an_open_loop_counts_from_the_intended_start() {
    let env = TestEnv::new().await;
    let service = service(&env, &[("shoe", 1_000)]).await;
    let mut plan = plan(service.grpc, &["shoe"], 50);
    // One caller, and all calls are due within a millisecond: the last one waits for all others.
    (plan.connections, plan.streams) = (1, 1);
    plan.pace = Pace::Open { rate: 50_000.0 };
    let report = run(plan).await;
    assert_eq!(report.accepted(), 50);
    assert!(report.latency_max() + Duration::from_millis(2) >= report.elapsed, "{report:?}");
}

/// A port that accepts connections and never answers.
async fn silent() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = TaskTracker::new().spawn(async move {
        let mut accepted = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            accepted.push(stream);
        }
    });
    (address, accepting)
}

#[tokio::test(flavor = "multi_thread")]
async fn call_without_an_answer_is_counted_and_so_are_those_that_it_kept_from_starting() {
    let (address, accepting) = silent().await;
    let mut plan = plan(address, &["shoe"], 1_000);
    (plan.connections, plan.streams) = (1, 1);
    plan.pace = Pace::Open { rate: 100.0 };
    (plan.calls, plan.duration) = (None, Some(Duration::from_millis(500)));
    plan.timeout = Duration::from_secs(4);
    let report = run(plan).await;
    assert_eq!((report.calls(), report.outcomes.named("timeout")), (1, 1));
    assert_eq!((report.not_started, report.connection_errors()), (49, 1));
    assert!((report.error_rate() - 1.0).abs() < 1e-9);
    assert_eq!(report.latency_max(), Duration::ZERO, "a call without an answer has no latency");
    accepting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_at_their_age_cause_no_error() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("connection_max_age_ms", "1000")]).await;
    service.create(product("shoe", 10_000_000)).await;
    let mut plan = plan(service.grpc, &["shoe"], 1);
    (plan.calls, plan.duration) = (None, Some(Duration::from_secs(60)));
    let (seconds, running, stop) = start(plan);
    // Each connection was replaced at least once after a few seconds.
    eventually("some seconds have passed", async || {
        (seconds.lock().unwrap().len() >= 4).then_some(())
    })
    .await;
    stop.cancel();
    let report = running.await.unwrap();
    assert_eq!(report.errors(), 0, "{:?}", report.outcomes);
    assert!(report.connections.made > 4 && report.connections.closed > 0, "{report:?}");
    let confirmed = env.assert_audit_holds().await.products[0].confirmed;
    assert_eq!(u64::try_from(confirmed).unwrap(), report.accepted());
}

type Seconds = Arc<Mutex<Vec<Second>>>;

/// Starts a run; returns its seconds so far, its report, and what stops it.
fn start(plan: Plan) -> (Seconds, JoinHandle<Report>, CancellationToken) {
    let (seconds, stop) = (Seconds::default(), CancellationToken::new());
    let (recorded, stopped) = (seconds.clone(), stop.clone());
    let running = TaskTracker::new().spawn(async move {
        let record = |second: &Second| recorded.lock().unwrap().push(second.clone());
        load::run(plan, stopped, record).await.unwrap()
    });
    (seconds, running, stop)
}

/// Forwards connections to a service that can be replaced by another one; without a service, connections are closed.
async fn forwarder() -> (SocketAddr, watch::Sender<Option<SocketAddr>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (to, current) = watch::channel(None);
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let current = *current.borrow();
            tasks.spawn(async move {
                let Some(current) = current else { return };
                if let Ok(mut service) = TcpStream::connect(current).await {
                    // It ends with either of them.
                    drop(tokio::io::copy_bidirectional(&mut from, &mut service).await);
                }
            });
        }
    });
    (address, to)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_service_is_counted_and_the_run_continues_with_the_next_one() {
    let env = TestEnv::new().await;
    let mut first = Binary::serve(&env, &[], None);
    drop(first.channel().await);
    let admin = service(&env, &[("shoe", 10_000_000)]).await;
    let (address, to) = forwarder().await;
    to.send_replace(first.address());
    let mut plan = plan(address, &["shoe"], 1);
    (plan.calls, plan.duration) = (None, Some(Duration::from_secs(600)));
    plan.keep_accepted_ids = true;
    let (seconds, running, stop) = start(plan);
    let any = async |what: &str, since: usize, holds: fn(&Second) -> bool| {
        eventually(what, async || {
            let seconds = seconds.lock().unwrap();
            seconds.iter().skip(since).any(holds).then_some(seconds.len())
        })
        .await
    };
    let sold = any("it sells", 0, |second| second.outcomes.named("accepted") > 0).await;
    // Stopped, it answers nothing more, so every caller waits for an answer when it is killed.
    first.signal(Signal::SIGSTOP);
    any("no call is answered", sold, |second| second.outcomes.total() == 0).await;
    to.send_replace(None);
    first.signal(Signal::SIGKILL);
    first.ended().await;
    let lost = any("the calls are lost", sold, |s| s.outcomes.named("connection lost") > 0).await;
    let mut second = Binary::serve(&env, &[], None);
    drop(second.channel().await);
    to.send_replace(second.address());
    any("the next one sells", lost, |second| second.outcomes.named("accepted") > 0).await;
    stop.cancel();

    let report = running.await.unwrap();
    assert!(report.interrupted);
    assert!(report.outcomes.of(Kind::Unanswered) >= 40, "{report:?}");
    assert!(report.connections.made >= 8, "{report:?}");
    assert_eq!(report.calls(), report.outcomes.answered() + report.outcomes.of(Kind::Unanswered));
    let confirmed = env.assert_audit_holds().await.products[0].confirmed;
    assert!(u64::try_from(confirmed).unwrap() >= report.accepted(), "{confirmed}, {report:?}");
    for id in report.accepted_ids.iter().take(3) {
        admin.reservation(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_that_cannot_begin_is_an_error() {
    let (address, accepting) = silent().await;
    let mut no_metrics = plan(address, &["shoe"], 1);
    no_metrics.metrics_url = Some(format!("http://{address}/metrics"));
    let problem = async |plan: Plan| {
        load::run(plan, CancellationToken::new(), |_| {}).await.unwrap_err().to_string()
    };
    let message = problem(no_metrics).await;
    assert!(message.contains("no page was returned"), "{message}");
    accepting.abort();
    // Nothing listens on this port.
    let closed = SocketAddr::from(([127, 0, 0, 1], 1));
    let message = problem(plan(closed, &["shoe"], 1)).await;
    assert!(message.contains(&format!("cannot connect to {closed}")), "{message}");
    let named = Plan { target: "no-port".to_owned(), ..plan(closed, &["shoe"], 1) };
    assert!(problem(named).await.contains("host:port"));
    let empty = load::run(plan(closed, &[], 1), CancellationToken::new(), |_| {}).await;
    assert!(matches!(empty, Err(LoadError::InvalidPlan { field: "products", .. })));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn command_prints_a_table_and_writes_both_reports() {
    let env = TestEnv::new().await;
    // Nothing stores the orders: they stay in the backlog.
    let service = env.serve(Role::Api, &[]).await;
    for id in ["p-0", "p-1"] {
        service.create(product(id, 30)).await;
    }
    let dir = scratch_dir("load");
    let (json, html) = (dir.join("report.json"), dir.join("report.html"));
    let (target, metrics) = (service.grpc.to_string(), format!("http://{}/metrics", service.http));
    let args = [
        &["load", "--target", &target, "--product-prefix", "p-", "--product-count", "2"][..],
        &["--product-choice", "zipf:1.1", "--calls", "400", "--metrics-url", &metrics],
        &["--json", json.to_str().unwrap(), "--html", html.to_str().unwrap()],
    ];
    let done = tokio::task::block_in_place(|| run_yoink(&env, &args.concat()));
    let printed = text(&done.stdout);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(printed.contains("accepted") && printed.contains("SOLD_OUT"), "{printed}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!((&report["calls"], &report["errors"]), (&400.into(), &0.into()));
    assert_eq!(report["outcomes"][0]["count"], 60, "{report}");
    assert_eq!(report["plan"]["product_choice"], "zipf:1.1");
    assert!(report["seconds"][0]["backlog"].is_u64(), "{report}");
    let page = fs::read_to_string(html).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("SOLD_OUT"), "{page}");
    assert!(page.contains("<h2>Backlog</h2>"));
    let _worker = env.serve(Role::Worker, &[]).await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_flags_are_refused_with_a_reason() {
    let env = TestEnv::new().await;
    for (flags, reason) in [
        (&["--products", "shoe", "--rate", "0"][..], "rate must be above 0"),
        (&[], "name what to buy"),
        (&["--products", "shoe", "--target", "nowhere"], "host:port"),
        (&["--products", "shoe", "--json", "/no/such/dir/x"], "cannot create /no/such/dir/x"),
    ] {
        let args = [&["load"], flags].concat();
        let done = tokio::task::block_in_place(|| run_yoink(&env, &args));
        assert_eq!(done.status.code(), Some(2), "{flags:?}");
        assert!(text(&done.stderr).contains(reason), "{flags:?}: {}", text(&done.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_command_reports_what_was_done() {
    let env = TestEnv::new().await;
    let service = service(&env, &[("shoe", 10_000_000)]).await;
    let target = service.grpc.to_string();
    let args = ["load", "--target", &target, "--products", "shoe", "--duration", "10m"];
    let command = spawn_yoink(&env, &[], &args);
    eventually("it buys", async || {
        let stored = env.count("SELECT count(*) FROM reservations").await;
        (stored > 0).then_some(())
    })
    .await;
    let pid = nix::unistd::Pid::from_raw(command.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGINT).unwrap();
    let done = tokio::task::block_in_place(|| command.wait_with_output().unwrap());
    assert_eq!(done.status.code(), Some(130), "{}", text(&done.stderr));
    let printed = text(&done.stdout);
    assert!(printed.contains("Interrupted") && printed.contains("accepted"), "{printed}");
    env.assert_audit_holds().await;
}
