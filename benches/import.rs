//! How the time of an import grows with its rows, and how long an emergency stop of another product takes while it
//! runs.
//!
//! `make bench-import` prints a table; `ROWS=1000,1000000 make bench-import` chooses its sizes. Each row is `yoink
//! import` from its start to its end, by a private Postgres, into an empty database and then once more; then both over
//! a link that delays what it carries by 3 ms for a request and its answer. A stop is measured with a service that
//! sells, with a private Redis: from the call of UpdateProduct to the first reservation that is refused, the longest
//! one from the start of an import until Redis knows all of its products.
#![expect(clippy::print_stdout, reason = "it prints a table")]

// The link is the proxy of the tests, which use more of it.
#[expect(dead_code, unreachable_pub, clippy::unwrap_used, reason = "a file of the tests")]
#[path = "../tests/it/harness/proxy.rs"]
mod proxy;
#[expect(unreachable_pub, clippy::unwrap_used, reason = "a file of the tests")]
#[path = "../tests/it/harness/wire.rs"]
mod wire;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;
use yoink::{
    app::{App, Listeners, Role},
    config::Config,
    grpc::pb::{
        GetProductRequest, NewProduct, ProductStatus, ReserveUnitRequest, UpdateProductRequest,
        admin_service_client::AdminServiceClient, inventory_service_client::InventoryServiceClient,
    },
    servers::{AppendFsync, PostgresServer, RedisServer},
};

use self::proxy::Proxy;

/// No wait of the proxy is longer.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How long the product is on sale before it is stopped again.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

const SIZES: &str = "1000,10000,100000";

/// The servers, and where the files are.
struct Bench {
    redis: RedisServer,
    postgres: PostgresServer,
    dir: PathBuf,
}

impl Bench {
    /// Writes a file of this many products; returns its path and its size in bytes.
    fn file(&self, rows: usize) -> anyhow::Result<(PathBuf, usize)> {
        let mut text =
            "product_id,name,price,currency,units,per_user_limit,opens_at,closes_at\n".to_owned();
        for n in 0..rows {
            writeln!(text, "p-{n:07},Product number {n},19.99,EUR,100,2,2026-01-01T00:00:00Z,")?;
        }
        let path = self.dir.join(format!("{rows}.csv"));
        std::fs::write(&path, &text)?;
        Ok((path, text.len()))
    }

    async fn database(&self, name: &str) -> anyhow::Result<()> {
        self.postgres.create_database(name)?;
        yoink::ledger::migrate(&self.postgres.superuser_url(name).parse()?).await?;
        Ok(())
    }

    fn config(&self, name: &str) -> anyhow::Result<Config> {
        let flags = [
            ("redis_url", self.redis.admin_url()),
            ("postgres_url", self.postgres.superuser_url(name)),
            ("key_prefix", name.to_owned()),
            ("log_filter", "error".to_owned()),
        ];
        Ok(Config::load(Path::new("no-file.toml"), false, &flags)?)
    }
}

/// Runs `yoink import`; returns how long it took.
async fn import(url: &str, file: &Path) -> anyhow::Result<Duration> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yoink"));
    command.arg("--set").arg(format!("postgres_url={url}")).arg("import").arg(file);
    let (took, done) = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let done = command.output();
        (started.elapsed(), done)
    })
    .await?;
    let done = done?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(took)
}

/// A service that sells a product during the import.
struct Service {
    admin: AdminServiceClient<Channel>,
    buyers: InventoryServiceClient<Channel>,
}

