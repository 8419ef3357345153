//! One connection of a client, which ends by itself when it exceeds a limit.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::Sleep,
};
use tokio_util::sync::{DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::telemetry::ListenerMetrics;

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

pub(crate) struct Connection {
    stream: TcpStream,
    limit: Limit,
    metrics: ListenerMetrics,
    /// Whether the next write has waited for its turn.
    may_write: bool,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, limit: Limit, metrics: ListenerMetrics) -> Self {
        metrics.opened();
        Self { stream, limit, metrics, may_write: false }
    }

    /// Lets the tasks that are ready run before each write. Every answer wakes its connection at once, which would
    /// write it alone; after one turn, the other answers of the same batch are there, and one write sends them all.
    fn wait_for_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.may_write = !self.may_write;
        if self.may_write {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
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
        ready!(self.wait_for_turn(context));
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
        self.limit.check(context)?;
        ready!(self.wait_for_turn(context));
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}
