//! `yoink dev`: the service with a private Redis and a private Postgres; `demo` uses the same servers and catalogue.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, anyhow, bail};
use tokio_util::sync::CancellationToken;

use super::{import, output};
use crate::{
    app::{App, Listeners, Role},
    catalogue::ChangeError,
    config::Config,
    domain::NewProduct,
    servers::{AppendFsync, PostgresServer, RedisServer},
    telemetry,
};

/// The products of the demo catalogue.
pub(super) const SCARCE_PRODUCT: &str = "sneaker-42";
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
        crate::ledger::migrate(&servers.postgres.owner_url("yoink").parse()?).await?;
        Ok(servers)
    }

    /// The settings with their addresses.
    pub(super) fn settings(&self) -> [(&'static str, String); 5] {
        [
            ("redis_url", self.redis.url()),
            ("postgres_url", self.postgres.url("yoink")),
            // The private Redis has no TLS, whatever a settings file says about another one.
            ("redis_ca_file", String::new()),
            ("redis_cert_file", String::new()),
            ("redis_key_file", String::new()),
        ]
    }
}

/// The catalogue of `dev`, `demo` and the compose file, where `yoink import` reads it.
const CATALOGUE: &str = include_str!("../../deploy/catalogue.csv");

/// The demo catalogue, with `scarce_units` of the scarce product.
fn demo_products(scarce_units: i64) -> anyhow::Result<Vec<NewProduct>> {
    let parsed = import::parse(CATALOGUE.as_bytes(), false);
    let parsed = parsed.map_err(|problems| anyhow!("catalogue.csv: {}", problems.join("; ")))?;
    let mut products: Vec<NewProduct> = parsed.into_iter().map(|(_, product)| product).collect();
    for scarce in products.iter_mut().filter(|product| product.id.as_str() == SCARCE_PRODUCT) {
        scarce.units = scarce_units;
    }
    Ok(products)
}

/// Creates the demo catalogue in the ledger of the service.
pub(super) async fn create_catalogue(app: &App, scarce_units: i64) -> anyhow::Result<()> {
    match app.create_products(&demo_products(scarce_units)?).await {
        // With data of an earlier run its products stay, and its partitions are rebuilt before they sell.
        Ok(_) | Err(ChangeError::NotAppliedYet(_)) => Ok(()),
        Err(error @ ChangeError::Ledger(_)) => Err(error.into()),
    }
}

pub(super) async fn run(
    settings: impl Fn(&[(&'static str, String)]) -> anyhow::Result<Config>,
    shutdown: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let dir = std::path::absolute(".yoink")?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let lock = File::create(dir.join("lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("`yoink dev` already runs in {}", dir.display()),
        Err(TryLockError::Error(error)) => return Err(error).context("cannot lock .yoink/lock"),
    }
    let traces = telemetry::init(&settings(&[])?)?;
    let servers = Servers::start(&dir).await?;
    let for_trials = [("reflection", "on".to_owned())];
    let config = settings(&[&servers.settings()[..], &for_trials].concat())?;
    let app = App::build(&config, Role::All, Listeners::bind(&config)?).await?;
    create_catalogue(&app, 500).await?;
    let (grpc, http) = (app.listeners.grpc.local_addr()?, app.listeners.http.local_addr()?);
    let (redis, postgres) = (servers.redis.admin_url(), servers.postgres.superuser_url("yoink"));
    let uses_tls = config.tls_identity().is_some() && config.http_tls;
    let scheme = if uses_tls { "https" } else { "http" };
    output::line(format!(
        "gRPC     {grpc}\nHTTP     {scheme}://{http}/readyz\nRedis    {redis}\nPostgres {postgres}\n\
         Products {SCARCE_PRODUCT} and {PLENTIFUL_PRODUCT}. Ctrl-C stops everything; the data stays in .yoink/."
    ))?;
    app.run(shutdown).await?;
    traces.finish().await;
    tokio::task::spawn_blocking(move || drop(servers)).await?;
    Ok(ExitCode::SUCCESS)
}
