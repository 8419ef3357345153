//! A connection to the service, which is made again whenever it ends.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{Reason, client};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{
    caller::Shared,
    plan::{LoadError, Plan},
    report::ConnectionCounts,
};
use crate::tls::Stream;

/// Begins calls on one connection.
pub(super) type Sender = client::SendRequest<Bytes>;
type Driver = client::Connection<Stream, Bytes>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The wait after an attempt that failed; it doubles up to the other.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(50);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
/// Answers are small: the service never waits for permission to send one.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// The service, as it is connected to.
#[derive(Debug, Clone)]
pub(super) struct Target {
    addresses: Arc<[SocketAddr]>,
    /// The name that its certificate must have.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// `host:port`, as it is sent in each call.
    pub(super) authority: Arc<str>,
}

impl Target {
    /// Resolves the name, once for a run.
    pub(super) async fn resolve(plan: &Plan) -> Result<Self, LoadError> {
        let target = &plan.target;
        let schemes = ["http://", "https://"].into_iter();
        let address = schemes.filter_map(|scheme| target.strip_prefix(scheme)).next();
        let authority = address.unwrap_or(target).trim_end_matches('/');
        let invalid = |source| LoadError::InvalidAddress { target: target.clone(), source };
        let found = tokio::net::lookup_host(authority).await.map_err(invalid)?;
        let addresses: Arc<[SocketAddr]> = found.collect();
        if addresses.is_empty() {
            return Err(invalid(io::Error::from(io::ErrorKind::NotFound)));
        }
        let tls = match &plan.tls {
            None => None,
            Some(tls) => {
                let host = authority.rsplit_once(':').map_or(authority, |(host, _port)| host);
                let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(name)
                    .map_err(|error| invalid(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
                let config = Arc::new(tls.config(Some("h2"))?);
                Some((config, name))
            }
        };
        Ok(Self { addresses, tls, authority: authority.into() })
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Fails if the service cannot be reached now.
    pub(super) async fn probe(&self) -> Result<(), LoadError> {
        let unreachable = |error: io::Error| LoadError::Unreachable {
            target: self.authority.to_string(),
            problem: error.to_string(),
        };
        self.open().await.map(drop).map_err(unreachable)
    }

    async fn open(&self) -> io::Result<Stream> {
        let open = async {
            let stream = TcpStream::connect(&*self.addresses).await?;
            stream.set_nodelay(true)?;
            let Some((config, name)) = &self.tls else { return Ok(Stream::Plain(stream)) };
            let connector = TlsConnector::from(config.clone());
            let stream = connector.connect(name.clone(), stream).await?;
            Ok(Stream::Tls(Box::new(stream.into())))
        };
        let opened = timeout(CONNECT_TIMEOUT, open).await;
        opened.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Opens a connection. The service has not answered on it yet.
    pub(super) async fn connect(&self) -> io::Result<(Sender, Driver)> {
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .enable_push(false);
        builder.handshake(self.open().await?).await.map_err(io::Error::other)
    }
}

/// Keeps one connection until `ended`, beginning with the result of the first attempt. `current` has its sender while there
/// is one.
pub(super) async fn keep_connected(
    shared: Arc<Shared>,
    first: io::Result<(Sender, Driver)>,
    current: watch::Sender<Option<Sender>>,
    ended: CancellationToken,
) {
    let (mut attempt, mut delay) = (first, RETRY_DELAY_MIN);
    loop {
        let since = Instant::now();
        match attempt {
            Ok((sender, driver)) => {
                shared.recorder().connections.made += 1;
                current.send_replace(Some(sender));
                let Some(end) = ended.run_until_cancelled(driver).await else { return };
                current.send_replace(None);
                count_end(&end, &mut shared.recorder().connections);
            }
            Err(_) => shared.recorder().connections.failed += 1,
        }
        // A service that closes each connection at once is not asked for another one at once.
        let lasted = since.elapsed() > RETRY_DELAY_MAX;
        let pause = if lasted { Duration::ZERO } else { delay };
        delay = if lasted { RETRY_DELAY_MIN } else { (delay * 2).min(RETRY_DELAY_MAX) };
        let again = async {
            tokio::time::sleep(pause).await;
            shared.target.connect().await
        };
        match ended.run_until_cancelled(again).await {
            Some(next) => attempt = next,
            None => return,
        }
    }
}

fn count_end(end: &Result<(), h2::Error>, counts: &mut ConnectionCounts) {
    match end {
        Ok(()) => counts.closed += 1,
        Err(error) if error.is_go_away() && error.reason() == Some(Reason::NO_ERROR) => {
            counts.closed += 1;
        }
        Err(_) => counts.lost += 1,
    }
}
