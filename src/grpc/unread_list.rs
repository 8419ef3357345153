//! A list of an answer, given to its connection in chunks.
//!
//! Must never: give a chunk before those before it are written.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::Bytes;
use hyper::body::Frame;
use tonic::{Status, body::Body, codegen::Body as _};

use super::unread::lock;

/// How much of a list its connection has at most: what a call can hold after its list is dropped.
pub(super) const CHUNK_BYTES: usize = 8 * 1024;
const CHUNKS_MAX: usize = 2;

pub(super) type Item = Result<Frame<Bytes>, Status>;

/// What is left of a list.
pub(super) struct List {
    /// `None` if it was dropped.
    pub(super) rest: Option<Rest>,
    /// The chunks that the connection has not written.
    unwritten: usize,
    pub(super) progress_at: Instant,
    waker: Option<Waker>,
}

pub(super) struct Rest {
    data: Bytes,
    next: Option<Item>,
    body: Body,
}

impl List {
    pub(super) fn new(first: Item, body: Body) -> Self {
        let rest = Some(Rest { data: Bytes::new(), next: Some(first), body });
        Self { rest, unwritten: 0, progress_at: Instant::now(), waker: None }
    }

    /// The next chunk, when the connection has written those before it.
    pub(super) fn poll_frame(
        this: &Arc<Mutex<Self>>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Item>> {
        let mut list = lock(this);
        if list.unwritten >= CHUNKS_MAX {
            list.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let Some(rest) = &mut list.rest else {
            return Poll::Ready(Some(Err(Status::cancelled("the list was not read in time"))));
        };
        let polled = rest.poll_chunk(context);
        if polled.is_pending() {
            // The body wakes the call when it has more, but not if it is dropped.
            list.waker = Some(context.waker().clone());
        }
        let chunk = match ready!(polled) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            },
            end => return Poll::Ready(end),
        };
        list.unwritten += 1;
        // Copied: the rest of the list must not stay in memory because of a part of it.
        let chunk = Chunk { bytes: chunk.as_ref().into(), list: this.clone() };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(chunk)))))
    }

    fn written(&mut self) {
        self.unwritten -= 1;
        self.progress_at = Instant::now();
        self.wake();
    }

    /// Drops what is left. A call that waits for more of it ends.
    pub(super) fn drop_rest(&mut self) {
        self.rest = None;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Rest {
    /// The next frame; data is not longer than a chunk.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Item>> {
        if self.data.is_empty() {
            let next = match self.next.take() {
                Some(first) => Some(first),
                None => ready!(Pin::new(&mut self.body).poll_frame(context)),
            };
            match next.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.data = data,
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(status)) => return Poll::Ready(Some(Err(status))),
                None => return Poll::Ready(None),
            }
        }
        let length = self.data.len().min(CHUNK_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.data.split_to(length)))))
    }
}

/// A chunk that the connection has.
struct Chunk {
    bytes: Box<[u8]>,
    list: Arc<Mutex<List>>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        lock(&self.list).written();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        task::Wake,
    };

    use super::*;

    /// A body that has no more yet.
    struct Waiting;

    impl hyper::body::Body for Waiting {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Item>> {
            Poll::Pending
        }
    }

    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn call_that_waits_for_more_of_its_list_ends_when_that_is_dropped() {
        let waiting = List::new(Ok(Frame::data(Bytes::from_static(b"x"))), Body::new(Waiting));
        let waiting = Arc::new(Mutex::new(waiting));
        let woken = Arc::new(Woken(false.into()));
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        assert!(matches!(List::poll_frame(&waiting, &mut context), Poll::Ready(Some(Ok(_)))));
        assert!(List::poll_frame(&waiting, &mut context).is_pending());
        lock(&waiting).drop_rest();
        assert!(woken.0.load(Ordering::Relaxed), "nothing polls it again");
        assert!(matches!(List::poll_frame(&waiting, &mut context), Poll::Ready(Some(Err(_)))));
    }
}
