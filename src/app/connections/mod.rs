//! Connections of clients: how many there may be by the settings and the descriptor limit of this process, and what
//! happens to one too many.
//!
//! Must never: try again at once after an accept that failed, or let slow clients keep health from answering.

mod accept;
mod connection;
mod listen;
mod serve;
mod write_delay;

use std::{collections::VecDeque, io, net::SocketAddr, sync::Arc};

use anyhow::ensure;
use futures_util::{Stream, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{net::TcpListener, sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

pub(crate) use self::listen::listen;
pub(super) use self::serve::Serve;
use self::{
    accept::{Acceptor, Handshakes, Incoming},
    connection::{Connection, Lifetime, Limit},
};
use crate::{config::Config, telemetry::Metrics, tls::ServerTls};

/// The most connections to the HTTP listener: one more ends the oldest.
const HTTP_CONNECTIONS_MAX: usize = 64;

/// Descriptors that are not for gRPC connections nor for Postgres: those of HTTP, connections to Redis, logs, the
/// runtime's own. Each partition's consumer has one more.
const RESERVED_DESCRIPTORS: u64 = 112;

/// Raises the soft limit of descriptors to the hard one, which is as high as a process may go by itself. If that fails,
/// the limit stays as it was.
pub(crate) fn raise_descriptor_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// How many gRPC connections there may be: the setting, or what the descriptor limit leaves after the connections to
/// Postgres. Fails when it leaves none.
pub(crate) fn connections_max(config: &Config) -> anyhow::Result<usize> {
    let setting = u64::from(config.connections_max);
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let reserved = RESERVED_DESCRIPTORS
        + u64::from(config.partitions.get())
        + u64::from(config.ledger_connections());
    ensure!(
        limit > reserved,
        "this process may open {limit} files, and needs {reserved} before it can accept a connection: \
         raise the limit (ulimit -n, LimitNOFILE)"
    );
    let left = limit - reserved;
    if left < setting {
        tracing::warn!(
            "at most {left} connections instead of connections_max = {setting}: this process may open \
             {limit} files and keeps {reserved} for itself; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
    Ok(usize::try_from(left.min(setting))?)
}

/// Connections to gRPC, `max` at the same time; one more ends the oldest TLS handshake that does not finish. If there is
/// none, it is closed at once, so that its client can try another process.
pub(super) fn grpc(
    listener: TcpListener,
    tls: Option<ServerTls>,
    max: usize,
    metrics: &Metrics,
) -> impl Stream<Item = Connection> + use<> {
    let permits = Arc::new(Semaphore::new(max));
    let incoming = Incoming::new(Acceptor::new(listener, "grpc", max, metrics), tls);
    stream::unfold((incoming, permits), move |(mut incoming, permits)| async move {
        let admit = |acceptor: &mut Acceptor, handshakes: &mut Handshakes| {
            let mut permit = permits.clone().try_acquire_owned();
            if permit.is_err() && handshakes.end_oldest(acceptor, Instant::now()) {
                permit = permits.clone().try_acquire_owned();
            }
            if permit.is_err() {
                acceptor.closed_one("new ones are closed (connections_max)");
            }
            let lifetime = Lifetime::begin();
            permit.ok().map(|permit| Limit::Permit { lifetime, _permit: permit })
        };
        let (connection, _) = incoming.next(admit).await;
        Some((connection, (incoming, permits)))
    })
}

/// Connections to HTTP, [`HTTP_CONNECTIONS_MAX`] at the same time; one more ends the oldest, so that a client that holds connections and sends nothing cannot keep others from asking
/// whether this process is ready.
pub(super) struct HttpListener {
    incoming: Incoming,
    /// The oldest first; each is cancelled when it has ended.
    open: VecDeque<CancellationToken>,
}

impl HttpListener {
    pub(super) fn new(listener: TcpListener, tls: Option<ServerTls>, metrics: &Metrics) -> Self {
        let acceptor = Acceptor::new(listener, "http", HTTP_CONNECTIONS_MAX, metrics);
        Self { incoming: Incoming::new(acceptor, tls), open: VecDeque::new() }
    }
}

impl axum::serve::Listener for HttpListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let open = &mut self.open;
        let admit = |acceptor: &mut Acceptor, _: &mut Handshakes| {
            open.retain(|connection| !connection.is_cancelled());
            if open.len() >= HTTP_CONNECTIONS_MAX
                && let Some(oldest) = open.pop_front()
            {
                oldest.cancel();
                acceptor.closed_one("the oldest is closed for each new one");
            }
            let token = CancellationToken::new();
            open.push_back(token.clone());
            let closed = Box::pin(token.clone().cancelled_owned());
            Some(Limit::Oldest { closed, _ended: token.drop_guard() })
        };
        self.incoming.next(admit).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.incoming.acceptor.listener.local_addr()
    }
}
