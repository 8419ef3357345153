//! The limit of calls per address. It refuses a call of a buyer before the message is read.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use tonic::{Request, Status, service::Interceptor};

use super::{
    error::ApiError,
    limits::{Limits, RateLimit, client_address},
};
use crate::telemetry::Metrics;

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
}

impl Interceptor for AddressLimit {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(peer) = request.remote_addr() else { return Ok(request) };
        let headers = request.metadata().get_all("x-forwarded-for").iter();
        let forwarded = headers.map(|value| value.to_str().unwrap_or("unreadable"));
        let client = client_address(peer.ip(), forwarded, &self.trusted);
        let Err(wait) = self.rate.check(&client) else { return Ok(request) };
        let error = ApiError::rate_limited("address", wait);
        self.metrics.record_shed(error.reason.as_str());
        Err(error.into())
    }
}
