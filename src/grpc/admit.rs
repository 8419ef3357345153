//! In front of the buyers' services: who calls too often is refused before the call is read.

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

/// Puts [`Admitted`] around services; all of them share its limit.
#[derive(Clone)]
pub(super) struct AdmitLayer {
    rate: RateLimit<IpAddr>,
    trusted: Arc<[IpNet]>,
    metrics: Metrics,
}

impl AdmitLayer {
    pub(super) fn new(limits: &Limits, metrics: Metrics) -> Self {
        Self {
            rate: RateLimit::per_second(limits.address_calls_per_second),
            trusted: limits.trusted_proxies.clone().into(),
            metrics,
        }
    }

    fn admit(&self, request: &Request<Body>) -> Result<(), ApiError> {
        let connection = request.extensions().get::<TcpConnectInfo>();
        let Some(peer) = connection.and_then(TcpConnectInfo::remote_addr) else { return Ok(()) };
        let headers = request.headers().get_all("x-forwarded-for").iter();
        let forwarded = headers.map(|value| value.to_str().unwrap_or("unreadable"));
        let client = client_address(peer.ip(), forwarded, &self.trusted);
        self.rate.check(&client).map_err(|wait| ApiError::RateLimited { whose: "address", wait })
    }
}

impl<S> Layer<S> for AdmitLayer {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, admission: self.clone() }
    }
}

/// A service whose callers have so many calls a second.
#[derive(Clone)]
pub(super) struct Admitted<S> {
    inner: S,
    admission: AdmitLayer,
}

impl<S> Service<Request<Body>> for Admitted<S>
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
        match self.admission.admit(&request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(error) => {
                self.admission.metrics.refused(error.reason().as_str());
                Either::Left(ready(Ok(Status::from(error).into_http())))
            }
        }
    }
}
