//! Runs the service: starts its tasks, answers calls, and ends everything in order.

use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tonic::{codec::CompressionEncoding, transport::Server};

use super::{
    App,
    connections::{self, Serve},
    drain::Drain,
    ownership::{Loops, Ownership},
    readiness::Readiness,
    scrape::Scrape,
    store_monitor::report,
    tls_files,
};
use crate::{
    config::{Automation, Config},
    grpc::{self, Limits, Services},
    recovery::Recovery,
    tasks::Tasks,
    telemetry::Sampling,
};

/// How long the tasks may take to end, after the calls.
const TASKS_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(4);
const FINAL_REPORT_TIMEOUT: Duration = Duration::from_secs(1);

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// HTTP/2's own limit of streams that were reset before they were accepted.
const PENDING_RESETS_MIN: u32 = 20;
/// A client that provokes more resets is disconnected; without this there is no limit.
const LOCAL_RESETS_MAX: usize = 1024;

impl App {
    /// Serves until `shutdown`, then ends in order: health reports it, and after `shutdown_delay_ms` new calls are
    /// refused, the calls in progress are answered, the batches that workers hold are stored. The rest waits in the
    /// streams. Takes at most 9 seconds after the delay, and the caller then sends the last spans. Fails when a server
    /// fails, or a task panicked.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (tasks, stop) = (self.stores.tasks.group(), CancellationToken::new());
        if self.role.stores_orders() {
            self.start_workers(&tasks, &shutdown, &stop).await?;
        }
        self.start_periodic(&tasks, &stop);
        let (reporter, health) = tonic_health::server::health_reporter();
        self.monitor.check().await;
        report(&reporter, self.role, self.monitor.reasons().is_empty()).await;
        let monitor = self.monitor.clone().run(reporter.clone(), shutdown.clone(), stop.clone());
        tasks.spawn("store monitor", monitor);
        let limits = limits(&self.config)?;
        let reflection = self.config.reflection;
        let routes = self.services().map(|all| grpc::routes(all, &limits, reflection));
        let (inventory, routes) = routes.transpose()?.unzip();
        let health = health.accept_compressed(CompressionEncoding::Gzip);
        // Health is open to everyone: load balancers have no credentials.
        let routes = routes.unwrap_or_default().add_service(health);
        tracing::info!(
            grpc = %self.listeners.grpc.local_addr()?, http = %self.listeners.http.local_addr()?,
            role = ?self.role, connections_max = self.connections_max, "this process listens"
        );
        let scrape = self.scrape();
        if self.stores.metrics.are_sent() {
            let interval = Duration::from_millis(self.config.otlp_metrics_interval_ms);
            tasks.spawn("metrics export", scrape.clone().send(interval, stop.clone()));
        }
        let readiness = self.readiness(scrape, shutdown.clone());
        tasks.spawn(
            "http server",
            readiness.serve(self.listeners.http, self.tls.http, stop.clone()),
        );
        let metrics = self.stores.metrics;
        let incoming =
            connections::grpc(self.listeners.grpc, self.tls.grpc, self.connections_max, &metrics);
        let sampling = Sampling::new(&self.config);
        let drain = Drain {
            role: self.role,
            reporter,
            shutdown: shutdown.clone(),
            delay: Duration::from_millis(self.config.shutdown_delay_ms),
            close: CancellationToken::new(),
        };
        let router = server(&self.config)
            .layer(grpc::observe(inventory, metrics, limits.call_timeout, sampling))
            .add_routes(routes);
        let server = Serve { router, grace: limits.call_timeout };
        let server = server.run(incoming, drain.close.clone());
        let served = tokio::select! {
            served = server => served.context("the gRPC server failed"),
            () = drain.run(&tasks) => {
                tracing::warn!("some calls did not end in time and are cancelled");
                Ok(())
            }
        };
        // Also if the server failed.
        shutdown.cancel();
        stop.cancel();
        end_tasks(&tasks).await;
        report_final_marks(&self.recovery).await;
        anyhow::ensure!(
            !tasks.has_panicked(),
            "a task panicked (see the log); another worker, or this one after a restart, stores its pending orders"
        );
        served
    }

    /// What a scrape reads.
    fn scrape(&self) -> Scrape {
        Scrape {
            stores: self.stores.clone(),
            catalogue: self.catalogue.clone(),
            recovery: self.recovery.clone(),
            pauses: self.worker_context.pauses.clone(),
            products: self.config.metrics_products.clone().into(),
        }
    }

    /// What answers over HTTP.
    fn readiness(&self, scrape: Scrape, shutdown: CancellationToken) -> Readiness {
        Readiness {
            shutdown,
            monitor: self.monitor.clone(),
            scrape,
            authenticator: self.authenticator.clone(),
            metrics_token: self.metrics_token.clone(),
            recovery: self.config.recovery,
        }
    }

    /// What the handlers use, in a process that answers calls.
    fn services(&self) -> Option<Services> {
        let stores = &self.stores;
        Some(Services {
            acks: self.acks.clone()?,
            auditor: stores.auditor.clone(),
            authenticator: self.authenticator.clone(),
            stock: stores.stock.clone(),
            streams: stores.streams.clone(),
            ledger: stores.ledger.clone(),
            lookups: stores.pools.lookups.clone(),
            catalogue: self.catalogue.clone(),
            dead_letters: stores.dead_letters.clone(),
            metrics: stores.metrics.clone(),
        })
    }

    /// Starts the tasks that read the ledger for this process, and those that check the stores.
    fn start_periodic(&self, tasks: &Tasks, stop: &CancellationToken) {
        let files = self.tls.files().into_iter().chain(self.stores.tls_files()).collect();
        let metrics = self.stores.metrics.clone();
        tasks.spawn("TLS files", tls_files::watch(files, metrics, stop.clone()));
        tasks.spawn("catalogue", self.catalogue.clone().run(stop.clone()));
        tasks.spawn("keys of callers", self.authenticator.clone().run(stop.clone()));
        tasks.spawn("epoch refresh", self.recovery.clone().run(stop.clone()));
        let stores_orders = self.role.stores_orders();
        let rebuild = stores_orders && self.config.recovery == Automation::Auto;
        tasks.spawn("rebuilds", self.recovery.clone().check_fenced(rebuild, stop.clone()));
    }

    /// Starts the loops of the partitions, and what spreads them over the workers.
    async fn start_workers(
        &self,
        tasks: &Tasks,
        leaving: &CancellationToken,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let interval = self.config.audit_interval_ms;
        let loops = Loops {
            release: self.config.dead_letter_release == Automation::Auto,
            audit_interval: (interval > 0).then(|| Duration::from_millis(interval)),
        };
        let (stores, context) = (self.stores.clone(), self.worker_context.clone());
        let ownership = Ownership::begin(stores, context, loops, tasks, stop).await?;
        tasks.spawn("ownership", ownership.run(leaving.clone()));
        Ok(())
    }
}

