//! The service: API, workers, or both in one process.

use std::{
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{codec::CompressionEncoding, transport::Server};
use uuid::Uuid;

use super::{
    Stores, auditing,
    connect::retry_refused,
    connections::{self, connections_max},
    http::{self, Readiness},
    scrape::Scrape,
    watch::{Watch, report},
};
use crate::{
    ack::Acks,
    catalogue::{Catalogue, RefreshError},
    config::{Automation, Config},
    domain::{NewProduct, ProductId},
    grpc::{self, Limits, Observe, Services},
    ledger::Created,
    recovery::Recovery,
    telemetry::Sampling,
    worker::{Pauses, Releaser, WorkerContext, WorkerSettings},
};

/// How long calls may take to end after a shutdown began, and then the loops.
const DRAIN_CALLS: Duration = Duration::from_secs(4);
const DRAIN_LOOPS: Duration = Duration::from_secs(4);
const FINAL_REPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between an order's own failure and its next attempt.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Both.
    All,
    /// Answers calls.
    Api,
    /// Carries orders to the ledger.
    Worker,
}

/// Where a service listens; bound by the caller.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC.
    pub grpc: TcpListener,
    /// `/healthz` and `/readyz`.
    pub http: TcpListener,
}

impl Listeners {
    /// Binds what the settings say.
    ///
    /// # Errors
    ///
    /// When an address is taken.
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let bind = async |name: &str, address: SocketAddr| {
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {name} {address}"))
        };
        let grpc = bind("grpc_listen", config.grpc_listen).await?;
        Ok(Self { grpc, http: bind("http_listen", config.http_listen).await? })
    }
}

impl Http2 {
    fn server(&self) -> Server {
        // No `max_connection_age_grace`: with it, tonic 0.14 sends no GOAWAY and cuts the calls under way. Without it the
        // connection ends after its last call; a buyer's call ends at `call_timeout_ms`.
        let server = match self.max_age {
            Some(age) => Server::builder().max_connection_age(age),
            None => Server::builder(),
        };
        server
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .max_concurrent_streams(self.max_streams)
            // A client may give all its calls up at once, and no more; 20 is HTTP/2's own limit.
            .http2_max_pending_accept_reset_streams(usize::try_from(self.max_streams.max(20)).ok())
            // Who provokes resets is sent away; without this there is no limit.
            .http2_max_local_error_reset_streams(Some(1024))
            .http2_max_header_list_size(self.header_max_bytes)
    }
}

/// What happens by itself.
struct Automations {
    dead_letter_release: Automation,
    recovery: Automation,
}

/// A service that is ready to run.
pub struct App {
    stores: Stores,
    /// Where orders are taken.
    acks: Option<Acks>,
    catalogue: Catalogue,
    recovery: Recovery,
    listeners: Listeners,
    worker_context: WorkerContext,
    role: Role,
    reflection: bool,
    automation: Automations,
    limits: Limits,
    http2: Http2,
    connections_max: usize,
    metrics_products: Vec<ProductId>,
    otlp_metrics_interval: Duration,
    sampling: Sampling,
    watch: Watch,
    audit_interval: Option<Duration>,
}

/// What one connection may do.
struct Http2 {
    max_streams: u32,
    header_max_bytes: u32,
    /// None: no limit.
    max_age: Option<Duration>,
}

