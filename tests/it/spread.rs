//! Partitions are spread over the workers that run: each is read by one of them, and wrong ownership costs time only.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    time::Duration,
};

use nix::sys::signal::Signal;
use redis::streams::StreamInfoConsumersReply;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use yoink::{app::Role, domain::PartitionCount, worker::owned_partitions};

use crate::harness::{
    Binary, BuyerLoad, Proxy, Service, TestEnv, eventually, get, product, shared,
};

/// Entries of a worker that was killed are taken over soon, and its consumers removed.
const SETTINGS: [(&str, &str); 1] = [("takeover_idle_ms", "300")];

/// A connection that is not made after this time is not answered.
const CONNECTED_WITHIN: Duration = Duration::from_millis(500);

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
    async fn of(env: &TestEnv, name: &str) -> Self {
        let sql = env.sql().await;
        let beat = format!(
            "INSERT INTO workers VALUES ('{name}', 1, false)
                 ON CONFLICT (worker) DO UPDATE SET beat = workers.beat + 1"
        );
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        TaskTracker::new().spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
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

/// Waits until a service knows another worker and reads half of four partitions.
async fn leaves_half(service: &Service) {
    eventually("it leaves half of the partitions to the other", async || {
        let numbers = (
            metric(service.http, "yoink_live_workers").await?,
            metric(service.http, "yoink_owned_partitions").await?,
        );
        (numbers == (2.0, 2.0)).then_some(())
    })
    .await;
}

/// Buys a unit of each product for two users, one after the other. The consumer of a partition that a worker has just left may
/// still wait for an entry: it gets the first one, and reads nothing more.
async fn buy_twice(service: &Service, products: &[String]) {
    for user in ["ann", "bob"] {
        for product in products {
            service.buy(product, user, "r").await.unwrap();
        }
    }
}

/// The name and the beat of the only worker that runs.
async fn only_worker(env: &TestEnv) -> (String, i64) {
    let sql = env.sql().await;
    eventually("a worker has recorded that it runs", async || {
        let row = sql.query_opt("SELECT worker, beat FROM workers", &[]).await.unwrap()?;
        Some((row.get(0), row.get(1)))
    })
    .await
}

/// Waits until a worker has recorded that it runs so many times more.
async fn beats(env: &TestEnv, worker: &str, more: i64) {
    let beat = format!("SELECT beat FROM workers WHERE worker = '{worker}'");
    let before = env.count(&beat).await;
    let sql = env.sql().await;
    eventually("the worker records that it runs", async || {
        let now: i64 = sql.query_one(&beat, &[]).await.unwrap().get(0);
        (now >= before + more).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_records_that_it_runs_while_operators_wait_for_connections() {
    let env = env_with(4).await;
    // Whoever waits for the lock below has its connection until the operation is given up after 20 seconds.
    let without_limits = "options=-c%20lock_timeout%3D0%20-c%20statement_timeout%3D0";
    let url = format!("{}?{without_limits}", env.postgres_url());
    let settings = [("pool_operators", "1"), ("postgres_url", &url)];
    let service = env.serve(Role::All, &settings).await;
    let (worker, _) = only_worker(&env).await;
    let sql = env.sql().await;
    sql.batch_execute("BEGIN; LOCK TABLE products IN ACCESS EXCLUSIVE MODE").await.unwrap();
    // The catalogue is read twice a second, on a connection of operators.
    let waiting = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the connection is in use", async || (env.count(waiting).await >= 1).then_some(()))
        .await;
    beats(&env, &worker, 10).await;
    sql.batch_execute("ROLLBACK").await.unwrap();
    service.stop().await;
}

/// An address that answers no connection, because its queue of connections is full, and what keeps it full.
async fn silent_host() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(connected) = timeout(CONNECTED_WITHIN, TcpStream::connect(address)).await {
        queued.push(connected.unwrap());
    }
    (address, (listener, queued))
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_records_that_it_runs_while_the_first_of_two_hosts_of_postgres_is_silent() {
    let env = env_with(4).await;
    let (silent, _queue) = silent_host().await;
    let hosts = format!("{silent},127.0.0.1:{}", shared().postgres.port());
    let url = format!("postgres://yoink_serve@{hosts}/{}", env.database);
    let service = env.serve(Role::All, &[("postgres_url", &url)]).await;
    let (worker, _) = only_worker(&env).await;
    beats(&env, &worker, 3).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_records_that_it_runs_while_redis_does_not_answer() {
    let env = env_with(4).await;
    let proxy = Proxy::redis(shared().redis.port()).await;
    let url = proxy.redis_url();
    let service = env.serve(Role::All, &[("redis_url", &url), ("audit_interval_ms", "0")]).await;
    let (worker, _) = only_worker(&env).await;
    let row = OnlyRow::of(&env, "1-row").await;
    leaves_half(&service).await;
    proxy.freeze();
    // It owns all partitions from now on, and cannot read them.
    drop(row);
    beats(&env, &worker, 15).await;
    proxy.pass();
    let products = create_products(&env, &service).await;
    for product in &products {
        eventually("it sells", async || service.buy(product, "ann", "r").await.ok()).await;
    }
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products.iter().map(|units| units.confirmed).sum::<i64>(), 4);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_that_cannot_record_that_it_runs_reads_partitions_whose_owner_reads_nothing() {
    let env = env_with(4).await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service).await;
    let _row = OnlyRow::of(&env, "1-row").await;
    leaves_half(&service).await;
    let refuse = "ALTER TABLE workers ADD CONSTRAINT refused CHECK (worker = '1-row') NOT VALID";
    env.sql().await.batch_execute(refuse).await.unwrap();
    buy_twice(&service, &products).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products.iter().map(|units| units.confirmed).sum::<i64>(), 8);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_that_cannot_be_read_does_not_keep_the_others_from_being_checked() {
    let env = env_with(4).await;
    let service = env.serve(Role::All, &[("audit_interval_ms", "0")]).await;
    let products = create_products(&env, &service).await;
    let (own, _) = only_worker(&env).await;
    let partitions = PartitionCount::try_from(4).unwrap();
    let first = partitions.get_partition(0).unwrap();
    let owns_first =
        |name: &String| owned_partitions(name, &[own.as_str()], partitions).contains(&first);
    let name = (0..).map(|n| format!("1-row-{n}")).find(owns_first).unwrap();
    let _row = OnlyRow::of(&env, &name).await;
    leaves_half(&service).await;
    let (mut cli, orders) = (env.cli().await, format!("{}:{{0}}:orders", env.prefix));
    let mut replace = redis::pipe();
    replace.del(&orders).ignore().set(&orders, "no stream").ignore();
    let () = replace.query_async(&mut cli).await.unwrap();
    let of_first = |name: &String| partitions.of(&name.parse().unwrap()) == first;
    let others: Vec<String> = products.into_iter().filter(|name| !of_first(name)).collect();
    buy_twice(&service, &others).await;
    eventually("the orders of the other partitions are stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == 6).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_that_still_answers_calls_while_it_ends_reads_nothing_beside_another() {
    let env = env_with(4).await;
    let delay = ("shutdown_delay_ms", "600000");
    let mut ending = Binary::serve_as("all", &env, &[SETTINGS[0], delay], None);
    ending.channel().await;
    let other = worker(&env).await;
    let api = env.serve(Role::Api, &[]).await;
    let products = create_products(&env, &api).await;
    let products: Vec<&str> = products.iter().map(String::as_str).collect();
    // Redis lists a consumer from the first entry that it gets.
    let buyers = BuyerLoad::new("buyer", 4, &products).paced(Duration::from_millis(5));
    let load = buyers.start(vec![api.channel()]);
    spread_over(&env, &[&ending, &other]).await;
    ending.signal(Signal::SIGTERM);
    spread_over(&env, &[&other]).await;
    assert!(!ending.has_ended(), "{}", ending.log());
    load.sells(100).await;
    load.end().await.assert_all_answers_kept(&env, &api).await;
    // The second one ends it at once.
    ending.signal(Signal::SIGTERM);
    ending.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_whose_owner_reads_nothing_is_read_by_another_worker() {
    let env = env_with(4).await;
    let _row = OnlyRow::of(&env, "1-row").await;
    let service = env.serve(Role::All, &[]).await;
    let products = create_products(&env, &service).await;
    leaves_half(&service).await;
    buy_twice(&service, &products).await;
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products.iter().map(|units| units.confirmed).sum::<i64>(), 8);
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
