//! Around the handlers of a service: authenticates each call and checks the role of its caller, before the message is
//! read.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
    server::NamedService,
};
use tower::Service;

use super::{access::Caller, error::ApiError, limits::RateLimit, reason::Reason};
use crate::{
    auth::{Authenticator, Cause, PeerIdentity, Principal, Refused},
    telemetry::Metrics,
    tls::Peer,
};

/// Checks the caller of each call; the services share it.
#[derive(Clone)]
pub(super) struct CallerCheck {
    pub(super) authenticator: Authenticator,
    pub(super) metrics: Metrics,
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
        if !self.authenticator.is_on() {
            return;
        }
        let peer = request.extensions().get::<Peer>();
        if let Some(names) = peer.and_then(|peer| peer.certificate_names.clone()) {
            request.extensions_mut().insert(PeerIdentity { names });
        }
    }

    fn admit(&self, request: &Request<Body>) -> Result<Caller, ApiError> {
        let principal = self.authenticator.authenticate(request.headers(), request.extensions());
        let principal = principal.map_err(|refused| {
            self.metrics.record_authentication_failure(refused.as_str());
            match refused {
                Refused::Missing => Reason::CredentialsMissing,
                Refused::Invalid(cause) => {
                    let unread = cause == Cause::JwtKeysUnread;
                    let (cause, description) = (cause.as_str(), cause.description());
                    tracing::debug!(cause, "a call is refused: {description}");
                    if unread {
                        Reason::AuthenticationUnavailable
                    } else {
                        Reason::CredentialsInvalid
                    }
                }
            }
        })?;
        if let Some(principal) = &principal {
            self.principals.check(principal).map_err(|wait| {
                let error = ApiError::rate_limited("principal", wait);
                self.metrics.record_shed(error.reason.as_str());
                error
            })?;
        }
        Caller::authorize(request.uri().path(), principal)
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
        self.check.identify(&mut request);
        match self.check.admit(&request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Err(error) => Either::Right(ready(Ok(Status::from(error).into_http()))),
        }
    }
}
