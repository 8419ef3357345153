//! `/healthz` (the process runs), `/readyz` (it can sell) and `/metrics`.

use std::time::Duration;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header::WWW_AUTHENTICATE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    connections::HttpListener,
    metrics_token::{MetricsToken, Scraper},
    scrape::Scrape,
    store_monitor::StoreMonitor,
};
use crate::{
    auth::{Authenticator, JwtProblem},
    config::Automation,
    recovery::StatusSnapshot,
    tls::ServerTls,
    worker::PauseReason,
};

/// A catalogue that was not read for this long is reported.
const CATALOGUE_AGE_MAX: Duration = Duration::from_secs(5);

/// What readiness depends on.
#[derive(Clone)]
pub(super) struct Readiness {
    /// Cancelled when this process begins to shut down.
    pub(super) shutdown: CancellationToken,
    pub(super) monitor: StoreMonitor,
    pub(super) scrape: Scrape,
    pub(super) authenticator: Authenticator,
    pub(super) metrics_token: MetricsToken,
    /// Whether workers rebuild fenced partitions.
    pub(super) recovery: Automation,
}

impl Readiness {
    /// Whether units can be sold, and everything that does not work.
    fn check(&self) -> (bool, Vec<String>) {
        let mut reasons = self.monitor.reasons();
        let healthy = reasons.is_empty();
        reasons.extend(self.monitor.partial_outages());
        let pauses = self.scrape.pauses.by_reason();
        // A pause for one of these reasons makes the process unready. An outage of Postgres, an unlisted SQLSTATE and a
        // void that Postgres refuses (`VoidRefused`) do not: reservations are accepted until the backlog is full.
        let lasting = [
            PauseReason::LedgerMisconfigured,
            PauseReason::Inconsistent,
            PauseReason::Malformed,
            PauseReason::NewerFormat,
        ];
        let is_paused = pauses.iter().any(|(pause, _)| lasting.contains(pause));
        let status = self.scrape.recovery.status().snapshot();
        let partitions = usize::from(self.scrape.stores.deployment.partitions.get());
        let sells = status.fenced.len() < partitions;
        reasons.extend(self.partitions(status));
        reasons.extend(pauses.into_iter().map(|(pause, paused)| {
            format!("{}: consumption paused: {pause}", partition_list(&paused, partitions))
        }));
        reasons.extend(self.scrape.pauses.unlisted().into_iter().map(|(partition, kept)| {
            format!(
                "partition {partition}: {} orders are kept and tried again: Postgres refuses them with \
                 SQLSTATE {}, which this program does not classify",
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
        let problem = self.authenticator.problem();
        reasons.extend(problem.map(|problem| problem.description().to_owned()));
        // Every process reads the same set, so one without a usable key makes none of them unready: callers with other
        // credentials are served.
        let cannot_authenticate = problem == Some(JwtProblem::Unread);
        let ends = self.shutdown.is_cancelled();
        reasons.extend(ends.then(|| "this process shuts down".to_owned()));
        (healthy && sells && !is_paused && !cannot_authenticate && !ends, reasons)
    }

    /// The partitions that are not sold from, or could not be opened, and why.
    fn partitions(
        &self,
        StatusSnapshot { fenced, mut failures, stages }: StatusSnapshot,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        for (partition, reason) in fenced {
            let more = match (stages.get(&partition), failures.remove(&partition)) {
                (Some(stage), _) => format!("; rebuilding: {stage}"),
                (None, Some(failure)) => format!("; not rebuilt: {failure}"),
                (None, None) if self.recovery == Automation::Manual => {
                    format!("; run `yoink rebuild --partition {partition}`")
                }
                (None, None) => String::new(),
            };
            lines.push(format!("partition {partition} is fenced: {reason}{more}"));
        }
        for (partition, failure) in failures {
            lines.push(format!("partition {partition} is not opened: {failure}"));
        }
        lines
    }

    pub(super) async fn serve(
        self,
        listener: TcpListener,
        tls: Option<ServerTls>,
        stop: CancellationToken,
    ) {
        let listener = HttpListener::new(listener, tls, &self.scrape.stores.metrics);
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

/// These partitions of so many, for a line that concerns them.
fn partition_list(numbers: &[usize], partitions: usize) -> String {
    match numbers {
        [number] => format!("partition {number}"),
        _ if numbers.len() == partitions => "all partitions".to_owned(),
        _ => {
            let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
            format!("partitions {}", numbers.join(", "))
        }
    }
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let (ready, reasons) = readiness.check();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let lines: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    (status, if lines.is_empty() { "ok\n".to_owned() } else { lines })
}

async fn metrics(State(readiness): State<Readiness>, headers: HeaderMap) -> Response {
    match readiness.metrics_token.check(&headers).await {
        Scraper::Allowed => {}
        Scraper::Refused => {
            let challenge = [(WWW_AUTHENTICATE, r#"Bearer realm="yoink""#)];
            return (StatusCode::UNAUTHORIZED, challenge).into_response();
        }
        Scraper::Unknown => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
    readiness.scrape.read().await;
    match readiness.scrape.stores.metrics.encode() {
        Ok(text) => text.into_response(),
        Err(error) => {
            let error = error.as_ref() as &dyn std::error::Error;
            tracing::error!(error, "the metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paused_partitions_are_named() {
        for (numbers, text) in [
            (&[2][..], "partition 2"),
            (&[0, 2][..], "partitions 0, 2"),
            (&[0, 1, 2][..], "all partitions"),
        ] {
            assert_eq!(partition_list(numbers, 3), text);
        }
    }
}
