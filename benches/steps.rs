//! The steps of a reservation, each alone: `make bench-steps`.
//!
//! - `script`: `lua/reserve.lua` on a private Redis, by the requests of a batch
//! - `batcher`: calls at the same time, through the batcher of their partition, on the same Redis
//! - `codec`: a request of gRPC is decoded, an answer is encoded, and an entry of the stream is decoded

use std::{
    fs::Permissions,
    hint::black_box,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use criterion::{BenchmarkId, Criterion, Throughput};
use futures_util::future::join_all;
use prost::Message as _;
use redis::{Commands as _, Connection, Script};
use tokio::runtime::Runtime;
use yoink::{
    app::{App, Listeners, Role, Stores},
    config::Config,
    domain::{NewProduct, Outcome, Partition, Price, ProductStatus, ReserveRequest, Sale},
    grpc::pb::{Reservation, ReservationState, ReserveUnitRequest, ReserveUnitResponse},
    servers::{AppendFsync, PostgresServer, RedisServer},
    stream::Entry,
};

const PRODUCT: &str = "sneaker-42";
const USER: &str = "user-123456";
const DATABASE: &str = "steps";
const BATCHES: [u64; 4] = [1, 8, 32, 128];
const CALLERS: [u64; 3] = [1, 64, 400];
const KEYS: [&str; 7] = ["meta", "stock", "catalogue", "idempotency", "bought", "orders", "lost"];

/// A service that sells one product, and is not called over the network.
struct Bench {
    runtime: Runtime,
    stores: Stores,
    redis: Connection,
    partition: Partition,
}

impl Bench {
    fn start(redis: &RedisServer, postgres: &PostgresServer) -> anyhow::Result<Self> {
        postgres.create_database(DATABASE)?;
        let settings = [
            ("redis_url", redis.admin_url()),
            ("postgres_url", postgres.superuser_url(DATABASE)),
            ("grpc_listen", "127.0.0.1:0".to_owned()),
            ("http_listen", "127.0.0.1:0".to_owned()),
            ("backlog_max_entries", "1000000000".to_owned()),
        ];
        let config = Config::load(Path::new("no-file.toml"), false, &settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let stores = runtime.block_on(async {
            yoink::ledger::migrate(&postgres.superuser_url(DATABASE).parse()?).await?;
            let app = App::build(&config, Role::Api, Listeners::bind(&config)?).await?;
            let sale = Sale {
                name: "Sneaker 42".to_owned(),
                price: Price::parse("199.99", "EUR")?,
                opens_at_ms: None,
                closes_at_ms: None,
                per_user_limit: None,
                status: ProductStatus::OnSale,
            };
            let product = NewProduct { id: PRODUCT.parse()?, sale, units: 1_000_000_000 };
            app.create_products(&[product]).await?;
            anyhow::Ok(app.stores().clone())
        })?;
        let partition = stores.deployment.partitions.of(&PRODUCT.parse()?);
        let redis = redis::Client::open(redis.admin_url())?.get_connection()?;
        Ok(Self { runtime, stores, redis, partition })
    }

    fn key(&self, name: &str) -> String {
        format!("yoink:{{{}}}:{name}", self.partition)
    }

    /// Removes the orders and the request ids that a measurement left, so that the next one does not depend on it.
    fn empty(&mut self) -> anyhow::Result<()> {
        let () = redis::cmd("XTRIM")
            .arg(self.key("orders"))
            .arg(&["MAXLEN", "0"])
            .query(&mut self.redis)?;
        let remembered = format!("yoink:{{{}}}:idempotency:*", self.partition);
        let keys: Vec<String> = self.redis.keys(remembered)?;
        for key in keys {
            let () = self.redis.unlink(key)?;
        }
        Ok(())
    }

    /// Times calls of the script, each with a batch of new requests.
    fn time_script(&mut self, batch: u64, calls: u64) -> anyhow::Result<Duration> {
        let script = Script::new(concat!(
            include_str!("../lua/fence.lua"),
            "\n",
            include_str!("../lua/reserve.lua")
        ));
        let (epoch, deployment): (String, String) =
            self.redis.hmget(self.key("meta"), &["epoch", "deployment"])?;
        let caller = format!("{epoch} {deployment}");
        let keys = KEYS.map(|key| self.key(key));
        let mut took = Duration::ZERO;
        for call in 0..calls {
            let mut invocation = script.prepare_invoke();
            for key in &keys {
                invocation.key(key);
            }
            invocation.arg(&[caller.as_str(), "259200000", "1000000000"]);
            for number in 0..batch {
                let request = format!("request-{call}-{number}");
                invocation.arg(&[PRODUCT, USER, &request, "ab12cd34", "", "1"]);
            }
            let started = Instant::now();
            let (status, answers): (String, String) = invocation.invoke(&mut self.redis)?;
            took += started.elapsed();
            ensure!(status == "ok", "{status} {answers}");
            ensure!(answers.lines().all(|line| line.starts_with("accepted ")), "{answers}");
            ensure!(u64::try_from(answers.lines().count())? == batch, "{answers}");
        }
        self.empty()?;
        Ok(took)
    }

    /// Times rounds of calls at the same time.
    fn time_batcher(&mut self, callers: u64, rounds: u64) -> anyhow::Result<Duration> {
        let request = |request: String| -> anyhow::Result<ReserveRequest> {
            Ok(ReserveRequest {
                product: PRODUCT.parse()?,
                user: USER.parse()?,
                request: Some(request.parse()?),
                traceparent: None,
            })
        };
        let mut took = Duration::ZERO;
        for round in 0..rounds {
            let requests = (0..callers).map(|caller| request(format!("request-{round}-{caller}")));
            let requests = requests.collect::<Result<Vec<_>, _>>()?;
            let started = Instant::now();
            let calls = requests.into_iter().map(|request| self.stores.stock.reserve(request));
            let decisions = self.runtime.block_on(join_all(calls));
            took += started.elapsed();
            for decision in decisions {
                let outcome = decision?;
                ensure!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
            }
        }
        self.empty()?;
        Ok(took)
    }
}

fn codec(criterion: &mut Criterion) {
    let request = ReserveUnitRequest {
        product_id: PRODUCT.to_owned(),
        user_id: USER.to_owned(),
        request_id: "request-123456".to_owned(),
        ..Default::default()
    };
    let bytes = request.encode_to_vec();
    let mut group = criterion.benchmark_group("codec");
    group.bench_function("request, decoded", |bench| {
        bench.iter(|| ReserveUnitRequest::decode(black_box(bytes.as_slice())));
    });
    let response = || ReserveUnitResponse {
        reservation: Some(Reservation {
            reservation_id: "00200001-0000-8000-807e-14e19590ce5a".to_owned(),
            product_id: PRODUCT.to_owned(),
            user_id: USER.to_owned(),
            request_id: "request-123456".to_owned(),
            state: ReservationState::Accepted.into(),
            ..Default::default()
        }),
        remaining: 499,
        ..Default::default()
    };
    group.bench_function("answer, encoded", |bench| {
        bench.iter_with_setup(response, |response| response.encode_to_vec());
    });
    group.finish();
}

fn entries(criterion: &mut Criterion, partition: Partition) {
    let order = format!("ab12cd34 {PRODUCT} {USER}  41561 request-123456");
    let fields = [("v", "3"), ("t", "1795457000123"), ("o", order.as_str())];
    let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let entry = Entry { id: "1-17".to_owned(), fields };
    criterion.bench_function("codec/entry, decoded", |bench| {
        bench.iter(|| black_box(&entry).order(partition, &entry.id));
    });
}

/// The name of a benchmark, and the time of so many calls of so many requests.
type Step = (&'static str, fn(&mut Bench, u64, u64) -> anyhow::Result<Duration>);

fn by_requests(criterion: &mut Criterion, bench: &mut Bench, sizes: &[u64], (name, time): Step) {
    let mut group = criterion.benchmark_group(name);
    for &size in sizes {
        group.throughput(Throughput::Elements(size));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|calls| match time(bench, size, calls) {
                Ok(took) => took,
                // Criterion has no way to report an error.
                Err(error) => panic!("{name} {size}: {error:?}"),
            });
        });
    }
    group.finish();
}

fn main() -> anyhow::Result<()> {
    // Dropped last, so that it is removed after the servers have ended, also after an error.
    let mut dir = tempfile::Builder::new();
    // A Postgres that runs as another user must pass through it.
    let dir = dir.prefix("yoink-steps-").permissions(Permissions::from_mode(0o711)).tempdir()?;
    let redis = RedisServer::start(&dir.path().join("redis"), AppendFsync::Everysec)?;
    let postgres = PostgresServer::start(&dir.path().join("postgres"), &[])?;
    let mut bench = Bench::start(&redis, &postgres).context("the service does not start")?;
    let mut criterion = Criterion::default().configure_from_args();
    codec(&mut criterion);
    entries(&mut criterion, bench.partition);
    by_requests(&mut criterion, &mut bench, &BATCHES, ("script", Bench::time_script));
    by_requests(&mut criterion, &mut bench, &CALLERS, ("batcher", Bench::time_batcher));
    criterion.final_summary();
    drop((bench, redis, postgres));
    dir.close()?;
    Ok(())
}
