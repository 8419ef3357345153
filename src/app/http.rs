//! `/healthz` (this process lives), `/readyz` (it can sell) and `/metrics`.

use std::time::Duration;

use axum::{Router, extract::State, http::StatusCode, routing::get};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{connections::HttpListener, scrape::Scrape, watch::Watch};
use crate::worker::PauseReason;

/// A catalogue that was not read for so long is named.
const STALE: Duration = Duration::from_secs(5);

/// What readiness is told from.
#[derive(Clone)]
pub(super) struct Readiness {
    pub(super) watch: Watch,
    pub(super) scrape: Scrape,
}

impl Readiness {
    /// Whether units can be taken; and every reason why something stands still.
    fn tell(&self) -> (bool, Vec<String>) {
        let unwell = self.watch.reasons();
        let pauses = self.scrape.pauses.reasons();
        // An outage of Postgres stops no sale; what an operator must mend does.
        let broken = [
            PauseReason::LedgerMisconfigured,
            PauseReason::Inconsistent,
            PauseReason::Malformed,
            PauseReason::NewerFormat,
        ];
        let seen_fenced = self.scrape.recovery.seen_fenced();
        let sells = seen_fenced.len() < usize::from(self.scrape.stores.deployment.partitions.get());
        let ready =
            unwell.is_empty() && sells && !pauses.iter().any(|pause| broken.contains(pause));
        let progress = self.scrape.recovery.progress();
        let failures = self.scrape.recovery.failures();
        let fenced = seen_fenced.iter().map(|partition| {
            let stage = progress.iter().find(|(underway, _)| underway == partition);
            let stage = stage.map_or(String::new(), |(_, stage)| format!("; rebuilding: {stage}"));
            let failure = failures.get(partition).filter(|_| stage.is_empty());
            let failure = failure.map_or(String::new(), |why| format!("; not rebuilt: {why}"));
            format!("partition {partition} is fenced{stage}{failure}")
        });
        let unopened = failures.iter().filter(|(partition, _)| !seen_fenced.contains(partition));
        let unopened = unopened.map(|(partition, why)| format!("partition {partition}: {why}"));
        let pauses = pauses.iter().map(|pause| format!("consumption paused: {pause}"));
        let kept = self.scrape.pauses.unlisted().into_iter().map(|(partition, kept)| {
            format!(
                "partition {partition}: {} orders are kept and tried again: Postgres refuses them with \
                 SQLSTATE {}, which is in no list",
                kept.orders, kept.sqlstate
            )
        });
        let age = self.scrape.catalogue.age();
        let stale = (age > STALE).then(|| {
            let age = age.as_secs();
            format!(
                "the catalogue was not read for {age} s: changes of products do not take effect"
            )
        });
        let reasons = unwell.into_iter().chain(fenced).chain(unopened).chain(pauses);
        (ready, reasons.chain(kept).chain(stale).collect())
    }
}

/// Serves until stopped.
pub(super) async fn serve(listener: TcpListener, readiness: Readiness, stop: CancellationToken) {
    let metrics = readiness.scrape.stores.metrics.clone();
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scraped))
        .with_state(readiness);
    let listener = HttpListener::new(listener, &metrics);
    let server = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = server.await {
        tracing::error!(error = &error as &dyn std::error::Error, "the HTTP server failed");
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let (ready, reasons) = readiness.tell();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let lines: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    (status, if lines.is_empty() { "ok\n".to_owned() } else { lines })
}

async fn scraped(State(readiness): State<Readiness>) -> Result<String, StatusCode> {
    let scrape = &readiness.scrape;
    scrape.read().await;
    scrape.stores.metrics.encode().map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "no metrics");
        StatusCode::INTERNAL_SERVER_ERROR
    })
}
