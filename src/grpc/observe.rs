//! Around every call: its duration by method and status, its span, and the caller's deadline.
//!
//! One layer and one allocation for each call: every buyer passes through here.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use prost::Message as _;
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

use super::{
    DESCRIPTOR_SET, deadline,
    error::ApiError,
    status::{code_name, error_of_tonic},
};
use crate::telemetry::{self, Metrics, Sampling};

/// Calls of operators.
const OPERATORS: &str = "/yoink.v1.AdminService/";

/// Puts `Observed` around a service.
#[derive(Clone)]
pub struct Observe {
    metrics: Metrics,
    /// By path.
    methods: Arc<HashMap<String, &'static str>>,
    call_timeout: Duration,
    sampling: Sampling,
}

impl Observe {
    /// Records into these metrics. A call takes at most `call_timeout`; operators' calls have only the limit of their caller.
    pub fn new(metrics: Metrics, call_timeout: Duration, sampling: Sampling) -> Self {
        Self { metrics, methods: Arc::new(methods()), call_timeout, sampling }
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: self.clone() }
    }
}

/// A service whose calls are timed, and answered by their deadline.
#[derive(Clone)]
pub struct Observed<S> {
    inner: S,
    observe: Observe,
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        let method = self
            .observe
            .methods
            .get(request.uri().path())
            .copied()
            .unwrap_or(telemetry::OTHER_METHOD);
        let operators = request.uri().path().starts_with(OPERATORS);
        let timeout = (!operators).then_some(self.observe.call_timeout);
        let limit = deadline::of(&request).into_iter().chain(timeout).min();
        let trace = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
        let span = self.observe.sampling.call_span(method, trace);
        let metrics = self.observe.metrics.clone();
        let mut call = Call { method, started, metrics, span: span.clone(), code: CANCELLED };
        let answer = self.inner.call(request).instrument(span);
        Box::pin(async move {
            let mut response = match limit {
                None => answer.await?,
                Some(limit) => match tokio::time::timeout(limit, answer).await {
                    Ok(response) => response?,
                    Err(_) => Status::from(ApiError::DeadlineExceeded).into_http(),
                },
            };
            // An error has its status in the headers. A response without one is OK, or a stream that has begun.
            let mut status = Status::from_header_map(response.headers());
            if let Some(error) = status.as_ref().and_then(error_of_tonic) {
                let named = Status::from(error);
                response = named.clone().into_http();
                status = Some(named);
            }
            call.answered(status.as_ref().map_or("OK", |status| code_name(status.code())));
            Ok(response)
        })
    }
}

/// A call under way. It is recorded when it is dropped: also when its client cancels it.
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

/// Every method of the contract, by its path.
fn methods() -> HashMap<String, &'static str> {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap_or_default();
        let mut names = vec!["grpc.health.v1.Health/Check".to_owned()];
        for file in &set.file {
            for service in &file.service {
                let full = format!("{}.{}", file.package(), service.name());
                names.extend(service.method.iter().map(|m| format!("{full}/{}", m.name())));
            }
        }
        names
    });
    names.iter().map(|name| (format!("/{name}"), name.as_str())).collect()
}
