//! `/healthz` (this process lives), `/readyz` (it can sell) and `/metrics`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Stores;
use crate::recovery::Recovery;
use crate::telemetry::PartitionReading;
use crate::worker::{PauseReason, Pauses};

/// What readiness is told from.
#[derive(Clone)]
pub(super) struct Readiness {
    pub(super) redis: Arc<AtomicBool>,
    pub(super) pauses: Arc<Pauses>,
    pub(super) recovery: Recovery,
    pub(super) stores: Stores,
}

impl Readiness {
    /// Whether units can be taken; and every reason why something stands still.
    fn tell(&self) -> (bool, Vec<String>) {
        let redis = self.redis.load(Ordering::Acquire);
        let pauses = self.pauses.reasons();
        // An outage of Postgres stops no sale; what an operator must mend does.
        let broken =
            [PauseReason::LedgerMisconfigured, PauseReason::Inconsistent, PauseReason::NewerFormat];
        let fenced = self.recovery.seen_fenced();
        let sells = fenced.len() < usize::from(self.stores.deployment.partitions.get());
        let ready = redis && sells && !pauses.iter().any(|pause| broken.contains(pause));
        let fenced = fenced.iter().map(|partition| format!("partition {partition} is fenced"));
        let away = (!redis).then(|| "Redis is unavailable".to_owned());
        let pauses = pauses.iter().map(|pause| format!("consumption stands still: {pause}"));
        (ready, away.into_iter().chain(fenced).chain(pauses).collect())
    }
}

/// Serves until stopped.
pub(super) async fn serve(listener: TcpListener, readiness: Readiness, stop: CancellationToken) {
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(readiness);
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

/// The stores are read now, for this scrape; what cannot be read keeps its last value.
async fn metrics(State(readiness): State<Readiness>) -> Result<String, StatusCode> {
    let stores = &readiness.stores;
    let metrics = stores.stock.partitions().metrics();
    let now_ms = Timestamp::now().as_millisecond();
    let fenced = readiness.recovery.seen_fenced();
    for partition in stores.deployment.partitions.all() {
        let Ok(depth) = stores.streams.depth(partition).await else { break };
        let waited = depth.oldest_ms.map_or(0, |at| now_ms.saturating_sub(at).max(0));
        let waited = Duration::from_millis(u64::try_from(waited).unwrap_or(0));
        let reading = PartitionReading {
            orders: depth.orders,
            pending: depth.pending,
            lag: depth.lag,
            oldest_seconds: waited.as_secs_f64(),
            dead: depth.dead,
            fenced: fenced.contains(&partition),
            paused: readiness.pauses.is_paused(partition),
        };
        metrics.partition(partition.number(), reading);
    }
    metrics.pool(stores.ledger.connections());
    metrics.encode().map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "no metrics");
        StatusCode::INTERNAL_SERVER_ERROR
    })
}
