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
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tonic::{body::Body, codegen::http::Response};

use super::{error::ApiError, reason::Reason, unread_list::List};

/// The most bytes of lists in a process, for buyers and for operators. The longest page has about 0.5 MiB and counts twice.
const BUYERS_BYTES_MAX: usize = 128 * 1024 * 1024;
const OPERATORS_BYTES_MAX: usize = 32 * 1024 * 1024;
/// A list makes no progress if no chunk of it is written for this long.
const STALLED: Duration = Duration::from_secs(1);
/// What a list holds beside its bytes.
const LIST_BYTES: usize = 4 * 1024;
/// What a list holds in addition that is read as its client reads: a page of references to products of the catalogue, and the
/// buffer in which messages are encoded until there are 32 KiB.
const PAGE_BYTES: usize = 80 * 1024;
/// Lists are dropped until this part of the bytes is left, so that not every new list searches for others to drop; a search
/// that found too few is not repeated for this long.
const BYTES_LEFT: (usize, usize) = (7, 8);
const SEARCH_INTERVAL: Duration = Duration::from_millis(100);
/// Between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
    /// When a search found too few lists without progress.
    searched: Option<Instant>,
}

impl Lists {
    fn new(bytes_max: usize) -> Self {
        let lists = HashMap::new();
        Self { bytes: 0, bytes_max, lists, next_id: 0, logged: None, searched: None }
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

    /// Drops lists without progress that have this many bytes, and more if there are, or none.
    fn drop_stalled(&mut self, excess: usize, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < SEARCH_INTERVAL;
        if self.searched.is_some_and(is_recent) {
            return false;
        }
        let stalled = self.lists.iter().filter_map(|(id, (bytes, list))| {
            let time = now.saturating_duration_since(lock(list).progress_at);
            (time >= STALLED).then_some((Reverse(time), *id, *bytes))
        });
        let mut stalled: Vec<_> = stalled.collect();
        stalled.sort_unstable();
        let (left, of) = BYTES_LEFT;
        let enough = excess + (self.bytes_max - self.bytes_max / of * left);
        let (mut count, mut freed) = (0, 0);
        for (.., bytes) in &stalled {
            if freed >= enough {
                break;
            }
            freed += bytes;
            count += 1;
        }
        if freed < excess {
            self.searched = Some(now);
            return false;
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
            lock(&list).drop_rest();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use http_body_util::Full;
    use tonic::codegen::Body as _;

    use super::*;
    use crate::grpc::unread_list::{CHUNK_BYTES, Item};

    fn list(progress_at: Instant) -> Arc<Mutex<List>> {
        let mut list = List::new(Ok(Frame::data(Bytes::new())), Body::empty());
        list.progress_at = progress_at;
        Arc::new(Mutex::new(list))
    }

    #[test]
    fn lists_without_progress_for_the_longest_time_are_dropped_until_an_eighth_is_free() {
        let (mut lists, now) = (Lists::new(800), Instant::now() + Duration::from_secs(60));
        let waiting = [3, 5, 4, 2].map(|secs| list(now - Duration::from_secs(secs)));
        for list in &waiting {
            assert!(lists.admit(list.clone(), 200, now).is_some());
        }
        let dropped = || waiting.each_ref().map(|list| lock(list).rest.is_none());
        assert!(lists.admit(list(now), 801, now).is_none(), "it is larger than all together");
        assert_eq!(dropped(), [false; 4], "none is dropped in vain");
        let now = now + SEARCH_INTERVAL;
        assert!(lists.admit(list(now), 100, now).is_some());
        assert_eq!(dropped(), [false, true, false, false]);
        assert!(lists.admit(list(now), 100, now).is_some(), "there is room");
        assert_eq!(dropped(), [false, true, false, false]);
        assert!(lists.admit(list(now), 101, now).is_some());
        assert_eq!(dropped(), [true, true, true, false], "101 bytes, and 100 more");
        assert_eq!((lists.bytes, lists.lists.len()), (501, 4));
    }

    #[test]
    fn search_that_found_too_few_lists_is_not_repeated_at_once() {
        let (mut lists, now) = (Lists::new(100), Instant::now() + Duration::from_secs(60));
        let read = list(now - STALLED + Duration::from_millis(1));
        assert!(lists.admit(read, 100, now).is_some());
        assert!(lists.admit(list(now), 1, now).is_none(), "it makes progress");
        let soon = now + SEARCH_INTERVAL - Duration::from_millis(1);
        assert!(lists.admit(list(soon), 1, soon).is_none(), "no search");
        let later = now + SEARCH_INTERVAL;
        assert!(lists.admit(list(later), 1, later).is_some());
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