/// Waits for the tasks, and reports if some do not end in time.
async fn end_tasks(tasks: &Tasks) {
    if !tasks.wait(TASKS_SHUTDOWN_TIMEOUT).await {
        tracing::warn!(
            "some tasks did not end in time: the orders that they had read are stored by another worker, or after a \
             restart"
        );
    }
}

/// Reports what this process saw of its epochs, so that a later count of what was lost is exact (R10).
async fn report_final_marks(recovery: &Recovery) {
    let report = tokio::time::timeout(FINAL_REPORT_TIMEOUT, recovery.report_final_marks());
    let error = match report.await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => anyhow::Error::from(error),
        Err(late) => late.into(),
    };
    tracing::warn!(
        error = error.as_ref() as &dyn std::error::Error,
        "the last marks of this process are not recorded: if Redis loses orders, the reported count is a minimum"
    );
}

/// The gRPC server of these settings: what one connection may do, in terms of HTTP/2.
fn server(config: &Config) -> Server {
    let max_streams = config.connection_max_streams;
    // A client may cancel all of its calls at once, and no more.
    let pending_resets = usize::try_from(max_streams.max(PENDING_RESETS_MIN));
    // No `max_connection_age_grace`: with it, tonic 0.14 sends no GOAWAY and cuts the calls in progress. Without it the
    // connection ends after its last call.
    let server = match config.connection_max_age_ms {
        0 => Server::builder(),
        age_ms => Server::builder().max_connection_age(Duration::from_millis(age_ms)),
    };
    server
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .max_concurrent_streams(max_streams)
        .http2_max_pending_accept_reset_streams(pending_resets.ok())
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .http2_max_header_list_size(config.header_max_bytes)
}

fn limits(config: &Config) -> anyhow::Result<Limits> {
    Ok(Limits {
        concurrency_max_calls: config.concurrency_max_calls.try_into()?,
        address_calls_per_second: config.address_calls_per_second,
        principal_calls_per_second: config.principal_calls_per_second,
        user_calls_per_second: config.user_calls_per_second,
        call_timeout: Duration::from_millis(config.call_timeout_ms),
        request_max_bytes: config.request_max_bytes,
        trusted_proxies: config.trusted_proxies.clone(),
        require_request_id: config.require_request_id,
    })
}
