//! Partitions are spread over the workers that run: each is read by one of them, and wrong ownership costs time only.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    time::Duration,
};

use nix::sys::signal::Signal;
use redis::streams::StreamInfoConsumersReply;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yoink::{app::Role, domain::PartitionCount};

use crate::harness::{Binary, BuyerLoad, Service, TestEnv, eventually, get, product};

/// Entries of a worker that was killed are taken over soon, and its consumers removed.
const SETTINGS: [(&str, &str); 1] = [("takeover_idle_ms", "300")];

async fn env_with(partitions: u16) -> TestEnv {
    TestEnv { partitions, ..TestEnv::new().await }
}

/// A product in each partition.
async fn create_products(env: &TestEnv, api: &Service) -> Vec<String> {
    let partitions = PartitionCount::try_from(u32::from(env.partitions)).unwrap();
    let mut products = BTreeMap::new();
    for n in 0.. {
        let name = format!("item-{n}");
        products.entry(partitions.of(&name.parse().unwrap())).or_insert(name);
        if products.len() == usize::from(env.partitions) {
            break;
        }
    }
    for name in products.values() {
        api.create(product(name, 1_000_000)).await;
    }
    products.into_values().collect()
}

/// The consumers of each partition, as Redis lists them; none where the stream does not exist yet.
async fn consumers(env: &TestEnv) -> Vec<Vec<String>> {
    let mut cli = env.cli().await;
    let mut found = Vec::new();
    for partition in 0..env.partitions {
        let orders = format!("{}:{{{partition}}}:orders", env.prefix);
        let mut command = redis::cmd("XINFO");
        command.arg("CONSUMERS").arg(orders).arg("ledger");
        let reply: Result<StreamInfoConsumersReply, _> = command.query_async(&mut cli).await;
        let consumers = reply.map(|reply| reply.consumers).unwrap_or_default();
        found.push(consumers.into_iter().map(|consumer| consumer.name).collect());
    }
    found
}

/// Waits until each partition has one consumer, and each of these workers as many partitions as the others, or one more.
async fn spread_over(env: &TestEnv, workers: &[&Binary]) {
    let pids: BTreeSet<String> = workers.iter().map(|worker| worker.pid().to_string()).collect();
    eventually("the partitions are spread over these workers", async || {
        let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
        for consumers in consumers(env).await {
            let [consumer] = consumers.as_slice() else { return None };
            // The name of a process begins with its id.
            *numbers.entry(consumer.split_once('-')?.0.to_owned()).or_default() += 1;
        }
        let even = numbers.values().max()? - numbers.values().min()? <= 1;
        (even && numbers.into_keys().collect::<BTreeSet<_>>() == pids).then_some(())
    })
    .await;
}

async fn worker(env: &TestEnv) -> Binary {
    let mut worker = Binary::serve_as("worker", env, &SETTINGS, None);
    worker.channel().await;
    worker
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_spread_again_after_one_worker_is_killed_and_one_ends() {
    let env = env_with(12).await;
    let api = env.serve(Role::Api, &[]).await;
    let products = create_products(&env, &api).await;
    let products: Vec<&str> = products.iter().map(String::as_str).collect();
    let (mut first, mut second, third) =
        (worker(&env).await, worker(&env).await, worker(&env).await);
    let buyers = BuyerLoad::new("buyer", 6, &products).paced(Duration::from_millis(5));
    let load = buyers.start(vec![api.channel()]);
    spread_over(&env, &[&first, &second, &third]).await;
    load.sells(100).await;

    first.signal(Signal::SIGKILL);
    assert_eq!(first.ended().await.signal(), Some(Signal::SIGKILL as i32));
    load.sells(100).await;
    spread_over(&env, &[&second, &third]).await;
    load.sells(100).await;
    second.signal(Signal::SIGTERM);
    assert!(second.ended().await.success(), "{}", second.log());
    load.sells(100).await;
    spread_over(&env, &[&third]).await;

    let (fourth, fifth) = (worker(&env).await, worker(&env).await);
    spread_over(&env, &[&third, &fourth, &fifth]).await;
    load.sells(100).await;
    load.end().await.assert_all_answers_kept(&env, &api).await;
    assert_eq!(env.count("SELECT count(*) FROM dead_actions").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_a_stalled_worker_are_read_by_the_other_until_it_resumes() {
    let env = env_with(6).await;
    let api = env.serve(Role::Api, &[]).await;
    let products = create_products(&env, &api).await;
    let (stalled, other) = (worker(&env).await, worker(&env).await);
    let owned = async |worker: &Binary| {
        metric(worker.http_address().unwrap(), "yoink_owned_partitions").await
    };
    let each_has_half = async || {
        eventually("each reads half of the partitions", async || {
            (owned(&stalled).await == Some(3.0) && owned(&other).await == Some(3.0)).then_some(())
        })
        .await;
    };
    each_has_half().await;
    stalled.signal(Signal::SIGSTOP);
    for product in &products {
        api.buy(product, "ann", "r").await.unwrap();
    }
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products.iter().map(|units| units.confirmed).sum::<i64>(), 6);
    eventually("the other reads all partitions", async || {
        (owned(&other).await == Some(6.0)).then_some(())
    })
    .await;
    stalled.signal(Signal::SIGCONT);
    each_has_half().await;
}

/// A worker that runs and reads nothing: only its row.
struct OnlyRow {
    stop: CancellationToken,
}

impl OnlyRow {
    async fn of(env: &TestEnv, audits: bool) -> Self {
        let sql = env.sql().await;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        TaskTracker::new().spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            let beat = format!(
                "INSERT INTO workers VALUES ('1-row', 1, {audits})
                     ON CONFLICT (worker) DO UPDATE SET beat = workers.beat + 1"
            );
            while stopped.run_until_cancelled(ticks.tick()).await.is_some() {
                sql.batch_execute(&beat).await.unwrap();
            }
        });
        Self { stop }
    }
}

impl Drop for OnlyRow {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The value of a metric without labels.
async fn metric(http: SocketAddr, name: &str) -> Option<f64> {
    let scrape = get(http, "/metrics").await;
    let line = scrape.lines().find(|line| line.starts_with(&format!("{name}{{")))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_whose_owner_reads_nothing_is_read_by_another_worker() {
    let env = env_with(4).await;
    let _row = OnlyRow::of(&env, false).await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service).await;
    eventually("it leaves half of the partitions to the other", async || {
        let numbers = (
            metric(service.http, "yoink_live_workers").await?,
            metric(service.http, "yoink_owned_partitions").await?,
        );
        (numbers == (2.0, 2.0)).then_some(())
    })
    .await;
    for product in &products {
        service.buy(product, "ann", "r").await.unwrap();
    }
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products.iter().map(|units| units.confirmed).sum::<i64>(), 4);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn single_worker_owns_every_partition_although_a_killed_one_left_its_row() {
    let env = env_with(4).await;
    let sql = "INSERT INTO workers VALUES ('1-killed', 7, true)";
    env.sql().await.batch_execute(sql).await.unwrap();
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service).await;
    for product in &products {
        service.buy(product, "ann", "r").await.unwrap();
    }
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products.iter().map(|units| units.confirmed).sum::<i64>(), 4);
    assert_eq!(metric(service.http, "yoink_owned_partitions").await, Some(4.0));
    service.stop().await;
    let sql = "SELECT count(*) FROM workers WHERE worker <> '1-killed'";
    assert_eq!(env.count(sql).await, 0, "a worker that ends removes its row");
}
