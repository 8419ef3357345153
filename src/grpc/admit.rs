//! In front of the buyers' services: who calls too often, and what is too much, is refused before it is read.
//!
//! Tower's own load shedding answers with an error that a tonic service cannot have.

use std::{
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::{
    FutureExt as _,
    future::{Either, Map, Ready, ready},
};
use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
    transport::server::TcpConnectInfo,
};
use tower::{Layer, Service};

use super::{
    error::ApiError,
    limits::{Limits, RateLimit, client_address},
};
use crate::telemetry::Metrics;

/// Puts [`Admitted`] around services; all of them share its limits.
#[derive(Clone)]
pub(super) struct Admission {
    rate: RateLimit<IpAddr>,
    trusted: Arc<[IpNet]>,
    calls: Arc<Semaphore>,
    metrics: Metrics,
}

impl Admission {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Self {
        Self {
            rate: RateLimit::per_second(limits.address_calls_per_second),
            trusted: limits.trusted_proxies.clone().into(),
            calls: Arc::new(Semaphore::new(limits.concurrency_max_calls)),
            metrics,
        }
    }

    /// A place for the call until it is answered.
    fn admit(&self, request: &Request<Body>) -> Result<OwnedSemaphorePermit, ApiError> {
        let connection = request.extensions().get::<TcpConnectInfo>();
        if let Some(peer) = connection.and_then(TcpConnectInfo::remote_addr) {
            let headers = request.headers().get_all("x-forwarded-for").iter();
            let forwarded = headers.map(|value| value.to_str().unwrap_or("unreadable"));
            let client = client_address(peer.ip(), forwarded, &self.trusted);
            let refused = |wait| ApiError::RateLimited { whose: "address", wait };
            self.rate.check(&client).map_err(refused)?;
        }
        self.calls.clone().try_acquire_owned().map_err(|_| ApiError::Overloaded)
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, admission: self.clone() }
    }
}

/// A service that takes on no more than its limits.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    inner: S,
    admission: Admission,
}

/// An answer, and the place that its call held meanwhile.
type Held<F> = Map<F, Box<dyn FnOnce(<F as Future>::Output) -> <F as Future>::Output + Send>>;

impl<S> Service<Request<Body>> for Admitted<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, Held<S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.admission.admit(&request) {
            Ok(place) => Either::Right(self.inner.call(request).map(Box::new(move |answer| {
                drop(place);
                answer
            }))),
            Err(error) => {
                self.admission.metrics.refused(error.reason());
                Either::Left(ready(Ok(Status::from(error).into_http())))
            }
        }
    }
}
