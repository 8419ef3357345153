//! One deployment for one run: private servers, products, and `yoink serve` as a process of its own.

use std::{
    cell::Cell,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value as Json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};
use yoink::grpc::pb::{GetProductRequest, inventory_service_client::InventoryServiceClient};

use crate::{
    measure::stores::{Redis, Stores},
    process::{Process, command},
    redis_servers::RedisServers,
};

const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// A service that is not ready after this time has failed.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Storing the orders that wait may take this long.
const STORE_TIMEOUT: Duration = Duration::from_secs(1800);

/// The programs of a run.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// The `yoink` that is measured.
    pub(crate) service: PathBuf,
    /// The `yoink` whose `load` calls it.
    pub(crate) load: PathBuf,
}

impl Programs {
    /// One program for both.
    pub(crate) fn same(program: &Path) -> Self {
        Self { service: program.to_owned(), load: program.to_owned() }
    }

    /// What `yoink --version` of the service prints.
    pub(crate) fn version(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.service).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// Products with the ids PREFIX0, PREFIX1, … and these units each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Products {
    pub(crate) prefix: &'static str,
    pub(crate) count: u32,
    pub(crate) units: u64,
}

/// More units than any run sells.
pub(crate) const PLENTY: u64 = 1_000_000_000;

impl Products {
    /// Products that are never sold out.
    pub(crate) const fn plenty(prefix: &'static str, count: u32) -> Self {
        Self { prefix, count, units: PLENTY }
    }
}

/// The private servers, and a database with products.
pub(crate) struct Deployment {
    pub(crate) programs: Programs,
    pub(crate) stores: Stores,
    pub(crate) redis: RedisServers,
    settings: Vec<String>,
    last_product: String,
    /// The files in its directory are numbered.
    files: Cell<u32>,
}

impl Deployment {
    /// Starts the servers and creates the products. Settings are `name=value`.
    pub(crate) async fn create(
        programs: &Programs,
        products: &[Products],
        settings: &[&str],
    ) -> anyhow::Result<Self> {
        Self::create_on(Redis::One, programs, products, settings).await
    }

    /// The same, with this Redis.
    pub(crate) async fn create_on(
        redis: Redis,
        programs: &Programs,
        products: &[Products],
        settings: &[&str],
    ) -> anyhow::Result<Self> {
        let stores = Stores::start_with("bench", redis).await?;
        let servers = RedisServers::connect(&stores.redis_urls()).await?;
        let mut all = vec![
            format!("redis_url={}", stores.redis_url()),
            format!("postgres_url={}", stores.postgres_url()),
            "grpc_listen=127.0.0.1:0".to_owned(),
            "http_listen=127.0.0.1:0".to_owned(),
        ];
        all.extend(settings.iter().map(|&setting| setting.to_owned()));
        let last = products.last().context("a run needs products")?;
        let deployment = Self {
            programs: programs.clone(),
            stores,
            redis: servers,
            settings: all,
            last_product: format!("{}{}", last.prefix, last.count - 1),
            files: Cell::new(0),
        };
        deployment.run(&["migrate"]).await?;
        let mut csv = "product_id,name,price,currency,units\n".to_owned();
        for Products { prefix, count, units } in products {
            for number in 0..*count {
                writeln!(csv, "{prefix}{number},Product,1.00,EUR,{units}")?;
            }
        }
        let file = deployment.file("csv");
        fs::write(&file, csv)?;
        deployment.run(&["import", file.to_str().context("the path is not UTF-8")?]).await?;
        Ok(deployment)
    }

    /// A new file in the directory of the servers.
    pub(crate) fn file(&self, ending: &str) -> PathBuf {
        self.files.set(self.files.get() + 1);
        self.stores.dir().join(format!("{}.{ending}", self.files.get()))
    }

    fn command(&self, settings: &[String], args: &[&str]) -> Command {
        let mut command = command(&self.programs.service);
        for setting in self.settings.iter().chain(settings) {
            command.args(["--set", setting]);
        }
        command.args(args).current_dir(self.stores.dir());
        command
    }