impl App {
    /// Connects both stores, opens what is new, reads the catalogue.
    ///
    /// # Errors
    ///
    /// When a store is away, or is not the one that the settings mean.
    pub async fn build(config: &Config, role: Role, listeners: Listeners) -> anyhow::Result<Self> {
        let stores = Stores::connect(config, &TaskTracker::new()).await?;
        let acks = match role {
            Role::All | Role::Api => Some(stores.acks(config).await?),
            Role::Worker => None,
        };
        let watch = Watch::begin(stores.clone(), role, acks.clone()).await?;
        stores.metrics.backlog_max_entries(config.backlog_max_entries);
        let name = format!("{}-{}", std::process::id(), Uuid::new_v4().simple());
        let recovery = stores.recovery((role != Role::Worker).then(|| name.clone()));
        let look = async || recovery.look().await.context("cannot read the partitions");
        retry_refused(look).await?;
        let catalogue = Catalogue::new(stores.ledger.clone(), stores.stock.clone());
        let refresh = async || catalogue.refresh().await.context("cannot read the catalogue");
        retry_refused(refresh).await?;
        let worker_context = WorkerContext {
            streams: stores.streams.clone(),
            stock: stores.stock.clone(),
            lifecycle: stores.lifecycle.clone(),
            metrics: stores.metrics.clone(),
            ledger: stores.pools.workers.clone(),
            settings: WorkerSettings {
                max_deliveries: config.max_deliveries,
                takeover_idle: Duration::from_millis(config.takeover_idle_ms),
                retry_delay: RETRY_DELAY,
            },
            pauses: Arc::new(Pauses::none(stores.deployment.partitions.get())),
            consumer: name,
        };
        let reflection = config.reflection.is_on();
        let automation = Automations {
            dead_letter_release: config.dead_letter_release,
            recovery: config.recovery,
        };
        let http2 = Http2 {
            max_streams: config.connection_max_streams,
            header_max_bytes: config.header_max_bytes,
            max_age: (config.connection_max_age_ms > 0)
                .then(|| Duration::from_millis(config.connection_max_age_ms)),
        };
        Ok(Self {
            stores,
            acks,
            catalogue,
            recovery,
            listeners,
            worker_context,
            role,
            reflection,
            automation,
            limits: limits(config)?,
            http2,
            connections_max: connections_max(
                config.connections_max,
                config.partitions,
                config.ledger_connections(),
            )?,
            metrics_products: config.metrics_products.clone(),
            otlp_metrics_interval: Duration::from_millis(config.otlp_metrics_interval_ms),
            sampling: Sampling::new(config),
            watch,
            audit_interval: (config.audit_interval_ms > 0)
                .then(|| Duration::from_millis(config.audit_interval_ms)),
        })
    }

