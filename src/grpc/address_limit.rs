//! The limit of calls per address. It refuses a call of a buyer before the message is read.

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
    transport::server::TcpConnectInfo,
};
use tower::{Layer, Service};

use super::{
    error::ApiError,
    limits::{Limits, RateLimit, client_address},
};
use crate::telemetry::Metrics;

/// Puts [`AddressLimited`] around services, which share one limit.
#[derive(Clone)]
pub(super) struct AddressLimitLayer {
    rate: RateLimit<IpAddr>,
    trusted: Arc<[IpNet]>,
    metrics: Metrics,
}

impl AddressLimitLayer {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Self {
        Self {
            rate: RateLimit::per_second(limits.address_calls_per_second),
            trusted: limits.trusted_proxies.clone().into(),
            metrics,
        }
    }

    fn check(&self, request: &Request<Body>) -> Result<(), ApiError> {
        let connection = request.extensions().get::<TcpConnectInfo>();
        let Some(peer) = connection.and_then(TcpConnectInfo::remote_addr) else { return Ok(()) };
        let headers = request.headers().get_all("x-forwarded-for").iter();
        let forwarded = headers.map(|value| value.to_str().unwrap_or("unreadable"));
        let client = client_address(peer.ip(), forwarded, &self.trusted);
        self.rate.check(&client).map_err(|wait| ApiError::RateLimited { limited: "address", wait })
    }
}

impl<S> Layer<S> for AddressLimitLayer {
    type Service = AddressLimited<S>;

    fn layer(&self, inner: S) -> AddressLimited<S> {
        AddressLimited { inner, limit: self.clone() }
    }
}

/// A service whose callers may make a limited number of calls per second.
#[derive(Clone)]
pub(super) struct AddressLimited<S> {
    inner: S,
    limit: AddressLimitLayer,
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
        match self.limit.check(&request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(error) => {
                self.limit.metrics.record_refused(error.reason().as_str());
                Either::Left(ready(Ok(Status::from(error).into_http())))
            }
        }
    }
}
