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

/// Delays a write until the tasks that are ready have run. Each answer wakes its connection at once, which would write it
/// alone; after the delay the other answers of the same batch are there, and one write sends them all.
#[derive(Default)]
struct WriteDelay {
    /// The bytes that were to be written when the wait began.
    bytes_before: Option<usize>,
    /// How many waits in a row brought no further bytes.
    without_gain: u8,
    /// How many more writes do not wait, after too many waits that brought no bytes: this client makes
    /// one call at a time.
    immediate_writes: u8,
}

const WAITS_WITHOUT_GAIN_MAX: u8 = 4;
const IMMEDIATE_WRITES: u8 = 16;

impl WriteDelay {
    fn poll(&mut self, context: &mut Context<'_>, bytes: usize) -> Poll<()> {
        match self.bytes_before.take() {
            Some(before) if bytes == before && self.without_gain + 1 >= WAITS_WITHOUT_GAIN_MAX => {
                self.immediate_writes = IMMEDIATE_WRITES;
            }
            Some(before) if bytes == before => self.without_gain += 1,
            Some(_) => self.without_gain = 0,
            None if self.immediate_writes > 0 => self.immediate_writes -= 1,
            None => {
                self.bytes_before = Some(bytes);
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

pub(crate) struct Connection {
    stream: TcpStream,
    limit: Limit,
    metrics: ListenerMetrics,
    write_delay: WriteDelay,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, limit: Limit, metrics: ListenerMetrics) -> Self {
        metrics.opened();
        Self { stream, limit, metrics, write_delay: WriteDelay::default() }
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
        ready!(self.write_delay.poll(context, bytes.len()));
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
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        ready!(self.write_delay.poll(context, bytes));
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Whether each of these writes, by its bytes, may be made.
    fn writes(bytes: &[usize]) -> Vec<bool> {
        let (mut delay, mut context) = (WriteDelay::default(), Context::from_waker(Waker::noop()));
        bytes.iter().map(|bytes| delay.poll(&mut context, *bytes).is_ready()).collect()
    }

    #[test]
    fn write_waits_for_one_turn_while_that_brings_more_answers() {
        assert_eq!(writes(&[10, 30, 20, 25]), [false, true, false, true]);
    }

    #[test]
    fn writes_do_not_wait_for_some_time_after_waits_without_gain() {
        let (waits, free) = (usize::from(WAITS_WITHOUT_GAIN_MAX), usize::from(IMMEDIATE_WRITES));
        let mut expected = [false, true].repeat(waits);
        expected.extend(vec![true; free]);
        // Then one wait decides.
        expected.extend([false, true, true]);
        assert_eq!(writes(&vec![10; expected.len()]), expected);
    }
}