    /// Where gRPC listens.
    ///
    /// # Errors
    ///
    /// When the operating system does not tell.
    pub fn grpc_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listeners.grpc.local_addr()?)
    }

    /// Where HTTP listens.
    ///
    /// # Errors
    ///
    /// When the operating system does not tell.
    pub fn http_address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listeners.http.local_addr()?)
    }

    /// Both stores.
    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// What the loops work on: for tests that step them.
    pub fn worker_context(&self) -> &WorkerContext {
        &self.worker_context
    }

    /// Creates products before anybody can ask for them.
    ///
    /// # Errors
    ///
    /// As [`Catalogue::create`].
    pub async fn create_products(&self, products: &[NewProduct]) -> Result<Created, RefreshError> {
        self.catalogue.create(products, "demo").await
    }

    /// Serves until `shutdown`, then ends in order: no new calls, the calls under way are answered, the
    /// batches in hand are stored. What is left waits in the streams. Takes at most 8 seconds.
    ///
    /// # Errors
    ///
    /// When a server fails.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (loops, stop_loops) = (Loops::new(shutdown.clone()), CancellationToken::new());
        if self.role != Role::Api {
            self.start_workers(&loops, &stop_loops).await?;
        }
        self.start_keepers(&loops, &stop_loops);
        let (reporter, health) = tonic_health::server::health_reporter();
        let health = health.accept_compressed(CompressionEncoding::Gzip);
        self.watch.look().await;
        report(&reporter, self.role, self.watch.reasons().is_empty()).await;
        loops.spawn(self.watch.clone().run(reporter.clone(), stop_loops.clone()));
        let services = self.services();
        let scrape = Scrape {
            stores: self.stores.clone(),
            catalogue: self.catalogue.clone(),
            recovery: self.recovery.clone(),
            pauses: self.worker_context.pauses.clone(),
            products: self.metrics_products.into(),
        };
        let metrics = self.stores.metrics.clone();
        if metrics.are_sent() {
            loops.spawn(scrape.clone().send(self.otlp_metrics_interval, stop_loops.clone()));
        }
        let readiness = Readiness { watch: self.watch, scrape };
        let http = self.listeners.http.local_addr()?;
        loops.spawn(http::serve(self.listeners.http, readiness, stop_loops.clone()));

        let routes = services.map(|services| grpc::routes(services, &self.limits));
        let mut routes = routes.unwrap_or_default().add_service(health);
        let role = self.role;
        if self.reflection && role != Role::Worker {
            routes = grpc::reflect(routes)?;
        }
        tracing::info!(
            grpc = %self.listeners.grpc.local_addr()?,
            %http,
            ?role,
            connections_max = self.connections_max,
            "serving"
        );
        let incoming = connections::grpc(self.listeners.grpc, self.connections_max, &metrics);
        let server = self
            .http2
            .server()
            .layer(Observe::new(metrics, self.limits.call_timeout, self.sampling))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
        let served = tokio::select! {
            served = server => served.context("the gRPC server failed"),
            () = async {
                shutdown.cancelled().await;
                tracing::info!("shutting down");
                report(&reporter, role, false).await;
                tokio::time::sleep(DRAIN_CALLS).await;
            } => {
                tracing::warn!("some calls did not end in time");
                Ok(())
            }
        };
        stop_loops.cancel();
        if tokio::time::timeout(DRAIN_LOOPS, loops.ended()).await.is_err() {
            tracing::warn!("some loops did not end in time; what they held stays in the streams");
        }
        leave(&self.recovery).await;
        anyhow::ensure!(!loops.panicked(), "a loop panicked; another process goes on where it was");
        served
    }

    /// What the handlers work on, where calls are answered.
    fn services(&self) -> Option<Services> {
        let stores = &self.stores;
        Some(Services {
            acks: self.acks.clone()?,
            auditor: stores.auditor(),
            stock: stores.stock.clone(),
            streams: stores.streams.clone(),
            ledger: stores.ledger.clone(),
            lookups: stores.pools.lookups.clone(),
            catalogue: self.catalogue.clone(),
            dead_letters: stores.dead_letters.clone(),
            metrics: stores.metrics.clone(),
        })
    }

    /// What keeps this process's knowledge true, and watches over the stores.
    fn start_keepers(&self, loops: &Loops, stop: &CancellationToken) {
        let works = self.role != Role::Api;
        loops.spawn(self.catalogue.clone().run(stop.clone()));
        let rebuild = works && self.automation.recovery == Automation::Auto;
        loops.spawn(self.recovery.clone().run(stop.clone()));
        loops.spawn(self.recovery.clone().mend(rebuild, stop.clone()));
        if let (Some(interval), true) = (self.audit_interval, works) {
            let metrics = self.stores.metrics.clone();
            loops.spawn(auditing::run(self.stores.auditor(), metrics, interval, stop.clone()));
        }
    }

    async fn start_workers(&self, loops: &Loops, stop: &CancellationToken) -> anyhow::Result<()> {
        for partition in self.stores.deployment.partitions.all() {
            let consumer = self.worker_context.consumer(partition, self.stores.reader().await?);
            loops.spawn(consumer.run(stop.clone()));
            if self.automation.dead_letter_release == Automation::Auto {
                loops
                    .spawn(Releaser::new(self.worker_context.clone(), partition).run(stop.clone()));
            }
        }
        Ok(())
    }
}

/// Tasks that live as long as the service. One that panics ends the service in order: a process that
/// stores no orders must not look well.
struct Loops {
    tasks: TaskTracker,
    panicked: Arc<AtomicBool>,
    shutdown: CancellationToken,
}

impl Loops {
    fn new(shutdown: CancellationToken) -> Self {
        Self { tasks: TaskTracker::new(), panicked: Arc::new(AtomicBool::new(false)), shutdown }
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let (panicked, shutdown) = (self.panicked.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                panicked.store(true, Ordering::Release);
                tracing::error!("a loop panicked; shutting down");
                shutdown.cancel();
            }
        });
    }

    async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire)
    }
}

/// What this process saw of its epochs, so that a later count of what was lost is exact (R10).
async fn leave(recovery: &Recovery) {
    let why = match tokio::time::timeout(FINAL_REPORT_TIMEOUT, recovery.leave()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("{:#}", anyhow::Error::from(error)),
        Err(late) => late.to_string(),
    };
    tracing::warn!(why, "what this process saw was not reported");
}

fn limits(config: &Config) -> anyhow::Result<Limits> {
    Ok(Limits {
        concurrency_max_calls: config.concurrency_max_calls.try_into()?,
        address_calls_per_second: config.address_calls_per_second,
        user_calls_per_second: config.user_calls_per_second,
        call_timeout: Duration::from_millis(config.call_timeout_ms),
        request_max_bytes: config.request_max_bytes,
        trusted_proxies: config.trusted_proxies.clone(),
        require_request_id: config.require_request_id,
    })
}
