//! `/healthz` (the process runs), `/readyz` (it can sell) and `/metrics`.

use std::time::Duration;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{connections::HttpListener, scrape::Scrape, watch::Watch};
use crate::worker::PauseReason;

/// A catalogue that was not read for this long is reported.
const CATALOGUE_AGE_MAX: Duration = Duration::from_secs(5);

/// What readiness depends on.
#[derive(Clone)]
pub(super) struct Readiness {
    pub(super) watch: Watch,
    pub(super) scrape: Scrape,
}

impl Readiness {
    /// Whether units can be sold, and everything that does not work.
    fn check(&self) -> (bool, Vec<String>) {
        let mut reasons = self.watch.reasons();
        let healthy = reasons.is_empty();
        let pauses = self.scrape.pauses.reasons();
        // An outage of Postgres stops no sale; what an operator must repair does.
        let needs_operator = [
            PauseReason::LedgerMisconfigured,
            PauseReason::Inconsistent,
            PauseReason::Malformed,
            PauseReason::NewerFormat,
        ];
        let needs_operator = pauses.iter().any(|pause| needs_operator.contains(pause));
        reasons.extend(self.partitions());
        reasons.extend(pauses.iter().map(|pause| format!("consumption paused: {pause}")));
        reasons.extend(self.scrape.pauses.unlisted().into_iter().map(|(partition, kept)| {
            format!(
                "partition {partition}: {} orders are kept and tried again: Postgres refuses them with \
                 SQLSTATE {}, which is in no list",
                kept.orders, kept.sqlstate
            )
        }));
        let age = self.scrape.catalogue.age();
        if age > CATALOGUE_AGE_MAX {
            let age = age.as_secs();
            reasons.push(format!(
                "the catalogue was not read for {age} s: changes of products do not take effect"
            ));
        }
        let fenced = self.scrape.recovery.status().fenced().len();
        let sells = fenced < usize::from(self.scrape.stores.deployment.partitions.get());
        (healthy && sells && !needs_operator, reasons)
    }

    /// The partitions that are not sold from, or could not be opened, and why.
    fn partitions(&self) -> Vec<String> {
        let status = self.scrape.recovery.status();
        let (fenced, failures, stages) = (status.fenced(), status.failures(), status.stages());
        let line = |partition| {
            let more = match (stages.get(partition), failures.get(partition)) {
                (Some(stage), _) => format!("; rebuilding: {stage}"),
                (None, Some(failure)) => format!("; not rebuilt: {failure}"),
                (None, None) => String::new(),
            };
            format!("partition {partition} is fenced{more}")
        };
        let unopened = failures.iter().filter(|(partition, _)| !fenced.contains(partition));
        let unopened =
            unopened.map(|(partition, failure)| format!("partition {partition}: {failure}"));
        fenced.iter().map(line).chain(unopened).collect()
    }

    /// Serves until stopped.
    pub(super) async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let listener = HttpListener::new(listener, &self.scrape.stores.metrics);
        let routes = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self);
        let server = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = server.await {
            tracing::error!(error = &error as &dyn std::error::Error, "the HTTP server failed");
        }
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let (ready, reasons) = readiness.check();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let lines: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    (status, if lines.is_empty() { "ok\n".to_owned() } else { lines })
}

async fn metrics(State(readiness): State<Readiness>) -> Result<String, StatusCode> {
    readiness.scrape.read().await;
    readiness.scrape.stores.metrics.encode().map_err(|error| {
        tracing::error!(error = &*error as &dyn std::error::Error, "the metrics cannot be encoded");
        StatusCode::INTERNAL_SERVER_ERROR
    })
}
