//! Around every call: its duration by method and status, its span, the caller's deadline, and the refusal of requests that
//! are not gRPC.
//!
//! One layer and one allocation for each call: every buyer passes through here.

use std::{
    collections::HashSet,
    convert::Infallible,
    future::ready,
    pin::Pin,
    sync::LazyLock,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use prost::Message as _;
use tonic::{
    Status,
    body::Body,
    codegen::http::{HeaderMap, Request, Response, StatusCode, header::CONTENT_TYPE},
    service::Routes,
};
use tower::{Layer, Service, layer::layer_fn};
use tracing::{Instrument as _, Span};

use super::{
    DESCRIPTOR_SET, InventoryRoute,
    dispatch::Dispatch,
    error::ApiError,
    reason::Reason,
    status::{code_name, error_of_tonic, log_cause},
    unread::UnreadLists,
};
use crate::telemetry::{self, Metrics, Sampling};

/// How long before the client's deadline a call is answered, because tonic answers CANCELLED at the deadline itself.
/// Commands that were sent to Redis before it are completed after it; the response reports that the outcome is not known.
const DEADLINE_MARGIN: Duration = Duration::from_millis(10);

/// Calls of operators.
const OPERATORS: &str = "/yoink.v1.AdminService/";

/// The layer around all routes, with `InventoryService` beside them. A call takes at most `call_timeout`; operators' calls
/// have only the limit of their caller.
pub fn observe(
    inventory: Option<InventoryRoute>,
    metrics: Metrics,
    call_timeout: Duration,
    sampling: Sampling,
) -> impl Layer<Routes, Service = Observed> + Clone {
    // At the start, so that the first call does not wait for it.
    LazyLock::force(&METHODS);
    let unread = UnreadLists::new();
    layer_fn(move |others| Observed {
        inner: Dispatch { inventory: inventory.clone(), others },
        unread: unread.clone(),
        metrics: metrics.clone(),
        call_timeout,
        sampling,
    })
}

/// Routes whose calls are timed, and answered by their deadline.
#[derive(Clone)]
pub struct Observed {
    inner: Dispatch,
    unread: UnreadLists,
    metrics: Metrics,
    call_timeout: Duration,
    sampling: Sampling,
}

impl Service<Request<Body>> for Observed {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if !is_grpc(request.headers()) {
            let mut refused = Response::new(Body::empty());
            *refused.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Box::pin(ready(Ok(refused)));
        }
        let started = Instant::now();
        let method = method_of(request.uri().path());
        let list = self.unread.of(method);
        let operators = request.uri().path().starts_with(OPERATORS);
        let timeout = (!operators).then_some(self.call_timeout);
        let limit = deadline(&request).into_iter().chain(timeout).min();
        let trace = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        let span = self.sampling.call_span(method, trace);
        let metrics = self.metrics.clone();
        let mut call = Call { method, started, metrics, span: span.clone(), code: CANCELLED };
        let answer = self.inner.call(request).instrument(span);
        Box::pin(async move {
            let mut response = match limit {
                None => answer.await?,
                Some(limit) => match tokio::time::timeout(limit, answer).await {
                    Ok(response) => response?,
                    Err(_) => Status::from(ApiError::from(Reason::DeadlineExceeded)).into_http(),
                },
            };
            if let Some(list) = list {
                // Boxed, so that the other calls do not allocate its state.
                response = Box::pin(list.count(response)).await.unwrap_or_else(|error| {
                    call.metrics.record_shed(error.reason.as_str());
                    Status::from(error).into_http()
                });
            }
            // tonic puts the status of an error into the extensions. Only that of an unknown method is in the headers alone.
            // A response without a status is OK, or a stream that has begun.
            let in_headers;
            let status = match response.extensions().get::<Status>() {
                Some(status) => Some(status),
                None => {
                    in_headers = Status::from_header_map(response.headers());
                    in_headers.as_ref()
                }
            };
            let mut code = status.map_or("OK", |status| code_name(status.code()));
            if let Some(status) = status {
                // Outside the span of the call, the line would have no trace id.
                call.span.in_scope(|| log_cause(method, status));
                if let Some(error) = error_of_tonic(status) {
                    let named = Status::from(error);
                    code = code_name(named.code());
                    response = named.into_http();
                }
            }
            call.answered(code);
            Ok(response)
        })
    }
}

/// A call in progress. It is recorded when it is dropped: also when its client cancels it.
struct Call {
    method: &'static str,
    started: Instant,
    metrics: Metrics,
    span: Span,
    code: &'static str,
}

/// The status of a call whose client no longer waits for the answer.
const CANCELLED: &str = "CANCELLED";

impl Call {
    // A method, so that the future owns the whole call and drops it when it ends.
    fn answered(&mut self, code: &'static str) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        telemetry::record_status(&self.span, self.code);
        self.metrics.record_call(self.method, self.code, self.started.elapsed());
    }
}

/// Whether a request is a call of gRPC. A browser sends such a content type for a page of another origin only if the server
/// allows it, and this one answers no question for that: so no page makes calls in the name of its visitor.
fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// How long a call may take, if its client has set a deadline.
fn deadline(request: &Request<Body>) -> Option<Duration> {
    let limit = request.headers().get("grpc-timeout")?.to_str().ok().and_then(grpc_timeout)?;
    Some(limit.saturating_sub(DEADLINE_MARGIN).max(limit / 2))
}

/// The value of the header: at most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(amount * 3600)),
        'M' => Some(Duration::from_secs(amount * 60)),
        'S' => Some(Duration::from_secs(amount)),
        'm' => Some(Duration::from_millis(amount)),
        'u' => Some(Duration::from_micros(amount)),
        'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// The names of the methods of the API.
static METHODS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let set = prost_types::FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap_or_default();
    let mut names = HashSet::from(["grpc.health.v1.Health/Check".to_owned()]);
    for file in &set.file {
        for service in &file.service {
            let full = format!("{}.{}", file.package(), service.name());
            names.extend(service.method.iter().map(|m| format!("{full}/{}", m.name())));
        }
    }
    names
});

/// The name of a method of the API, by the path of its call.
fn method_of(path: &str) -> &'static str {
    let name = path.strip_prefix('/').and_then(|name| METHODS.get(name));
    name.map_or(telemetry::OTHER_METHOD, String::as_str)
}

#[cfg(test)]
mod tests {
    use tonic::codegen::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_content_types_of_grpc_are_accepted() {
        let is_grpc = |kind: &'static str| {
            is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]))
        };
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
        {
            assert!(is_grpc(kind), "{kind}");
        }
        for kind in ["", "text/plain", "application/json", "application/grpc-web", "application/gr"]
        {
            assert!(!is_grpc(kind), "{kind}");
        }
        assert!(!super::is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        assert_eq!(grpc_timeout("300m"), Some(Duration::from_millis(300)));
        assert_eq!(grpc_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(grpc_timeout("5S"), Some(Duration::from_secs(5)));
        for bad in ["", "m", "5", "5x", "-5S", "123456789S", "5é", "é"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
