//! A caller: makes one call after the other on one connection.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, client::ResponseFuture};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use tokio::{sync::watch, time::Sleep};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Sender, Target},
    credential::Credential,
    message::{Requests, Responses},
    outcome::{Kind, Outcome},
    plan::Call,
    recorder::Recorder,
    schedule::{Budget, OpenLoop},
    status::{self, Statuses},
};

/// Answers are some hundred bytes; what is longer than this is not kept.
const BODY_MAX_BYTES: usize = 64 * 1024;

/// The head of every request of a run.
pub(super) struct Head {
    uri: Uri,
    headers: HeaderMap,
}

impl fmt::Debug for Head {
    /// Without the headers, which may have a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head").field("uri", &self.uri).finish_non_exhaustive()
    }
}

impl Head {
    pub(super) fn new(
        call: Call,
        credential: Option<&Credential>,
        target: &Target,
    ) -> Result<Self, http::Error> {
        let path = match call {
            Call::ReserveUnit => "/yoink.v1.InventoryService/ReserveUnit",
            Call::HealthCheck => "/grpc.health.v1.Health/Check",
        };
        let uri = Uri::builder().scheme(target.scheme()).authority(&*target.authority);
        let uri = uri.path_and_query(path);
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
            (header::TE, HeaderValue::from_static("trailers")),
        ];
        let mut headers: HeaderMap = headers.into_iter().collect();
        if let Some(credential) = credential {
            credential.add_to(&mut headers);
        }
        Ok(Self { uri: uri.build()?, headers })
    }

    fn request(&self) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// What the callers of one thread share. Only they and the collector of the seconds lock its parts.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) target: Target,
    pub(super) head: Head,
    pub(super) timeout: Duration,
    pub(super) budget: Arc<Budget>,
    /// Cancelled when no further call is to begin.
    pub(super) ending: CancellationToken,
    pub(super) recorder: Arc<Mutex<Recorder>>,
    pub(super) requests: Mutex<Requests>,
    pub(super) responses: Responses,
    pub(super) statuses: Mutex<Statuses>,
}

impl Shared {
    pub(super) fn recorder(&self) -> MutexGuard<'_, Recorder> {
        lock(&self.recorder)
    }
}

/// A panic of another task leaves counts that are still valid.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When the calls of one thread start.
#[derive(Debug)]
pub(super) struct Starts {
    pub(super) measured_from: Instant,
    /// Absent in a closed loop.
    pub(super) open_loop: Option<OpenLoop>,
}

impl Starts {
    /// When the next call is, or was, to start; nothing after the end.
    async fn next(&self, budget: &Budget) -> Option<Instant> {
        let due = match &self.open_loop {
            Some(open_loop) => open_loop.next().await?,
            None => Instant::now(),
        };
        let in_warm_up = due < self.measured_from;
        let taken = if in_warm_up { budget.is_open() } else { budget.take() };
        if let Some(open_loop) = &self.open_loop
            && !taken
        {
            // The other callers end as well.
            open_loop.close();
        }
        taken.then_some(due)
    }
}

/// Why there is no answer.
#[derive(Debug)]
enum NoAnswer {
    Broken(h2::Error),
    /// The run ended while there was no connection.
    Ended,
}

impl From<h2::Error> for NoAnswer {
    fn from(error: h2::Error) -> Self {
        Self::Broken(error)
    }
}

impl NoAnswer {
    fn outcome(&self) -> Outcome {
        let name = match self {
            Self::Ended => "not connected",
            Self::Broken(error) if error.is_io() => "connection lost",
            Self::Broken(error) if error.is_go_away() => "connection closed",
            Self::Broken(error) if error.is_reset() => "stream reset",
            Self::Broken(_) => "protocol error",
        };
        Outcome::new(Kind::Unanswered, name)
    }
}

/// A caller on one connection.
pub(super) struct Caller {
    shared: Arc<Shared>,
    connection: watch::Receiver<Option<Sender>>,
    sender: Option<Sender>,
    /// Wakes a call at its deadline, or earlier; it is set again only when it wakes.
    alarm: Pin<Box<Sleep>>,
}

impl Caller {
    pub(super) fn new(shared: Arc<Shared>, connection: watch::Receiver<Option<Sender>>) -> Self {
        let alarm = Box::pin(tokio::time::sleep(shared.timeout));
        Self { shared, connection, sender: None, alarm }
    }

