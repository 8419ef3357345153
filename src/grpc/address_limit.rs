//! The limits of an address: of the calls of buyers, which are refused before the message is read, and of credentials that
//! are not accepted.
//!
//! A tower service and not an interceptor of tonic, which takes each request apart and builds it again.

use std::{
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::future::{Either, Ready, ready};
use ipnet::IpNet;
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
    server::NamedService,
};
use tower::Service;

use super::{
    error::ApiError,
    failure_limit::FailureLimit,
    limits::{Limits, RateLimit, client_address},
};
use crate::{telemetry::Metrics, tls::Peer};

/// The limit, which its clones share.
#[derive(Clone)]
pub(super) struct AddressLimit {
    rate: RateLimit<IpAddr>,
    failures: Arc<FailureLimit>,
    trusted: Arc<[IpNet]>,
    metrics: Metrics,
}

impl AddressLimit {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Self {
        Self {
            rate: RateLimit::per_second(limits.address_calls_per_second),
            failures: Arc::new(FailureLimit::per_second(limits.address_calls_per_second)),
            trusted: limits.trusted_proxies.clone().into(),
            metrics,
        }
    }

    /// A service whose calls are limited.
    pub(super) fn around<S>(&self, inner: S) -> AddressLimited<S> {
        AddressLimited { limit: self.clone(), inner }
    }

    fn check(&self, request: &Request<Body>) -> Result<(), ApiError> {
        let Some(client) = self.client(request) else { return Ok(()) };
        let checked = self.rate.check(&client);
        checked.map_err(|wait| ApiError::rate_limited("address", wait))
    }

    /// Whether credentials of the client may still be verified; the error is how long to wait.
    pub(super) fn check_failures(&self, request: &Request<Body>) -> Result<(), Duration> {
        self.client(request).map_or(Ok(()), |client| self.failures.check(client, Instant::now()))
    }

    /// Counts a credential of the client that was not accepted.
    pub(super) fn count_failure(&self, request: &Request<Body>) {
        if let Some(client) = self.client(request) {
            self.failures.count(client, Instant::now());
        }
    }

    /// The address of the client, if there is a limit.
    fn client(&self, request: &Request<Body>) -> Option<IpAddr> {
        if !self.rate.is_set() {
            return None;
        }
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.address)?;
        let headers = request.headers().get_all("x-forwarded-for").iter();
        let forwarded = headers.map(|value| value.to_str().unwrap_or("unreadable"));
        Some(client_address(peer.ip(), forwarded, &self.trusted))
    }
}

/// A service behind the limit of calls.
#[derive(Clone)]
pub(super) struct AddressLimited<S> {
    limit: AddressLimit,
    inner: S,
}

impl<S: NamedService> NamedService for AddressLimited<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for AddressLimited<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Err(error) = self.limit.check(&request) else {
            return Either::Right(self.inner.call(request));
        };
        self.limit.metrics.record_shed(error.reason.as_str());
        Either::Left(ready(Ok(Status::from(error).into_http())))
    }
}
