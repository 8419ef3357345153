//! Accepts connections from one listener, also after accepts that fail.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
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
/// A younger handshake is not ended for another connection: otherwise a client that opens many connections would end those of
/// others, which finish theirs within some round trips.
const HANDSHAKE_AGE_MIN: Duration = Duration::from_secs(1);

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
    handshakes: Handshakes,
}

impl Incoming {
    pub(super) fn new(acceptor: Acceptor, tls: Option<ServerTls>) -> Self {
        Self { acceptor, tls, handshakes: Handshakes::default() }
    }

    /// The next connection. `admit` returns how one that was accepted is limited; without a limit it is closed.
    pub(super) async fn next(
        &mut self,
        mut admit: impl FnMut(&mut Acceptor, &mut Handshakes) -> Option<Limit>,
    ) -> (Connection, SocketAddr) {
        loop {
            tokio::select! {
                Some(ended) = self.handshakes.tasks.join_next() => {
                    match ended {
                        Ok(Some(connection)) => return connection,
                        Ok(None) => {}
                        Err(error) if error.is_cancelled() => {}
                        Err(error) => {
                            let error = &error as &dyn std::error::Error;
                            tracing::error!(error, "a TLS handshake panicked: its connection is closed");
                        }
                    }
                }
                (stream, address) = self.acceptor.accept() => {
                    let limit = admit(&mut self.acceptor, &mut self.handshakes);
                    let Some(limit) = limit else { continue };
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
        self.handshakes.begin(limit, async move |place| {
            let failed = |error: io::Error| {
                metrics.handshake_failed();
                let error = &error as &dyn std::error::Error;
                tracing::debug!(listener = name, client = %address, error, "a TLS handshake failed");
            };
            let stream = tls.accept(stream).await.map_err(failed).ok()?;
            Some((Connection::new(stream, place.take()?, counted), address))
        });
        None
    }
}

/// The place of a connection at its listener, while its handshake is not finished.
#[derive(Clone)]
struct Place(Arc<Mutex<Option<Limit>>>);

impl Place {
    /// Nothing if it was given to another connection.
    fn take(&self) -> Option<Limit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_taken(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

/// Handshakes that are not finished. Each has a place at the listener, as its connection has afterwards. After
/// [`HANDSHAKE_AGE_MIN`] it loses that if another connection needs it: clients that finish no handshake keep no others out.
#[derive(Default)]
pub(super) struct Handshakes {
    tasks: JoinSet<Option<(Connection, SocketAddr)>>,
    /// The oldest first; also some that have ended.
    begun: VecDeque<Handshake>,
}

struct Handshake {
    at: Instant,
    place: Place,
    task: AbortHandle,
}

impl Handshakes {
    fn begin<F>(&mut self, limit: Limit, handshake: impl FnOnce(Place) -> F)
    where
        F: Future<Output = Option<(Connection, SocketAddr)>> + Send + 'static,
    {
        // An entry holds the memory of its task. All that have ended are removed when they are the most.
        if self.begun.len() > 2 * self.tasks.len() + 64 {
            self.begun.retain(|it| !it.place.is_taken() && !it.task.is_finished());
        }
        let place = Place(Arc::new(Mutex::new(Some(limit))));
        let task = self.tasks.spawn(handshake(place.clone()));
        self.begun.push_back(Handshake { at: Instant::now(), place, task });
    }

    /// Ends the oldest one, so that its place is free. False if none is old enough at this time.
    pub(super) fn end_oldest(&mut self, acceptor: &mut Acceptor, now: Instant) -> bool {
        let is_old = |it: &mut Handshake| now.duration_since(it.at) >= HANDSHAKE_AGE_MIN;
        while let Some(Handshake { place, task, .. }) = self.begun.pop_front_if(is_old) {
            if task.is_finished() {
                continue;
            }
            if let Some(limit) = place.take() {
                task.abort();
                drop(limit);
                acceptor.metrics.handshake_failed();
                acceptor.closed_one("the oldest TLS handshake is ended for each new one");
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

    use super::{super::connection::Lifetime, *};

    fn limit(permit: OwnedSemaphorePermit) -> Limit {
        Limit::Permit { lifetime: Lifetime::begin(), _permit: permit }
    }

    #[tokio::test]
    async fn oldest_handshake_gives_its_place_and_a_young_or_a_finished_one_does_not() {
        let metrics = Metrics::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut acceptor = Acceptor::new(listener, "grpc", 3, &metrics);
        let permits = Arc::new(Semaphore::new(3));
        let mut handshakes = Handshakes::default();
        let (finish, finished) = oneshot::channel();
        let permit = || permits.clone().try_acquire_owned();
        handshakes.begin(limit(permit().unwrap()), async move |place| {
            finish.send(place.take().unwrap()).ok().unwrap();
            std::future::pending().await
        });
        let connection = finished.await.unwrap();
        for _ in 0..2 {
            handshakes.begin(limit(permit().unwrap()), async |_| std::future::pending().await);
        }
        let begun = handshakes.begun.back().unwrap().at;
        let almost = handshakes.begun.front().unwrap().at + HANDSHAKE_AGE_MIN;
        let almost = almost - Duration::from_millis(1);
        assert!(!handshakes.end_oldest(&mut acceptor, almost), "it ends a young one");
        for free in [1, 2] {
            assert!(handshakes.end_oldest(&mut acceptor, begun + HANDSHAKE_AGE_MIN));
            assert_eq!(permits.available_permits(), free);
        }
        let ended = handshakes.end_oldest(&mut acceptor, begun + 60 * HANDSHAKE_AGE_MIN);
        assert!(!ended, "it ends the one that is finished");
        drop(connection);
    }
}
