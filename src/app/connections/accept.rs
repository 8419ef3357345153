//! Accepts connections from one listener, also after accepts that fail.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::connection::{Connection, Limit};
use crate::telemetry::{ListenerMetrics, Metrics};

/// Between two attempts to accept, while that fails.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Between two log lines about the same condition.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Whether it is time for another log line about a condition.
fn is_due(last: &mut Option<Instant>) -> bool {
    let due = last.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
    if due {
        *last = Some(Instant::now());
    }
    due
}

/// Accepts from one listener; waits longer and longer while that fails.
pub(super) struct Acceptor {
    pub(super) listener: TcpListener,
    name: &'static str,
    max: usize,
    metrics: ListenerMetrics,
    failure_logged: Option<Instant>,
    limit_logged: Option<Instant>,
}

impl Acceptor {
    pub(super) fn new(
        listener: TcpListener,
        name: &'static str,
        max: usize,
        metrics: &Metrics,
    ) -> Self {
        let metrics = metrics.listener(name);
        metrics.allows(max);
        Self { listener, name, max, metrics, failure_logged: None, limit_logged: None }
    }

    pub(super) async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        let mut pause = PAUSE_MIN;
        loop {
            let error = match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            // A client gave up before it was accepted: that does not concern the next one.
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
            ) {
                continue;
            }
            self.metrics.accept_failed();
            if is_due(&mut self.failure_logged) {
                tracing::error!(
                    listener = self.name,
                    error = &error as &dyn std::error::Error,
                    "cannot accept connections; trying again, at least once a second"
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Records that a connection was closed because there are too many.
    pub(super) fn closed_one(&mut self, consequence: &str) {
        self.metrics.limited();
        if is_due(&mut self.limit_logged) {
            tracing::warn!(
                listener = self.name,
                max = self.max,
                "too many connections: {consequence}"
            );
        }
    }

    pub(super) fn connection(&self, stream: TcpStream, limit: Limit) -> Connection {
        Connection::new(stream, limit, self.metrics.clone())
    }
}
