//! Authentication: who makes a call, by an API key, a JWT or a client certificate.
//!
//! Must never: ask a store on a call, or repeat a credential in a log line, an error or a metric.

mod api_key;
mod api_keys;
mod certificate;
mod credential;
#[cfg(test)]
mod fuzz;
mod http_get;
mod jwks;
mod jwks_source;
mod jwt;
mod ring_provider;
mod verified;

use std::{sync::Arc, time::Duration};

use http::{Extensions, HeaderMap};
use tokio_util::sync::CancellationToken;

pub use self::{
    api_key::ApiKey,
    certificate::PeerIdentity,
    credential::{bearer_of, is_same_secret},
    jwks_source::JwksSource,
    jwt::JwtSettings,
};
use self::{api_keys::ApiKeys, certificate::Certificates, credential::Credential, jwt::Jwts};
use crate::{
    domain::{CallerRole, CertificateRole, UserId},
    ledger::Ledger,
    tasks::tick,
    telemetry::Metrics,
};

/// How often changed API keys, and signing keys in a file, are read: a revoked key is refused after that.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A caller that proved who it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// Its name; the user id of a customer.
    pub name: UserId,
    /// What it is to the service.
    pub role: CallerRole,
}

/// Why a call is not authenticated. The caller gets only the difference between these three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// It has no credential.
    Missing,
    /// Its credential is not accepted.
    Invalid(Cause),
    /// Its signature is not verified, because its caller has failed too often. It may be repeated after this time.
    TooOften(Duration),
}

impl From<Cause> for Refused {
    fn from(cause: Cause) -> Self {
        Self::Invalid(cause)
    }
}

/// The label of the metric for a call without credentials.
pub const MISSING: &str = "missing";

/// Why no JWT is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JwtProblem {
    /// The set of `jwt_jwks_url` was not read yet.
    Unread,
    /// The set has no usable key.
    NoUsableKey,
}

impl JwtProblem {
    /// For operators.
    pub fn description(self) -> &'static str {
        match self {
            Self::Unread => {
                "JWTs are refused: their keys could not be read from jwt_jwks_url yet (see the log)"
            }
            Self::NoUsableKey => {
                "JWTs are refused: the set of keys that was read last has no usable key (see the log)"
            }
        }
    }
}

macro_rules! causes {
    ($($cause:ident $name:literal $what:literal;)+) => {
        /// Why a credential is not accepted: for the log and the metric, never for the caller.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Cause {
            $(#[doc = $what] $cause,)+
        }

        impl Cause {
            const ALL: &[Self] = &[$(Self::$cause),+];

            /// The label of the metric.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$cause => $name,)+
                }
            }

            /// What is wrong, for the log.
            pub fn description(self) -> &'static str {
                match self {
                    $(Self::$cause => $what,)+
                }
            }
        }
    };
}

causes! {
    Malformed "malformed" "the credential has no form that this program knows";
    Several "several" "the call has more than one credential";
    KeyUnknown "key_unknown" "no API key has this id, it is revoked, or it had expired when the keys were read";
    KeySecret "key_secret" "the secret is not that of the API key";
    KeyExpired "key_expired" "the API key has expired";
    JwtUnused "jwt_unused" "the call has a JWT, and neither jwt_jwks_file nor jwt_jwks_url is set";
    JwtKeysUnread "jwt_keys_unread" "the keys of jwt_jwks_url could not be read yet";
    JwtMalformed "jwt_malformed" "the JWT cannot be read, or its algorithm does not exist";
    JwtAlgorithm "jwt_algorithm" "the algorithm of the JWT is not in jwt_algorithms, or is not that of its key";
    JwtKeyUnknown "jwt_key_unknown" "no key has the id that the JWT names";
    JwtSignature "jwt_signature" "the signature of the JWT is wrong";
    JwtExpired "jwt_expired" "the JWT has expired, or has no expiry";
    JwtNotYetValid "jwt_not_yet_valid" "the JWT is not valid yet";
    JwtIssuer "jwt_issuer" "the JWT is not of jwt_issuer";
    JwtAudience "jwt_audience" "the JWT is not for jwt_audience";
    JwtUser "jwt_user" "the JWT names no valid user in jwt_user_claim";
    JwtRole "jwt_role" "the JWT does not name one role in jwt_role_claim";
}

/// Where credentials are checked.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each is described by its setting")]
pub struct AuthSettings {
    pub jwt: Option<JwtSettings>,
    pub certificate_roles: Vec<CertificateRole>,
}

/// Checks the credentials of calls; clones share the keys.
#[derive(Clone)]
pub struct Authenticator {
    /// `None`: authentication is off.
    checks: Option<Arc<Checks>>,
}

struct Checks {
    api_keys: ApiKeys,
    jwts: Option<Jwts>,
    certificates: Certificates,
}

impl Authenticator {
    /// Authentication is off: nothing is checked.
    pub fn off() -> Self {
        Self { checks: None }
    }

    /// Reads every key. Fails if the ledger does not answer, or the file of the settings cannot be used.
    pub async fn start(
        settings: AuthSettings,
        ledger: Ledger,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let refusals = Cause::ALL.iter().map(|cause| cause.as_str());
        metrics.allow_authentication_failures(refusals.chain([MISSING]));
        let api_keys = ApiKeys::read(ledger).await?;
        let jwts = match settings.jwt {
            Some(jwt) => Some(Jwts::read(jwt).await?),
            None => None,
        };
        let certificates = Certificates::new(settings.certificate_roles)?;
        if api_keys.count() == 0 && jwts.is_none() && certificates.are_empty() {
            tracing::warn!(
                "authentication is required and no caller can authenticate: create an API key (yoink keys create), or set \
                 jwt_jwks_file or jwt_jwks_url"
            );
        }
        Ok(Self { checks: Some(Arc::new(Checks { api_keys, jwts, certificates })) })
    }

    /// Whether calls are authenticated.
    pub fn is_on(&self) -> bool {
        self.checks.is_some()
    }

    /// Who makes a call. A credential in the headers takes precedence over the certificate of the connection, which may be
    /// that of a proxy. While authentication is off no caller is authenticated. `may_verify` is asked before a signature
    /// is verified, which costs more than the rest; its error is how long the caller has to wait.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &Extensions,
        may_verify: impl FnOnce() -> Result<(), Duration>,
    ) -> Result<Arc<Principal>, Refused> {
        let checks = self.checks.as_ref().ok_or(Refused::Missing)?;
        Ok(match Credential::of(headers)? {
            Some(Credential::ApiKey(key)) => checks.api_keys.check(&key)?,
            Some(Credential::Jwt(token)) => {
                let jwts = checks.jwts.as_ref().ok_or(Cause::JwtUnused)?;
                jwts.check(token, may_verify)?
            }
            None => checks.certificates.check(extensions)?,
        })
    }

    /// Why no JWT is accepted now, if that is so.
    pub fn problem(&self) -> Option<JwtProblem> {
        self.checks.as_ref()?.jwts.as_ref()?.problem()
    }

    /// Reads changed keys until stopped.
    pub async fn run(self, stop: CancellationToken) {
        let Some(checks) = &self.checks else { return };
        let api_keys = async {
            while tick(POLL_INTERVAL, &stop).await {
                checks.api_keys.refresh().await;
            }
        };
        let jwts = async {
            if let Some(jwts) = &checks.jwts {
                jwts.run(&stop).await;
            }
        };
        tokio::join!(api_keys, jwts);
    }
}

/// The time now, in milliseconds since 1970.
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // With a clock before 1970 every credential is refused as expired.
    since.ok().and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(i64::MAX)
}
