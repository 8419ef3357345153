//! One connection of a client, which ends by itself when it exceeds a limit.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::Sleep,
};
use tokio_util::sync::{DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::write_delay::WriteDelay;
use crate::{
    telemetry::ListenerMetrics,
    tls::{Peer, Stream},
};

/// What an HTTP/2 client sends first, and how long it may take to.
const PREFACE_BYTES: usize = 24;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// How a connection is counted, and what may end it before its client does.
pub(super) enum Limit {
    /// It holds one of the permits.
    Permit { preface: Option<Preface>, _permit: OwnedSemaphorePermit },
    /// It is ended when it is the oldest one and there are too many.
    Oldest { closed: Pin<Box<WaitForCancellationFutureOwned>>, _ended: DropGuard },
}

/// The first bytes of an HTTP/2 client, as long as some are missing.
pub(super) struct Preface {
    missing_bytes: usize,
    timeout: Pin<Box<Sleep>>,
}

impl Preface {
    pub(super) fn expected() -> Self {
        let timeout = Box::pin(tokio::time::sleep(PREFACE_TIMEOUT));
        Self { missing_bytes: PREFACE_BYTES, timeout }
    }
}

impl Limit {
    /// Ends when a handshake must not go on, because the connection is the oldest of too many.
    pub(super) async fn exceeded(&mut self) {
        match self {
            // The handshake has a limit of its own, and the preface is expected after it.
            Self::Permit { .. } => std::future::pending().await,
            Self::Oldest { closed, .. } => closed.as_mut().await,
        }
    }

    /// The limit of the preface counts from now.
    pub(super) fn begin(&mut self) {
        if let Self::Permit { preface: Some(preface), .. } = self {
            *preface = Preface::expected();
        }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let (exceeded, error) = match self {
            Self::Permit { preface: None, .. } => return Ok(()),
            Self::Permit { preface: Some(preface), .. } => {
                (preface.timeout.as_mut().poll(context), io::ErrorKind::TimedOut)
            }
            Self::Oldest { closed, .. } => {
                (closed.as_mut().poll(context), io::ErrorKind::ConnectionAborted)
            }
        };
        if exceeded.is_ready() { Err(error.into()) } else { Ok(()) }
    }

    fn received(&mut self, bytes: usize) {
        if let Self::Permit { preface, .. } = self
            && let Some(expected) = preface
        {
            expected.missing_bytes = expected.missing_bytes.saturating_sub(bytes);
            if expected.missing_bytes == 0 {
                *preface = None;
            }
        }
    }
}

/// Counts a connection as open, from its acceptance to its end.
pub(super) struct Counted(ListenerMetrics);

impl Counted {
    pub(super) fn new(metrics: ListenerMetrics) -> Self {
        metrics.opened();
        Self(metrics)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.ended();
    }
}

pub(crate) struct Connection {
    stream: Stream,
    limit: Limit,
    write_delay: WriteDelay,
    _counted: Counted,
}

impl Connection {
    pub(super) fn new(stream: Stream, limit: Limit, counted: Counted) -> Self {
        Self { stream, limit, write_delay: WriteDelay::default(), _counted: counted }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let address = self.stream.tcp().peer_addr().ok();
        Peer { address, certificate_names: self.stream.peer_certificate_names() }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.limit.check(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let bytes = buffer.filled().len() - before;
        self.limit.received(bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.limit.check(context)?;
        ready!(self.write_delay.poll(context, bytes.len()));
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    // With TLS, what was written waits in a buffer, so a client that does not read holds up these two as well.

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.limit.check(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.limit.check(context)?;
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
        self.limit.check(context)?;
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        ready!(self.write_delay.poll(context, bytes));
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::IoSlice};

    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::telemetry::Metrics;

    #[tokio::test]
    async fn every_operation_of_a_connection_fails_when_its_limit_is_exceeded() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (token, ended) = (CancellationToken::new(), CancellationToken::new());
        let closed = Box::pin(token.clone().cancelled_owned());
        let limit = Limit::Oldest { closed, _ended: ended.drop_guard() };
        let counted = Counted::new(Metrics::new().unwrap().listener("http"));
        let mut connection = Connection::new(Stream::Plain(stream), limit, counted);
        token.cancel();
        let ends = poll_fn(|context| {
            let (mut bytes, slices) = ([0; 1], [IoSlice::new(b"x")]);
            let read = Pin::new(&mut connection).poll_read(context, &mut ReadBuf::new(&mut bytes));
            let write = Pin::new(&mut connection).poll_write(context, b"x").map_ok(drop);
            let vectored = Pin::new(&mut connection).poll_write_vectored(context, &slices);
            let flush = Pin::new(&mut connection).poll_flush(context);
            let shutdown = Pin::new(&mut connection).poll_shutdown(context);
            Poll::Ready([read, write, vectored.map_ok(drop), flush, shutdown])
        });
        for end in ends.await {
            let Poll::Ready(Err(error)) = end else { panic!("it goes on: {end:?}") };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        }
    }
}