    /// Runs a command of the service's program to its end; returns what it printed.
    pub(crate) async fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let log = self.file("log");
        let name = format!("yoink {}", args.join(" "));
        let status = Process::start(&name, self.command(&[], args), &log)?.ended().await?;
        let printed = fs::read_to_string(&log)?;
        ensure!(status.success(), "{name} failed ({status}): {printed}");
        Ok(printed)
    }

    /// Starts the service in a role, with more settings.
    fn start(&self, role: &str, settings: &[String]) -> anyhow::Result<Service> {
        let log = self.file("log");
        let command = self.command(settings, &["serve", "--role", role]);
        let process = Process::start("yoink serve", command, &log)?;
        Ok(Service { process, log, address: String::new(), caller_flags: Vec::new() })
    }

    /// Starts the service in a role, and waits until its last product can be bought.
    pub(crate) async fn serve(&self, role: &str) -> anyhow::Result<Service> {
        self.wait_until_ready(self.start(role, &[])?, Some(&self.last_product)).await
    }

    /// Starts another service, with more settings, beside one that is ready, and waits until it says that it is ready. Its
    /// callers may have to authenticate or to use TLS.
    pub(crate) async fn serve_beside(
        &self,
        role: &str,
        settings: &[String],
    ) -> anyhow::Result<Service> {
        self.wait_until_ready(self.start(role, settings)?, None).await
    }

    async fn wait_until_ready(
        &self,
        mut service: Service,
        product: Option<&str>,
    ) -> anyhow::Result<Service> {
        let started = Instant::now();
        while !service.is_ready(product).await? {
            let log = || fs::read_to_string(&service.log).unwrap_or_default();
            service.process.check().with_context(log)?;
            ensure!(started.elapsed() < READY_TIMEOUT, "yoink serve is not ready: {}", log());
            sleep(POLL_INTERVAL).await;
        }
        Ok(service)
    }

    /// Waits until each of these services reads its share of the partitions, as its log states.
    pub(crate) async fn wait_until_spread(&self, workers: &mut [Service]) -> anyhow::Result<()> {
        let (started, number) = (Instant::now(), workers.len().to_string());
        for service in workers {
            loop {
                let log = fs::read_to_string(&service.log)?;
                let found = log.rsplit_once("workers that run: ").map(|(_, rest)| rest);
                if found.and_then(|rest| rest.split_whitespace().next()) == Some(&number) {
                    break;
                }
                service.process.check().with_context(|| log.clone())?;
                ensure!(started.elapsed() < READY_TIMEOUT, "partitions are not spread: {log}");
                sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Fails unless the audit holds and no order was lost or moved to the dead stream.
    pub(crate) async fn audit(&self) -> anyhow::Result<()> {
        let printed = self.run(&["audit", "--json"]).await.context("the audit does not hold")?;
        let report: Json = serde_json::from_str(&printed).context("the audit prints no JSON")?;
        let empty = |list: &str| report[list].as_array().is_some_and(Vec::is_empty);
        let products = report["products"].as_array().context("the audit lists no products")?;
        let no_dead = products.iter().all(|product| product["in_dead"] == 0);
        let clean = report["verdict"] == "holds" && empty("lost") && empty("unknown") && no_dead;
        ensure!(clean, "the audit is not clean: {printed}");
        Ok(())
    }

    /// Orders in Postgres.
    pub(crate) async fn sold(&self) -> anyhow::Result<u64> {
        let sql = "SELECT coalesce(sum(sold), 0)::bigint FROM products";
        let rows = self.stores.query(sql).await?;
        Ok(u64::try_from(rows[0].get::<_, i64>(0))?)
    }

    /// Waits until Postgres holds this many orders.
    pub(crate) async fn wait_until_sold(&self, orders: u64) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.sold().await? < orders {
            ensure!(started.elapsed() < STORE_TIMEOUT, "orders still wait to be stored");
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Waits until no order waits in Redis.
    pub(crate) async fn wait_until_stored(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        while self.orders_in_streams().await? > 0 {
            ensure!(started.elapsed() < STORE_TIMEOUT, "orders still wait to be stored");
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Orders that wait in Redis.
    pub(crate) async fn orders_in_streams(&self) -> anyhow::Result<u64> {
        self.redis.sum_of_streams("XLEN", &[]).await
    }

    /// Stores what waits, audits, stops the service, and stops the servers.
    pub(crate) async fn finish(self, service: Service) -> anyhow::Result<()> {
        if self.orders_in_streams().await? > 0 {
            // An audit cannot read that many waiting orders at one moment.
            let worker = self.start("worker", &[])?;
            self.wait_until_stored().await?;
            worker.stop().await?;
        }
        self.audit().await?;
        service.stop().await?;
        self.stores.stop().await
    }
}

/// A running `yoink serve`.
pub(crate) struct Service {
    process: Process,
    log: PathBuf,
    /// Where it answers gRPC.
    pub(crate) address: String,
    /// Flags of `yoink load` that each of its callers needs.
    pub(crate) caller_flags: Vec<String>,
}

impl Service {
    /// Whether it has logged its addresses, and a product has its stock; without a product, whether `/readyz` says so.
    async fn is_ready(&mut self, product: Option<&str>) -> anyhow::Result<bool> {
        let text = fs::read_to_string(&self.log)?;
        let address = |listener: &str| -> anyhow::Result<Option<SocketAddr>> {
            let line = text.lines().find(|line| line.contains("this process listens"));
            let Some((_, rest)) = line.and_then(|line| line.split_once(listener)) else {
                return Ok(None);
            };
            let address = rest.split_whitespace().next().unwrap_or_default();
            Ok(Some(address.parse().context("the log has no address")?))
        };
        let (Some(grpc), Some(http)) = (address(" grpc=")?, address(" http=")?) else {
            return Ok(false);
        };
        self.address = grpc.to_string();
        let Some(product) = product else { return says_ready(http).await };
        let client = InventoryServiceClient::connect(format!("http://{grpc}")).await;
        let Ok(mut client) = client else { return Ok(false) };
        let request = GetProductRequest { product_id: product.to_owned() };
        // Before it is ready it answers with an error.
        let answer = client.get_product(request).await.ok();
        let product = answer.and_then(|answer| answer.into_inner().product);
        Ok(product.is_some_and(|product| product.stock.is_some()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How many orders it has stored.
    pub(crate) async fn stored(&self) -> anyhow::Result<f64> {
        let log = fs::read_to_string(&self.log)?;
        let address = log.split_once(" http=").and_then(|(_, rest)| rest.split(' ').next());
        let metrics = get(address.context("the log has no address")?.parse()?, "/metrics").await?;
        let name = "yoink_orders_stored_batch_size_sum";
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value);
        Ok(value.with_context(|| format!("there is no metric {name}"))?.parse()?)
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.process.stop().await
    }
}

/// The answer of a service to an HTTP request.
async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Whether `/readyz` answers with status 200.
async fn says_ready(address: SocketAddr) -> anyhow::Result<bool> {
    Ok(get(address, "/readyz").await?.starts_with("HTTP/1.1 200"))
}
