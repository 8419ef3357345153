//! Around the handlers of a service: authenticates each call and checks the role of its caller, before the message is
//! read.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::Either;
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
    server::NamedService,
};
use tower::Service;

use super::{
    access::Caller, address_limit::AddressLimit, error::ApiError, limits::RateLimit, reason::Reason,
};
use crate::{
    auth::{self, Authenticator, Cause, PeerIdentity, Principal, Refused},
    telemetry::Metrics,
    tls::Peer,
};

/// Checks the caller of each call; the services share it.
#[derive(Clone)]
pub(super) struct CallerCheck {
    pub(super) authenticator: Authenticator,
    pub(super) metrics: Metrics,
    /// The limit of failures of each address.
    pub(super) addresses: AddressLimit,
    /// The limit of each principal.
    pub(super) principals: RateLimit<Arc<Principal>>,
}

impl CallerCheck {
    /// A service whose callers are checked first.
    pub(super) fn around<S>(&self, inner: S) -> Authenticated<S> {
        Authenticated { inner, check: Arc::new(self.clone()) }
    }

    /// Adds the identity of the client to a request, if the connection has a verified certificate.
    fn identify(&self, request: &mut Request<Body>) {
        let peer = request.extensions().get::<Peer>();
        if let Some(names) = peer.and_then(|peer| peer.certificate_names.clone()) {
            request.extensions_mut().insert(PeerIdentity { names });
        }
    }

    fn admit(&self, request: &Request<Body>) -> Result<Caller, Status> {
        let may_verify = || self.addresses.check_failures(request);
        let (headers, extensions) = (request.headers(), request.extensions());
        let principal = self.authenticator.authenticate(headers, extensions, may_verify);
        let principal = principal.map_err(|refused| self.refuse(request, refused))?;
        let checked = self.principals.check(&principal);
        checked.map_err(|wait| self.rate_limited("principal", wait))?;
        Caller::authorize(request.uri().path(), principal)
    }

    /// The answer to a call that is not authenticated, which is counted.
    fn refuse(&self, request: &Request<Body>, refused: Refused) -> ApiError {
        let cause = match refused {
            Refused::TooOften(wait) => return self.rate_limited("address", wait),
            Refused::Missing => {
                self.metrics.record_authentication_failure(auth::MISSING);
                return Reason::CredentialsMissing.into();
            }
            Refused::Invalid(cause) => cause,
        };
        self.metrics.record_authentication_failure(cause.as_str());
        let (label, description) = (cause.as_str(), cause.description());
        tracing::debug!(cause = label, "a call is refused: {description}");
        if cause == Cause::JwtKeysUnread {
            return Reason::AuthenticationUnavailable.into();
        }
        self.addresses.count_failure(request);
        Reason::CredentialsInvalid.into()
    }

    fn rate_limited(&self, limited: &str, wait: Duration) -> ApiError {
        let error = ApiError::rate_limited(limited, wait);
        self.metrics.record_shed(error.reason.as_str());
        error
    }
}

/// A service whose callers are authenticated.
#[derive(Clone)]
pub(super) struct Authenticated<S> {
    inner: S,
    check: Arc<CallerCheck>,
}

impl<S: NamedService> NamedService for Authenticated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Authenticated<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if !self.check.authenticator.is_on() {
            return Either::Left(self.inner.call(request));
        }
        self.check.identify(&mut request);
        match self.check.admit(&request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}
