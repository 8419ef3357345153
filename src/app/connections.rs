//! Connections of clients: how many there may be, and what happens to one too many.
//!
//! Must never: try again at once after an accept that failed, or let slow clients keep health from answering.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use anyhow::ensure;
use futures_util::{Stream, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{
    config::Config,
    domain::PartitionCount,
    telemetry::{ListenerMetrics, Metrics},
};

/// Most connections to the HTTP listener: one more ends the oldest.
const HTTP_CONNECTIONS_MAX: usize = 64;
/// Descriptors that are not for gRPC connections nor for Postgres: those of HTTP, connections to Redis, logs, the
/// runtime's own. Each partition's consumer has one more.
const RESERVED_DESCRIPTORS: u64 = 112;
/// Between two attempts to accept, while that fails.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Between two log lines about the same condition.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// What an HTTP/2 client sends first, and how long it may take to.
const PREFACE_BYTES: usize = 24;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Raises the soft limit of descriptors to the hard one, which is as high as a process may go by itself.
///
/// # Errors
///
/// When the operating system refuses; the limit stays as it was.
pub(crate) fn raise_descriptor_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// How many gRPC connections there may be: `connections_max`, or what the descriptor limit leaves beside `ledger`
/// connections to Postgres.
///
/// # Errors
///
/// When it leaves none.
pub(super) fn connections_max(
    setting: u32,
    partitions: PartitionCount,
    ledger: u32,
) -> anyhow::Result<usize> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let reserved = RESERVED_DESCRIPTORS + u64::from(partitions.get()) + u64::from(ledger);
    let left = limit.saturating_sub(reserved);
    ensure!(
        left > 0,
        "this process may open {limit} files, and needs {reserved} before it can accept a connection: \
         raise the limit (ulimit -n, LimitNOFILE)"
    );
    if left < u64::from(setting) {
        tracing::warn!(
            "at most {left} connections instead of connections_max = {setting}: this process may open \
             {limit} files and keeps {reserved} for itself; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
    Ok(usize::try_from(left.min(u64::from(setting)))?)
}

/// Refuses settings with which the descriptor limit of this process leaves no connection; connects to nothing.
///
/// # Errors
///
/// When it leaves none.
pub(crate) fn check_descriptor_limit(config: &Config) -> anyhow::Result<()> {
    let ledger = config.ledger_connections();
    connections_max(config.connections_max, config.partitions, ledger).map(drop)
}

/// Whether it is time for another log line about a condition.
#[derive(Default)]
struct LogLimit {
    last: Option<Instant>,
}

impl LogLimit {
    fn is_due(&mut self) -> bool {
        let due = self.last.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

/// Accepts from one listener; waits longer and longer while that fails.
struct Acceptor {
    listener: TcpListener,
    name: &'static str,
    metrics: ListenerMetrics,
    failure_log: LogLimit,
    limit_log: LogLimit,
}

impl Acceptor {
    fn new(listener: TcpListener, name: &'static str, metrics: &Metrics) -> Self {
        let metrics = metrics.listener(name);
        let (failure_log, limit_log) = (LogLimit::default(), LogLimit::default());
        Self { listener, name, metrics, failure_log, limit_log }
    }

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        let mut pause = PAUSE_MIN;
        loop {
            let error = match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => error,
            };
            // Of a client that gave up before it was accepted: the next one is not concerned.
            if matches!(
                error.kind(),
                io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
            ) {
                continue;
            }
            self.metrics.accept_failed();
            if self.failure_log.is_due() {
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

    /// A connection was closed because there are too many.
    fn limited(&mut self, max: usize, what: &str) {
        self.metrics.limited();
        if self.limit_log.is_due() {
            tracing::warn!(listener = self.name, max, "too many connections: {what}");
        }
    }

    fn connection(&self, stream: TcpStream, hold: Hold) -> Connection {
        self.metrics.opened();
        Connection { stream, hold, metrics: self.metrics.clone() }
    }
}

/// Connections to gRPC, `max` at the same time; one more is closed at once, so that its client can go
/// elsewhere.
pub(super) fn grpc(
    listener: TcpListener,
    max: usize,
    metrics: &Metrics,
) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let places = Arc::new(Semaphore::new(max));
    let acceptor = Acceptor::new(listener, "grpc", metrics);
    acceptor.metrics.allows(max);
    stream::unfold((acceptor, places), move |(mut acceptor, places)| async move {
        loop {
            let (stream, _) = acceptor.accept().await;
            let Ok(place) = places.clone().try_acquire_owned() else {
                acceptor.limited(max, "new ones are closed (connections_max)");
                continue;
            };
            // Costs latency where it fails, and nothing else.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(error = &error as &dyn std::error::Error, "no TCP_NODELAY");
            }
            let timeout = Box::pin(tokio::time::sleep(PREFACE_TIMEOUT));
            let preface = Some(Preface { unread: PREFACE_BYTES, timeout });
            let connection = acceptor.connection(stream, Hold::Place { preface, _place: place });
            return Some((Ok(connection), (acceptor, places)));
        }
    })
}

/// Connections to HTTP, [`HTTP_CONNECTIONS_MAX`] at the same time; one more ends the oldest: whoever holds
/// connections and does nothing with them keeps nobody from asking whether this process is ready.
pub(super) struct HttpListener {
    acceptor: Acceptor,
    /// The oldest first; cancelled when it has ended.
    open: VecDeque<CancellationToken>,
}

impl HttpListener {
    pub(super) fn new(listener: TcpListener, metrics: &Metrics) -> Self {
        let acceptor = Acceptor::new(listener, "http", metrics);
        acceptor.metrics.allows(HTTP_CONNECTIONS_MAX);
        Self { acceptor, open: VecDeque::new() }
    }
}

impl axum::serve::Listener for HttpListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (stream, address) = self.acceptor.accept().await;
        self.open.retain(|connection| !connection.is_cancelled());
        if self.open.len() >= HTTP_CONNECTIONS_MAX
            && let Some(oldest) = self.open.pop_front()
        {
            oldest.cancel();
            self.acceptor.limited(HTTP_CONNECTIONS_MAX, "the oldest is closed for each new one");
        }
        let token = CancellationToken::new();
        self.open.push_back(token.clone());
        let closed = Box::pin(token.clone().cancelled_owned());
        let hold = Hold::Oldest { closed, _ended: token.drop_guard() };
        (self.acceptor.connection(stream, hold), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.acceptor.listener.local_addr()
    }
}

/// What a connection holds until it ends, and what may end it before its client does.
enum Hold {
    /// One of so many places.
    Place { preface: Option<Preface>, _place: OwnedSemaphorePermit },
    /// A place that is taken away from the oldest.
    Oldest { closed: Pin<Box<WaitForCancellationFutureOwned>>, _ended: DropGuard },
}

/// What is missing before a connection has shown that there is a client behind it.
struct Preface {
    unread: usize,
    timeout: Pin<Box<Sleep>>,
}

impl Hold {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let (ended, why) = match self {
            Self::Place { preface: None, .. } => return Ok(()),
            Self::Place { preface: Some(preface), .. } => {
                (preface.timeout.as_mut().poll(context), io::ErrorKind::TimedOut)
            }
            Self::Oldest { closed, .. } => {
                (closed.as_mut().poll(context), io::ErrorKind::ConnectionAborted)
            }
        };
        if ended.is_ready() { Err(why.into()) } else { Ok(()) }
    }

    fn read(&mut self, bytes: usize) {
        if let Self::Place { preface, .. } = self
            && let Some(missing) = preface
        {
            missing.unread = missing.unread.saturating_sub(bytes);
            if missing.unread == 0 {
                *preface = None;
            }
        }
    }
}

/// A connection of a client.
pub(super) struct Connection {
    stream: TcpStream,
    hold: Hold,
    metrics: ListenerMetrics,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.ended();
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.hold.check(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let bytes = buffer.filled().len() - before;
        self.hold.read(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.hold.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.hold.check(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}
