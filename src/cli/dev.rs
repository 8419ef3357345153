//! `yoink dev`: the service with a private Redis and a private Postgres; `demo` uses the same servers and catalogue.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use tokio_util::sync::CancellationToken;

use super::output;
use crate::{
    app::{App, Listeners, Role},
    catalogue::RefreshError,
    config::Config,
    domain::{NewProduct, Price, ProductId, ProductStatus, Sale},
    ledger::Created,
    servers::{AppendFsync, PostgresServer, RedisServer},
    telemetry,
};

/// The scarce product of the demo catalogue.
pub(super) const SCARCE_PRODUCT: &str = "sneaker-42";
/// The plentiful product of the demo catalogue.
pub(super) const PLENTIFUL_PRODUCT: &str = "sticker-7";

/// Private servers whose data is in one directory; they end when this is dropped.
pub(super) struct Servers {
    redis: RedisServer,
    postgres: PostgresServer,
}

impl Servers {
    /// Starts both with the data in `dir`, and brings the schema up to date.
    pub(super) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.to_owned();
        let servers = tokio::task::spawn_blocking(move || -> anyhow::Result<Self> {
            let redis = RedisServer::start(&dir.join("redis"), AppendFsync::Everysec)?;
            let postgres = PostgresServer::start(&dir.join("postgres"), &[])?;
            postgres.create_database("yoink")?;
            Ok(Self { redis, postgres })
        });
        let servers = servers.await??;
        crate::ledger::migrate(&servers.postgres.url("yoink").parse()?).await?;
        Ok(servers)
    }

    /// The settings with their addresses.
    pub(super) fn settings(&self) -> [(&'static str, String); 2] {
        [("redis_url", self.redis.url()), ("postgres_url", self.postgres.url("yoink"))]
    }
}

/// The catalogue of `dev`, `demo` and the compose file, where `yoink import` reads it.
const CATALOGUE: &str = include_str!("../../deploy/catalogue.csv");

/// The demo catalogue, with `scarce_units` of the scarce product.
fn demo_products(scarce_units: i64) -> anyhow::Result<Vec<NewProduct>> {
    let mut reader = csv::Reader::from_reader(CATALOGUE.as_bytes());
    let rows = reader.deserialize::<(String, String, String, String, i64)>();
    let products = rows.map(|row| {
        let (id, name, price, currency, units) = row?;
        let sale = Sale {
            name,
            price: Price::parse(&price, &currency)?,
            opens_at_ms: None,
            closes_at_ms: None,
            per_user_limit: None,
            status: ProductStatus::OnSale,
        };
        let units = if id == SCARCE_PRODUCT { scarce_units } else { units };
        Ok(NewProduct { id: id.parse::<ProductId>()?, sale, units })
    });
    products.collect()
}

/// Creates the demo catalogue in the ledger of the service.
pub(super) async fn create_catalogue(app: &App, scarce_units: i64) -> anyhow::Result<()> {
    match app.create_products(&demo_products(scarce_units)?).await {
        Ok(Created::Done { .. }) => Ok(()),
        // The data of an earlier run: its products stay, and its partitions are rebuilt before they sell.
        Ok(Created::OtherUnits { .. }) | Err(RefreshError::NotAppliedYet(_)) => Ok(()),
        Err(error @ RefreshError::Ledger(_)) => Err(error.into()),
    }
}

pub(super) async fn run(
    settings: impl Fn(&[(&'static str, String)]) -> anyhow::Result<Config>,
    shutdown: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let dir =
        fs::canonicalize(".").map(|here| here.join(".yoink")).unwrap_or(PathBuf::from(".yoink"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock = File::create(dir.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("`yoink dev` already runs in {}", dir.display()),
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock .yoink/lock"),
    }
    let traces = telemetry::init(&settings(&[])?)?;
    let servers = Servers::start(&dir).await?;
    let config = settings(&servers.settings())?;
    let app = App::build(&config, Role::All, Listeners::bind(&config).await?).await?;
    create_catalogue(&app, 500).await?;
    output::line(format!("gRPC     {}", app.grpc_address()?))?;
    output::line(format!("HTTP     http://{}/readyz", app.http_address()?))?;
    output::line(format!("Redis    {}", servers.redis.url()))?;
    output::line(format!("Postgres {}", servers.postgres.url("yoink")))?;
    output::line(format!(
        "Products {SCARCE_PRODUCT} and {PLENTIFUL_PRODUCT}. Ctrl-C stops everything; the data stays in .yoink/."
    ))?;
    app.run(shutdown).await?;
    traces.finish().await;
    tokio::task::spawn_blocking(move || drop(servers)).await?;
    Ok(ExitCode::SUCCESS)
}
