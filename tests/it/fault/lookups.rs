//! Far more buyers look up reservations than the limit allows, while Postgres is some milliseconds away. Orders are stored
//! and operators are answered meanwhile; the first look-ups are answered and the rest are refused.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;
use tonic_types::StatusExt as _;
use yoink::{
    app::Role,
    domain::{Epoch, ReservationId},
    grpc::pb::{
        GetReservationRequest, ProductStatus, inventory_service_client::InventoryServiceClient,
    },
};

use super::schema_change::set_status;
use crate::harness::{Proxy, Service, TestEnv, eventually, get, product, reason, shared};

/// Clients that look up, and how many of them share a connection.
const CLIENTS: u32 = 500;
const CLIENTS_PER_CONNECTION: u32 = 250;

/// What the clients were answered, by reason.
type Answers = BTreeMap<String, usize>;

/// Looks up reservations that do not exist, one after the other, until `enough`; waits as long as the refusals ask.
async fn look_up(channel: Channel, client: u32, enough: CancellationToken) -> Answers {
    let mut answers = Answers::new();
    let mut buyers = InventoryServiceClient::new(channel);
    for n in 0.. {
        if enough.is_cancelled() {
            break;
        }
        let seq = 1_000_000 + u64::from(client) * 10_000 + n;
        let id = ReservationId::new(0, Epoch(1), seq, ReservationId::draw_random());
        let request = GetReservationRequest { reservation_id: id.unwrap().to_string() };
        let status = buyers.get_reservation(request).await.unwrap_err();
        let reason = reason(&status);
        *answers.entry(reason.clone()).or_default() += 1;
        if reason == "OVERLOADED" {
            let retry = status.get_details_retry_info().unwrap();
            // Repeats after the delay of the refusal, unless the flood ends first.
            let _ended = tokio::time::timeout(retry.retry_delay.unwrap(), enough.cancelled()).await;
        }
    }
    answers
}

/// The clients, under way.
struct Flood {
    clients: TaskTracker,
    enough: CancellationToken,
    answers: Vec<tokio::task::JoinHandle<Answers>>,
}

impl Flood {
    async fn begin(service: &Service) -> Self {
        let (clients, enough) = (TaskTracker::new(), CancellationToken::new());
        let mut answers = Vec::new();
        for connection in 0..CLIENTS / CLIENTS_PER_CONNECTION {
            let channel = Channel::from_shared(format!("http://{}", service.grpc)).unwrap();
            let channel = channel.connect().await.unwrap();
            for client in 0..CLIENTS_PER_CONNECTION {
                let client = connection * CLIENTS_PER_CONNECTION + client;
                answers.push(clients.spawn(look_up(channel.clone(), client, enough.clone())));
            }
        }
        Self { clients, enough, answers }
    }

    /// Stops it; returns all answers.
    async fn end(self) -> Answers {
        self.enough.cancel();
        self.clients.close();
        let mut all = Answers::new();
        for answers in self.answers {
            for (reason, times) in answers.await.unwrap() {
                *all.entry(reason).or_default() += times;
            }
        }
        all
    }
}

/// Buys units with 50 concurrent buyers and waits until all orders are stored; returns how long that took.
async fn sell(env: &TestEnv, service: &Service, users: std::ops::Range<u32>) -> Duration {
    let (begun, end) = (Instant::now(), users.end);
    for group in users.collect::<Vec<_>>().chunks(50) {
        let users: Vec<String> = group.iter().map(|n| format!("user-{n}")).collect();
        for bought in join_all(users.iter().map(|user| service.buy("shoe", user, "r"))).await {
            bought.unwrap();
        }
    }
    eventually("every order is stored", async || {
        let stored = env.count("SELECT count(*) FROM reservations").await;
        (stored == i64::from(end)).then_some(())
    })
    .await;
    begun.elapsed()
}

/// The sum of the samples whose line contains all of these; there is at least one.
async fn counted(service: &Service, parts: &[&str]) -> usize {
    let text = get(service.http, "/metrics").await;
    let lines = text.lines().filter(|line| parts.iter().all(|part| line.contains(part)));
    let values = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap());
    values.reduce(|sum, value| sum + value).unwrap()
}

const LOOKUPS: &str = "db_client_connection_pool_name=\"lookups\"";

/// The open connections of the look-ups' pool.
async fn open(service: &Service) -> usize {
    counted(service, &["db_client_connection_count{", LOOKUPS]).await
}

/// The look-ups that wait for a connection.
async fn waiting(service: &Service) -> usize {
    counted(service, &["db_client_connection_pending_requests{", LOOKUPS]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lookup_flood_is_shed_while_orders_are_stored_and_a_stop_takes_effect() {
    tokio::task::spawn_blocking(shared).await.unwrap();
    let env = TestEnv::with_own_redis().await;
    let proxy = Proxy::postgres(shared().postgres.port()).await;
    let url = proxy.postgres_url(&env.database);
    let settings = [("postgres_url", url.as_str()), ("pool_lookups", "1")];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 10_000)).await;
    proxy.delay(Duration::from_micros(2_500), Duration::from_micros(2_500));
    let quiet = sell(&env, &service, 0..1_000).await;

    let flood = Flood::begin(&service).await;
    eventually("look-ups wait for their own connection", async || {
        (waiting(&service).await > 0 && open(&service).await == 1).then_some(())
    })
    .await;
    let flooded = sell(&env, &service, 1_000..2_000).await;
    let begun = Instant::now();
    set_status(&service, ProductStatus::Stopped).await.unwrap();
    let stopped = begun.elapsed();
    assert_eq!(service.refusal("shoe", "late", "r").await, "SALE_STOPPED");
    assert!(get(service.http, "/readyz").await.starts_with("HTTP/1.1 200"));
    eventually("look-ups still wait", async || (waiting(&service).await > 0).then_some(())).await;
    let answers = flood.end().await;
    println!("1,000 orders: {quiet:?}, in the flood {flooded:?}; a stop: {stopped:?}; {answers:?}");

    for reason in ["RESERVATION_NOT_FOUND", "OVERLOADED"] {
        assert!(answers.contains_key(reason), "some are answered, some are refused: {answers:?}");
    }
    let shed = answers["OVERLOADED"];
    assert_eq!(counted(&service, &["yoink_shed_total{", "\"OVERLOADED\""]).await, shed);
    let find = ["db_client_operation_duration_seconds_count{", "procedure_name=\"find\""];
    let asked = counted(&service, &find).await;
    assert_eq!(
        asked,
        answers.values().sum::<usize>() - shed,
        "Redis is asked for those that are shed"
    );
    set_status(&service, ProductStatus::OnSale).await.unwrap();
    service.buy("shoe", "after", "r").await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2_001, 7_999));
}
