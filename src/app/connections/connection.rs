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
    time::{Instant, Sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::write_delay::WriteDelay;
use crate::{
    telemetry::ListenerMetrics,
    tls::{Peer, Stream},
};

/// What an HTTP/2 client sends first, and how long it may take to, from the acceptance of its connection.
const PREFACE_BYTES: usize = 24;
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than this, no connection lasts: a timer takes no more than about two years.
const LIFETIME_MAX: Duration = Duration::from_hours(365 * 24);

/// How a connection is counted, and what may end it before its client does.
pub(super) enum Limit {
    /// It holds one of the permits.
    Permit { lifetime: Lifetime, _permit: OwnedSemaphorePermit },
    /// It is ended when it is the oldest one and there are too many.
    Oldest { closed: Pin<Box<WaitForCancellationFutureOwned>>, _ended: DropGuard },
}

/// When a connection ends even if its client does not end it: first at the limit of the preface, then some time after the
/// certificate of its client has expired.
pub(super) struct Lifetime {
    missing_bytes: usize,
    end: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Lifetime {
    /// Of a connection that is accepted now.
    pub(super) fn begin() -> Self {
        let timer = Some(Box::pin(tokio::time::sleep(PREFACE_TIMEOUT)));
        Self { missing_bytes: PREFACE_BYTES, end: None, timer }
    }

    /// It ends after this time.
    fn end_after(&mut self, left: Duration) {
        self.end = Some(Instant::now() + left.min(LIFETIME_MAX));
    }

    fn received(&mut self, bytes: usize) {
        if self.missing_bytes == 0 {
            return;
        }
        self.missing_bytes = self.missing_bytes.saturating_sub(bytes);
        if self.missing_bytes > 0 {
            return;
        }
        match (self.end, &mut self.timer) {
            (Some(end), Some(timer)) => timer.as_mut().reset(end),
            (None, timer) => *timer = None,
            (Some(_), None) => {}
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(context))
    }
}

impl Limit {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let (exceeded, error) = match self {
            Self::Permit { lifetime, .. } => (lifetime.poll(context), io::ErrorKind::TimedOut),
            Self::Oldest { closed, .. } => {
                (closed.as_mut().poll(context), io::ErrorKind::ConnectionAborted)
            }
        };
        if exceeded.is_ready() { Err(error.into()) } else { Ok(()) }
    }

    fn received(&mut self, bytes: usize) {
        if let Self::Permit { lifetime, .. } = self {
            lifetime.received(bytes);
        }
    }

    fn end_after(&mut self, left: Duration) {
        if let Self::Permit { lifetime, .. } = self {
            lifetime.end_after(left);
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
    /// Cancelled when it has ended.
    ended: CancellationToken,
    _ended: DropGuard,
    _counted: Counted,
}

impl Connection {
    pub(super) fn new(stream: Stream, limit: Limit, counted: Counted) -> Self {
        let (write_delay, ended) = (WriteDelay::default(), CancellationToken::new());
        let _ended = ended.clone().drop_guard();
        Self { stream, limit, write_delay, ended, _ended, _counted: counted }
    }

    /// How long the certificate of its client is valid from now on, if it presented one.
    pub(super) fn certificate_left(&self) -> Option<Duration> {
        self.stream.peer_certificate_left()
    }

    /// It ends after this time, also with calls in progress.
    pub(super) fn end_after(&mut self, left: Duration) {
        self.limit.end_after(left);
    }

    /// Cancelled when it has ended.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
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
    use std::{future::poll_fn, io::IoSlice, sync::Arc};

    use tokio::{
        net::{TcpListener, TcpStream},
        sync::Semaphore,
    };

    use super::*;
    use crate::telemetry::Metrics;

    const SECOND: Duration = Duration::from_secs(1);

    /// After which time a connection ends that has received this.
    fn lasts(certificate: Option<Duration>, received: usize) -> Option<Duration> {
        let begun = Instant::now();
        let mut lifetime = Lifetime::begin();
        certificate.into_iter().for_each(|left| lifetime.end_after(left));
        lifetime.received(received);
        lifetime.timer.map(|timer| timer.deadline() - begun)
    }

    #[tokio::test]
    async fn connection_ends_without_its_preface_or_after_the_certificate_of_its_client() {
        for (certificate, received, expected) in [
            (None, PREFACE_BYTES - 1, PREFACE_TIMEOUT),
            (Some(3600 * SECOND), 0, PREFACE_TIMEOUT),
            (Some(1800 * SECOND), 2 * PREFACE_BYTES, 1800 * SECOND),
            (Some(Duration::MAX), PREFACE_BYTES, LIFETIME_MAX),
        ] {
            let found = lasts(certificate, received).unwrap();
            let (at_least, less_than) = (expected, expected + 600 * SECOND);
            assert!((at_least..less_than).contains(&found), "{found:?}, not {expected:?}");
        }
        assert_eq!(lasts(None, PREFACE_BYTES), None);
    }

    #[tokio::test]
    async fn connection_whose_time_is_over_fails() {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let mut lifetime = Lifetime::begin();
        lifetime.end_after(Duration::ZERO);
        let mut limit = Limit::Permit { lifetime, _permit: permit };
        limit.received(PREFACE_BYTES);
        let ended = poll_fn(|context| match limit.check(context) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error.kind()),
        });
        assert_eq!(ended.await, io::ErrorKind::TimedOut);
    }

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