impl Service {
    async fn connect(address: std::net::SocketAddr) -> anyhow::Result<Self> {
        let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
        let mut admin = AdminServiceClient::new(channel.clone());
        let price = yoink::grpc::pb::google::r#type::Money {
            currency_code: "EUR".to_owned(),
            units: 1,
            nanos: 0,
        };
        let shoe = NewProduct {
            product_id: "shoe".to_owned(),
            name: "Shoe".to_owned(),
            price: Some(price),
            units: 1_000_000_000,
            ..Default::default()
        };
        let request = yoink::grpc::pb::CreateProductsRequest { products: vec![shoe] };
        admin.create_products(request).await?;
        Ok(Self { admin, buyers: InventoryServiceClient::new(channel) })
    }

    async fn set_status(&mut self, status: ProductStatus) -> anyhow::Result<()> {
        let request = UpdateProductRequest {
            product_id: "shoe".to_owned(),
            status: status.into(),
            ..Default::default()
        };
        self.admin.update_product(request).await?;
        Ok(())
    }

    /// Stops the product; returns how long it took until a reservation was refused.
    async fn stop(&mut self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        self.set_status(ProductStatus::Stopped).await?;
        loop {
            let request = ReserveUnitRequest {
                product_id: "shoe".to_owned(),
                user_id: "ann".to_owned(),
                ..Default::default()
            };
            match self.buyers.reserve_unit(request).await {
                Ok(_) => {}
                Err(status) if status.message().contains("stopped") => break,
                Err(status) => bail!(status),
            }
        }
        let took = started.elapsed();
        self.set_status(ProductStatus::OnSale).await?;
        Ok(took)
    }

    /// Whether the last product of the file is offered with its stock.
    async fn offers(&mut self, product_id: &str) -> bool {
        let request = GetProductRequest { product_id: product_id.to_owned() };
        let answer = self.buyers.get_product(request).await;
        let product = answer.ok().and_then(|answer| answer.into_inner().product);
        product.is_some_and(|product| product.stock.is_some())
    }
}

/// Stops a product again and again during an import; returns how long the import took until all is for sale, and the
/// longest stop.
async fn stops(bench: &Bench, rows: usize, file: &Path) -> anyhow::Result<[Duration; 2]> {
    let name = format!("stops_{rows}");
    bench.database(&name).await?;
    let bind = || TcpListener::bind("127.0.0.1:0");
    let listeners = Listeners { grpc: bind().await?, http: bind().await? };
    let app = App::build(&bench.config(&name)?, Role::All, listeners).await?;
    let address = app.listeners.grpc.local_addr()?;
    let shutdown = CancellationToken::new();
    let running = TaskTracker::new().spawn(app.run(shutdown.clone()));
    let mut service = Service::connect(address).await?;
    let (last, url) = (format!("p-{:07}", rows - 1), bench.postgres.superuser_url(&name));
    let started = Instant::now();
    let import = import(&url, file);
    tokio::pin!(import);
    let (mut longest, mut imported) = (Duration::ZERO, false);
    while !imported || !service.offers(&last).await {
        tokio::select! {
            biased;
            done = &mut import, if !imported => { done?; imported = true; }
            took = service.stop() => {
                longest = longest.max(took?);
                tokio::time::sleep(STOP_INTERVAL).await;
            }
        }
    }
    let all = started.elapsed();
    shutdown.cancel();
    running.await??;
    Ok([all, longest])
}

async fn measure(bench: &Bench, rows: usize) -> anyhow::Result<()> {
    let (file, size) = bench.file(rows)?;
    let (near, far) = (format!("near_{rows}"), format!("far_{rows}"));
    bench.database(&near).await?;
    bench.database(&far).await?;
    let proxy = Proxy::postgres(bench.postgres.port()).await;
    proxy.delay(Duration::from_micros(1500), Duration::from_micros(1500));
    let mut times = Vec::new();
    for url in [bench.postgres.superuser_url(&near), proxy.postgres_url(&far)] {
        times.push(import(&url, &file).await?);
        times.push(import(&url, &file).await?);
    }
    times.extend(stops(bench, rows, &file).await?);
    print!("{rows:>8} {:>7.1} MB", size as f64 / 1e6);
    for time in times {
        print!(" {:>8.2} s", time.as_secs_f64());
    }
    println!();
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let sizes = std::env::var("ROWS").unwrap_or_else(|_| SIZES.to_owned());
    let sizes: Vec<usize> = sizes.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let dir = std::env::temp_dir().join(format!("yoink-bench-{}", std::process::id()));
    let here = dir.clone();
    let servers = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let redis = RedisServer::start(&here.join("redis"), AppendFsync::Everysec)?;
        Ok((redis, PostgresServer::start(&here.join("postgres"), &[])?))
    });
    let (redis, postgres) = servers.await?.context("the servers do not start")?;
    let bench = Bench { redis, postgres, dir: dir.clone() };
    println!(
        "{:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "rows", "file", "first", "repeated", "3 ms", "repeated", "for sale", "stop"
    );
    for rows in sizes {
        ensure!(rows > 0, "ROWS must be above 0");
        measure(&bench, rows).await?;
    }
    tokio::task::spawn_blocking(move || drop(bench)).await?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
