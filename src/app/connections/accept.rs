//! Accepts connections from one listener, also after accepts that fail.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

use super::connection::{Connection, Counted, Limit};
use crate::{
    telemetry::{ListenerMetrics, Metrics},
    tls::{ServerTls, Stream},
};

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
    /// While accepting fails: when to try again, and how long to wait after the next failure.
    retry_at: Option<Instant>,
    pause: Duration,
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
        let (retry_at, pause) = (None, PAUSE_MIN);
        let (failure_logged, limit_logged) = (None, None);
        Self { listener, name, max, metrics, retry_at, pause, failure_logged, limit_logged }
    }

    /// Dropping the future loses no connection, and keeps the pause after a failure.
    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Some(at) = self.retry_at {
                tokio::time::sleep_until(at).await;
                self.retry_at = None;
            }
            let error = match self.listener.accept().await {
                Ok(accepted) => {
                    self.pause = PAUSE_MIN;
                    return accepted;
                }
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
            self.retry_at = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(PAUSE_MAX);
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
}

/// The connections to one listener, each after its handshake if the listener uses TLS. A client that is slow with its
/// handshake keeps no other one waiting.
pub(super) struct Incoming {
    pub(super) acceptor: Acceptor,
    tls: Option<ServerTls>,
    /// Each counts towards the limit of connections.
    handshakes: JoinSet<Option<(Connection, SocketAddr)>>,
}

impl Incoming {
    pub(super) fn new(acceptor: Acceptor, tls: Option<ServerTls>) -> Self {
        Self { acceptor, tls, handshakes: JoinSet::new() }
    }

    /// The next connection. `admit` returns how one that was accepted is limited; without a limit it is closed.
    pub(super) async fn next(
        &mut self,
        mut admit: impl FnMut(&mut Acceptor) -> Option<Limit>,
    ) -> (Connection, SocketAddr) {
        loop {
            tokio::select! {
                Some(ended) = self.handshakes.join_next() => {
                    match ended {
                        Ok(Some(connection)) => return connection,
                        Ok(None) => {}
                        Err(error) => {
                            let error = &error as &dyn std::error::Error;
                            tracing::error!(error, "a TLS handshake panicked: its connection is closed");
                        }
                    }
                }
                (stream, address) = self.acceptor.accept() => {
                    let Some(limit) = admit(&mut self.acceptor) else { continue };
                    if let Some(connection) = self.begin(stream, address, limit) {
                        return connection;
                    }
                }
            }
        }
    }

    /// A connection that was accepted: returned at once, or after its handshake.
    fn begin(
        &mut self,
        stream: TcpStream,
        address: SocketAddr,
        limit: Limit,
    ) -> Option<(Connection, SocketAddr)> {
        // Without it calls are slower, but correct.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot set TCP_NODELAY");
        }
        let (name, metrics) = (self.acceptor.name, self.acceptor.metrics.clone());
        let counted = Counted::new(metrics.clone());
        let Some(tls) = self.tls.clone() else {
            let stream = Stream::Plain(stream);
            return Some((Connection::new(stream, limit, counted), address));
        };
        let accepted = Accepted { stream, address, limit, counted };
        self.handshakes.spawn(async move {
            let failed = |error: io::Error| {
                metrics.handshake_failed();
                let error = &error as &dyn std::error::Error;
                tracing::debug!(listener = name, client = %address, error, "a TLS handshake failed");
            };
            accepted.handshake(&tls).await.map_err(failed).ok()
        });
        None
    }
}

/// A connection before its handshake.
struct Accepted {
    stream: TcpStream,
    address: SocketAddr,
    limit: Limit,
    counted: Counted,
}

impl Accepted {
    async fn handshake(mut self, tls: &ServerTls) -> io::Result<(Connection, SocketAddr)> {
        let stream = tokio::select! {
            stream = tls.accept(self.stream) => stream?,
            () = self.limit.exceeded() => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        // It begins now: the handshake had a limit of its own.
        self.limit.begin();
        Ok((Connection::new(stream, self.limit, self.counted), self.address))
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::tls::{ClientAuth, self_signed};

    #[tokio::test]
    async fn handshake_ends_when_its_connection_is_the_oldest_of_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let identity = self_signed(dir.path());
        let tls = ServerTls::load(identity, ClientAuth::None, None, "http/1.1").unwrap();
        let metrics = Metrics::new().unwrap().listener("http");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, address) = listener.accept().await.unwrap();
        let token = CancellationToken::new();
        let closed = Box::pin(token.clone().cancelled_owned());
        let limit = Limit::Oldest { closed, _ended: CancellationToken::new().drop_guard() };
        let accepted = Accepted { stream, address, limit, counted: Counted::new(metrics) };
        token.cancel();
        let ended = accepted.handshake(&tls).await.err().unwrap();
        // Not the limit of the time.
        assert_eq!(ended.kind(), io::ErrorKind::ConnectionAborted);
    }
}
