//! The service: connects the stores, builds the modules that work on them, and runs them until it is stopped. The
//! caller provides configuration, listeners and the shutdown.

mod connect;
mod connections;
mod drain;
mod inspect;
mod metrics_token;
mod ownership;
mod permissions;
mod readiness;
mod redis_nodes;
mod run;
mod scrape;
mod store_monitor;
mod tls_files;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::net::TcpListener;
use uuid::Uuid;

pub use self::connect::Stores;
use self::{
    connect::retry_refused, connections::listen, metrics_token::MetricsToken,
    store_monitor::StoreMonitor, tls_files::ListenerTls,
};
pub(crate) use self::{
    connect::{checked_deployment, pools},
    connections::{connections_max, raise_descriptor_limit},
    inspect::{Inspection, inspect},
    tls_files::{postgres_address, tls_problems, tls_warnings},
};
use crate::{
    ack::Acks,
    auth::{AuthSettings, Authenticator, JwksSource, JwtSettings},
    catalogue::{Catalogue, ChangeError},
    config::{Authentication, Config},
    domain::NewProduct,
    ledger::Created,
    recovery::Recovery,
    worker::{Pauses, WorkerContext, WorkerSettings},
};

/// The delay between the refusal of an order by the ledger and its next attempt.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// API and worker.
    All,
    /// Answers calls.
    Api,
    /// Stores orders, audits, rebuilds.
    Worker,
}

impl Role {
    fn answers_calls(self) -> bool {
        self != Self::Worker
    }

    fn stores_orders(self) -> bool {
        self != Self::Api
    }
}

/// Where a service listens; bound by the caller.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC.
    pub grpc: TcpListener,
    /// `/healthz`, `/readyz` and `/metrics`.
    pub http: TcpListener,
}

impl Listeners {
    /// Binds the addresses of the settings.
    pub fn bind(config: &Config) -> anyhow::Result<Self> {
        let bind = |name: &str, address: SocketAddr| {
            listen(address).with_context(|| format!("cannot listen on {name} {address}"))
        };
        let grpc = bind("grpc_listen", config.grpc_listen)?;
        Ok(Self { grpc, http: bind("http_listen", config.http_listen)? })
    }
}

/// A service that is ready to run.
pub struct App {
    config: Config,
    role: Role,
    /// Where it listens.
    pub listeners: Listeners,
    tls: ListenerTls,
    metrics_token: MetricsToken,
    connections_max: usize,
    stores: Stores,
    /// Where calls are answered.
    acks: Option<Acks>,
    authenticator: Authenticator,
    catalogue: Catalogue,
    recovery: Recovery,
    /// What the workers use: for tests that run them step by step.
    pub worker_context: WorkerContext,
    monitor: StoreMonitor,
}

impl App {
    /// Connects both stores, opens new partitions, reads the catalogue. Fails when a store cannot be used, or is not the
    /// one that the settings mean.
    pub async fn build(config: &Config, role: Role, listeners: Listeners) -> anyhow::Result<Self> {
        let tls = ListenerTls::load(config).context("cannot use TLS for the listeners")?;
        let metrics_token = MetricsToken::of(config.metrics_token_file.as_ref())?;
        let stores = Stores::connect(config).await?;
        let acks = if role.answers_calls() { Some(stores.acks(config).await?) } else { None };
        let authenticator = authenticator(config, role, &stores).await?;
        let monitor = StoreMonitor::start(stores.clone(), role, acks.clone()).await?;
        stores.check_permissions().await?;
        stores.metrics.set_backlog_max_entries(config.backlog_max_entries);
        let name = format!("{}-{}", std::process::id(), Uuid::new_v4().simple());
        let mut recovery = stores.recovery();
        if role.answers_calls() {
            recovery = recovery.for_gateway(name.clone());
        }
        let read = async || recovery.refresh().await.context("cannot read the partitions");
        retry_refused(read).await?;
        let catalogue = Catalogue::new(stores.ledger.clone(), stores.stock.clone());
        let read = async || catalogue.refresh().await.context("cannot read the catalogue");
        retry_refused(read).await?;
        let worker_context = WorkerContext {
            streams: stores.streams.clone(),
            stock: stores.stock.clone(),
            lifecycle: stores.lifecycle.clone(),
            metrics: stores.metrics.clone(),
            ledger: stores.pools.workers.clone(),
            commit_reports: acks.as_ref().map(Acks::commit_reports).unwrap_or_default(),
            settings: WorkerSettings {
                deliveries_max: config.deliveries_max,
                takeover_idle: Duration::from_millis(config.takeover_idle_ms),
                retry_delay: RETRY_DELAY,
            },
            pauses: Arc::new(Pauses::none(stores.deployment.partitions.get())),
            consumer: name,
        };
        Ok(Self {
            config: config.clone(),
            role,
            listeners,
            tls,
            metrics_token,
            connections_max: connections_max(config)?,
            stores,
            acks,
            authenticator,
            catalogue,
            recovery,
            worker_context,
            monitor,
        })
    }

    /// Both stores.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// Creates products before the first call can name them.
    pub async fn create_products(&self, products: &[NewProduct]) -> Result<Created, ChangeError> {
        self.catalogue.create(products, "demo").await
    }
}

/// What checks the credentials of calls. A process that answers none needs no keys.
async fn authenticator(
    config: &Config,
    role: Role,
    stores: &Stores,
) -> anyhow::Result<Authenticator> {
    if !role.answers_calls() {
        return Ok(Authenticator::off());
    }
    if config.is_open_to_the_network() {
        tracing::warn!(
            grpc_listen = %config.grpc_listen,
            "authentication is off: every caller that reaches this address, also by a proxy, may make every call, also \
             those of operators (set authentication = required)"
        );
    } else if config.authentication == Authentication::Off {
        tracing::info!(
            grpc_listen = %config.grpc_listen,
            "authentication is off: every program on this machine may make every call"
        );
    }
    if config.authentication == Authentication::Off {
        if jwks(config).is_some() || !config.client_certificate_roles.is_empty() {
            tracing::warn!(
                "authentication is off: the settings of JWTs and of client certificates have no effect (set \
                 authentication = required)"
            );
        }
        return Ok(Authenticator::off());
    }
    let jwt = jwks(config).map(|jwks| JwtSettings {
        jwks,
        algorithms: config.jwt_algorithms.clone(),
        issuer: config.jwt_issuer.clone(),
        audience: config.jwt_audience.clone(),
        clock_skew: Duration::from_secs(config.jwt_clock_skew_s),
        user_claim: config.jwt_user_claim.clone(),
        role_claim: config.jwt_role_claim.clone(),
    });
    let certificate_roles = config.client_certificate_roles.clone();
    let (settings, metrics) = (AuthSettings { jwt, certificate_roles }, &stores.metrics);
    let start =
        async || Authenticator::start(settings.clone(), stores.ledger.clone(), metrics).await;
    retry_refused(start).await
}

/// Where the public keys of JWTs are, if JWTs are accepted.
fn jwks(config: &Config) -> Option<JwksSource> {
    let file = config.jwt_jwks_file.clone().map(JwksSource::File);
    file.or_else(|| {
        Some(JwksSource::Url {
            uri: config.jwt_jwks_url.clone()?,
            authorities: config.jwt_jwks_ca_file.clone(),
            interval: Duration::from_secs(config.jwt_jwks_interval_s),
        })
    })
}