    /// Calls until the end of the run.
    pub(super) async fn run(mut self, starts: Arc<Starts>) {
        while let Some(due) = starts.next(&self.shared.budget).await {
            let (outcome, id) = self.call().await;
            let mut recorder = self.shared.recorder();
            recorder.record((due, Instant::now()), &outcome);
            if due >= starts.measured_from {
                recorder.accepted_ids.extend(id);
            }
        }
    }

    async fn call(&mut self) -> (Outcome, Option<String>) {
        let message = lock(&self.shared.requests).next();
        let Self { shared, connection, sender, alarm } = self;
        let exchange = async {
            loop {
                let response = send(shared, connection, sender, message.clone()).await?;
                match answer(shared, response).await {
                    // The next attempt finds that this connection takes no call, and waits for another one.
                    Err(NoAnswer::Broken(error)) if was_not_processed(&error) => {}
                    answered => return answered,
                }
            }
        };
        let connected = match within(alarm, shared.timeout, exchange).await {
            Some(Ok(answer)) => return answer,
            Some(Err(no_answer)) => return (no_answer.outcome(), None),
            None => sender.is_some(),
        };
        let name = if connected { "timeout" } else { "not connected" };
        (Outcome::new(Kind::Unanswered, name), None)
    }
}

/// Whether the service ended the connection in good order before it read the call: every client may send it again.
fn was_not_processed(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

/// Waits for `work` at most this long. `alarm` is set again only if it goes off before the deadline: setting it for each call
/// would cost more than the rest of this function.
async fn within<T>(
    alarm: &mut Pin<Box<Sleep>>,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut work = pin!(work);
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        loop {
            ready!(alarm.as_mut().poll(cx));
            if alarm.deadline() >= deadline {
                return Poll::Ready(None);
            }
            alarm.as_mut().reset(deadline);
        }
    })
    .await
}

/// Sends a request, as soon as there is a connection.
async fn send(
    shared: &Shared,
    connection: &mut watch::Receiver<Option<Sender>>,
    current: &mut Option<Sender>,
    message: Bytes,
) -> Result<ResponseFuture, NoAnswer> {
    loop {
        if current.is_none() {
            let next = connection.wait_for(Option::is_some);
            let next = shared.ending.run_until_cancelled(next).await;
            *current = next.and_then(Result::ok).ok_or(NoAnswer::Ended)?.clone();
        }
        let Some(sender) = current else { continue };
        // A connection that has ended, or is about to, takes no new call. The call is then sent on the next one.
        if poll_fn(|cx| sender.poll_ready(cx)).await.is_ok()
            && let Ok((response, mut body)) = sender.send_request(shared.head.request(), false)
        {
            body.send_data(message, true)?;
            return Ok(response);
        }
        *current = None;
        // Until the connection's task has noticed.
        let changed = shared.ending.run_until_cancelled(connection.changed()).await;
        changed.and_then(Result::ok).ok_or(NoAnswer::Ended)?;
    }
}

/// Waits for the answer and reads what is counted of it.
async fn answer(
    shared: &Shared,
    response: ResponseFuture,
) -> Result<(Outcome, Option<String>), NoAnswer> {
    let (head, mut stream) = response.await?.into_parts();
    if status::has_status(&head.headers)
        && let Some(error) = lock(&shared.statuses).error(&head.headers)
    {
        return Ok((error, None));
    }
    if head.status != StatusCode::OK {
        return Ok((status::http_error(head.status), None));
    }
    let body = read(&mut stream).await?;
    let trailers = stream.trailers().await?.unwrap_or_default();
    let error = lock(&shared.statuses).error(&trailers);
    Ok(error.map_or_else(|| shared.responses.read(&body), |error| (error, None)))
}

async fn read(stream: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut body = Bytes::new();
    while let Some(chunk) = stream.data().await.transpose()? {
        stream.flow_control().release_capacity(chunk.len())?;
        if body.is_empty() {
            body = chunk;
        } else if body.len() < BODY_MAX_BYTES {
            let mut joined = BytesMut::from(body);
            joined.extend_from_slice(&chunk);
            body = joined.freeze();
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn deadline_counts_from_the_call_although_the_alarm_was_set_for_an_earlier_one() {
        let limit = Duration::from_millis(20);
        let mut alarm = Box::pin(tokio::time::sleep(Duration::ZERO));
        assert_eq!(within(&mut alarm, limit, async { 7 }).await, Some(7));
        for _ in 0..2 {
            let started = Instant::now();
            assert_eq!(within(&mut alarm, limit, std::future::pending::<()>()).await, None);
            assert!(started.elapsed() >= limit);
        }
        assert_eq!(within(&mut alarm, limit, async { 8 }).await, Some(8));
    }
}
