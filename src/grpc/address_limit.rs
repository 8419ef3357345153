//! The limit of calls per address. It refuses a call of a buyer before the message is read.
//!
//! A tower service and not an interceptor of tonic, which takes each request apart and builds it again.

use std::{
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::{Either, Ready, ready};
use ipnet::IpNet;
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
};
use tower::Service;

use super::{
    error::ApiError,
    limits::{Limits, RateLimit, client_address},
};
use crate::{telemetry::Metrics, tls::Peer};

/// The limit, which its clones share.
#[derive(Clone)]
pub(super) struct AddressLimit {
    rate: RateLimit<IpAddr>,
    trusted: Arc<[IpNet]>,
    metrics: Metrics,
}

impl AddressLimit {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Self {
        Self {
            rate: RateLimit::per_second(limits.address_calls_per_second),
            trusted: limits.trusted_proxies.clone().into(),
            metrics,
        }
    }

    fn check(&self, request: &Request<Body>) -> Result<(), ApiError> {
        if !self.rate.is_set() {
            return Ok(());
        }
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.address);
        let Some(peer) = peer else { return Ok(()) };
        let headers = request.headers().get_all("x-forwarded-for").iter();
        let forwarded = headers.map(|value| value.to_str().unwrap_or("unreadable"));
        let client = client_address(peer.ip(), forwarded, &self.trusted);
        let checked = self.rate.check(&client);
        checked.map_err(|wait| ApiError::rate_limited("address", wait))
    }
}

/// A service of buyers behind the limit.
#[derive(Clone)]
pub(super) struct AddressLimited<S> {
    pub(super) limit: AddressLimit,
    pub(super) inner: S,
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
