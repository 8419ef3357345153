//! Limits the memory of lists that clients do not read.
//!
//! HTTP/2 lets a client make many calls and leave their answers unread. A list is given to its connection in chunks, as the
//! chunks before are written, and the rest of it counts. If the rests of all lists have too many bytes, those are dropped
//! that have made no progress for the longest time. Only their calls end, because a connection may be that of a proxy. What
//! is left is limited by `connections_max` and `connection_max_streams`, as are the answers of the other calls.
//!
//! Must never: drop a list whose client reads, or refuse one to an operator because of those of buyers.

use std::{
    cmp::Reverse,
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tonic::{
    Status,
    body::Body,
    codegen::{Body as _, http::Response},
};

use super::{error::ApiError, reason::Reason};

/// The most bytes of lists in a process, for buyers and for operators. The longest page has about 0.5 MiB and counts twice.
const BUYERS_BYTES_MAX: usize = 128 * 1024 * 1024;
const OPERATORS_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A list makes no progress if no chunk of it is written for this long.
const STALLED: Duration = Duration::from_secs(1);
/// How much of a list its connection has at most: what a call can hold after its list is dropped.
const CHUNK_BYTES: usize = 8 * 1024;
const CHUNKS_MAX: usize = 2;
/// What a list holds beside its bytes.
const LIST_BYTES: usize = 4 * 1024;
/// What a list holds that is read as its client reads: a page of products.
const PAGE_BYTES: usize = 512 * 1024;
/// Between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lists of this process; clones share them.
#[derive(Clone)]
pub(super) struct UnreadLists {
    buyers: Arc<Mutex<Lists>>,
    operators: Arc<Mutex<Lists>>,
}

impl UnreadLists {
    pub(super) fn new() -> Self {
        let lists = |bytes_max| Arc::new(Mutex::new(Lists::new(bytes_max)));
        Self { buyers: lists(BUYERS_BYTES_MAX), operators: lists(OPERATORS_BYTES_MAX) }
    }

    /// How the answer of a call of this method counts, if it is a list.
    pub(super) fn of(&self, method: &str) -> Option<UnreadList> {
        let (lists, page_bytes) = match method {
            "yoink.v1.InventoryService/ListProducts" => (&self.buyers, 0),
            "yoink.v1.StorefrontService/ListStorefront" => (&self.buyers, PAGE_BYTES),
            "yoink.v1.AdminService/ListReservations"
            | "yoink.v1.AdminService/ListDeadEntries"
            | "yoink.v1.AdminService/Audit" => (&self.operators, 0),
            _ => return None,
        };
        Some(UnreadList { lists: lists.clone(), page_bytes })
    }
}

/// A list that is not counted yet.
pub(super) struct UnreadList {
    lists: Arc<Mutex<Lists>>,
    page_bytes: usize,
}

impl UnreadList {
    /// The same answer, in chunks, while it is counted; an error if the lists have too many bytes.
    pub(super) async fn count(self, answer: Response<Body>) -> Result<Response<Body>, ApiError> {
        let (head, mut body) = answer.into_parts();
        // The first frame is there: it is the whole list, or the beginning of one that is read as its client reads.
        let Some(first) = body.frame().await else { return Ok(Response::from_parts(head, body)) };
        let length = first.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        // The buffer of a message may be twice as large as the message.
        let bytes = LIST_BYTES + 2 * length + self.page_bytes;
        let list = Arc::new(Mutex::new(List::new(first, body)));
        let id = lock(&self.lists).admit(list.clone(), bytes, Instant::now());
        let id = id.ok_or(Reason::Overloaded)?;
        let list = CountedList { lists: self.lists, id, list };
        let frames = stream::poll_fn(move |context| List::poll_frame(&list.list, context));
        Ok(Response::from_parts(head, Body::new(StreamBody::new(frames))))
    }
}

type Item = Result<Frame<Bytes>, Status>;

/// What is left of a list.
struct List {
    /// `None` if it was dropped.
    rest: Option<Rest>,
    /// The chunks that the connection has not written.
    unwritten: usize,
    progress_at: Instant,
    waker: Option<Waker>,
}

struct Rest {
    data: Bytes,
    next: Option<Item>,
    body: Body,
}

impl List {
    fn new(first: Item, body: Body) -> Self {
        let rest = Some(Rest { data: Bytes::new(), next: Some(first), body });
        Self { rest, unwritten: 0, progress_at: Instant::now(), waker: None }
    }

    /// The next chunk, when the connection has written those before it.
    fn poll_frame(this: &Arc<Mutex<Self>>, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let mut list = lock(this);
        if list.unwritten >= CHUNKS_MAX {
            list.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let Some(rest) = &mut list.rest else {
            return Poll::Ready(Some(Err(Status::cancelled("the list was not read in time"))));
        };
        let chunk = match ready!(rest.poll_chunk(context)) {
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

/// A list that counts until its answer ends.
struct CountedList {
    lists: Arc<Mutex<Lists>>,
    id: u64,
    list: Arc<Mutex<List>>,
}

impl Drop for CountedList {
    fn drop(&mut self) {
        lock(&self.lists).remove(self.id);
    }
}

/// The lists of one kind of caller, with their bytes.
struct Lists {
    bytes: usize,
    bytes_max: usize,
    lists: HashMap<u64, (usize, Arc<Mutex<List>>)>,
    next_id: u64,
    logged: Option<Instant>,
}

impl Lists {
    fn new(bytes_max: usize) -> Self {
        Self { bytes: 0, bytes_max, lists: HashMap::new(), next_id: 0, logged: None }
    }

    /// Counts a list, and drops others without progress if there are too many bytes otherwise. `None` if that is not enough.
    fn admit(&mut self, list: Arc<Mutex<List>>, bytes: usize, now: Instant) -> Option<u64> {
        let excess = (self.bytes + bytes).saturating_sub(self.bytes_max);
        if excess > 0 && !self.drop_stalled(excess, now) {
            return None;
        }
        self.bytes += bytes;
        self.next_id += 1;
        self.lists.insert(self.next_id, (bytes, list));
        Some(self.next_id)
    }

    /// Drops lists without progress that have this many bytes, or none.
    fn drop_stalled(&mut self, excess: usize, now: Instant) -> bool {
        let stalled = self.lists.iter().filter_map(|(id, (bytes, list))| {
            let time = now.saturating_duration_since(lock(list).progress_at);
            (time >= STALLED).then_some((Reverse(time), *id, *bytes))
        });
        let mut stalled: Vec<_> = stalled.collect();
        stalled.sort_unstable();
        let (mut count, mut freed) = (0, 0);
        while freed < excess {
            let Some((.., bytes)) = stalled.get(count) else { return false };
            freed += bytes;
            count += 1;
        }
        for (_, id, _) in &stalled[..count] {
            self.remove(*id);
        }
        if self.logged.is_none_or(|at| now.saturating_duration_since(at) >= LOG_INTERVAL) {
            self.logged = Some(now);
            tracing::warn!(
                bytes_max = self.bytes_max,
                "lists are dropped, because their clients do not read them and all lists have too many bytes"
            );
        }
        true
    }

    /// Drops what is left of a list.
    fn remove(&mut self, id: u64) {
        if let Some((bytes, list)) = self.lists.remove(&id) {
            self.bytes -= bytes;
            lock(&list).rest = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn list(progress_at: Instant) -> Arc<Mutex<List>> {
        let list = List::new(Ok(Frame::data(Bytes::new())), Body::empty());
        Arc::new(Mutex::new(List { progress_at, ..list }))
    }

    #[test]
    fn list_without_progress_for_the_longest_time_is_dropped_first() {
        let (mut lists, now) = (Lists::new(100), Instant::now() + Duration::from_secs(60));
        let waiting = [3, 5, 4].map(|secs| list(now - Duration::from_secs(secs)));
        for list in &waiting {
            assert!(lists.admit(list.clone(), 30, now).is_some());
        }
        let dropped = || waiting.each_ref().map(|list| lock(list).rest.is_none());
        assert!(lists.admit(list(now), 30, now).is_some());
        assert_eq!(dropped(), [false, true, false]);
        assert!(lists.admit(list(now), 101, now).is_none(), "it is larger than all together");
        assert!(lists.admit(list(now), 71, now).is_none(), "a new list must stay");
        assert_eq!(dropped(), [false, true, false], "some are dropped in vain");
        assert!(lists.admit(list(now), 70, now).is_some());
        assert_eq!(dropped(), [true; 3]);
        assert_eq!((lists.bytes, lists.lists.len()), (100, 2));
    }

    #[test]
    fn list_that_makes_progress_is_not_dropped() {
        let (mut lists, now) = (Lists::new(100), Instant::now() + Duration::from_secs(60));
        let read = list(now - STALLED + Duration::from_millis(1));
        let id = lists.admit(read.clone(), 100, now).unwrap();
        assert!(lists.admit(list(now), 1, now).is_none());
        assert!(lock(&read).rest.is_some());
        lists.remove(id);
        assert!(lists.admit(list(now), 100, now).is_some());
    }

    /// A list of this many bytes, and the lists among which it counts.
    async fn counted(bytes: usize) -> (Body, Arc<Mutex<Lists>>) {
        let lists = UnreadLists::new();
        assert!(lists.of("yoink.v1.InventoryService/ReserveUnit").is_none());
        let list = lists.of("yoink.v1.InventoryService/ListProducts").unwrap();
        let full = Full::new(Bytes::from(vec![7; bytes])).map_err(|never| match never {});
        let answer = list.count(Response::new(Body::new(full))).await.ok().unwrap();
        assert_eq!(lock(&lists.buyers).bytes, LIST_BYTES + 2 * bytes);
        assert_eq!(lock(&lists.operators).bytes, 0);
        (answer.into_body(), lists.buyers)
    }

    fn poll(body: &mut Body) -> Poll<Option<Item>> {
        Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    fn chunk(body: &mut Body) -> Bytes {
        let Poll::Ready(Some(Ok(frame))) = poll(body) else { panic!("there is no chunk") };
        frame.into_data().unwrap()
    }

    #[tokio::test]
    async fn connection_gets_a_chunk_when_it_has_written_those_before() {
        let (mut body, lists) = counted(3 * CHUNK_BYTES - 1).await;
        let (first, second) = (chunk(&mut body), chunk(&mut body));
        assert_eq!((first.len(), second.len()), (CHUNK_BYTES, CHUNK_BYTES));
        assert!(poll(&mut body).is_pending());
        drop(first);
        assert_eq!(chunk(&mut body).len(), CHUNK_BYTES - 1);
        drop(second);
        assert!(matches!(poll(&mut body), Poll::Ready(None)));
        drop(body);
        assert_eq!(lock(&lists).bytes, 0);
    }

    #[tokio::test]
    async fn call_whose_list_was_dropped_ends_with_an_error() {
        let (mut body, lists) = counted(3 * CHUNK_BYTES).await;
        let (_first, second) = (chunk(&mut body), chunk(&mut body));
        lock(&lists).remove(1);
        assert_eq!(lock(&lists).bytes, 0);
        assert!(poll(&mut body).is_pending());
        drop(second);
        assert!(matches!(poll(&mut body), Poll::Ready(Some(Err(_)))));
    }
}
