//! `/healthz` (this process lives) and `/readyz` (it can sell).

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::recovery::Recovery;
use crate::worker::{PauseReason, Pauses};

/// What readiness is told from.
#[derive(Clone)]
pub(super) struct Readiness {
    pub(super) redis: Arc<AtomicBool>,
    pub(super) pauses: Arc<Pauses>,
    pub(super) recovery: Recovery,
    pub(super) partitions: u16,
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
        let sells = fenced.len() < usize::from(self.partitions);
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
