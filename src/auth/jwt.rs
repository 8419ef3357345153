//! JWTs: signed statements of an identity provider about who a caller is.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header, errors::ErrorKind};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::{
    Cause, JwtProblem, POLL_INTERVAL, Principal, Refused,
    api_key::sha256,
    jwks::{SigningKey, signing_keys},
    jwks_source::{JwksSource, Schedule},
    now_ms, ring_provider,
    verified::{Verified, VerifiedJwts},
};
use crate::{
    domain::{CallerRole, JwtAlgorithm},
    tasks::tick,
};

/// The longest JWT that is read.
const JWT_BYTES_MAX: usize = 8192;

/// Which JWTs are accepted.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each is described by its setting")]
pub struct JwtSettings {
    pub jwks: JwksSource,
    pub algorithms: Vec<JwtAlgorithm>,
    pub issuer: String,
    pub audience: String,
    pub clock_skew: Duration,
    pub user_claim: String,
    /// `None`: every JWT is that of a customer.
    pub role_claim: Option<String>,
}

/// The keys of one content of the set, and the JWTs that were verified with them.
struct Keys {
    text: Vec<u8>,
    by_id: HashMap<String, SigningKey>,
    verified: VerifiedJwts,
}

/// Checks JWTs.
pub(super) struct Jwts {
    settings: JwtSettings,
    /// `None` until the set is read from its URL for the first time.
    keys: ArcSwapOption<Keys>,
    /// A JWT named a key that is not in the set.
    unknown_key: AtomicBool,
    /// Whether the last attempt to read the set succeeded.
    healthy: AtomicBool,
}

impl Jwts {
    /// Reads the keys. Fails if their file cannot be used. A URL that cannot be used does not prevent the start: JWTs are
    /// refused until it can.
    pub(super) async fn read(settings: JwtSettings) -> anyhow::Result<Self> {
        ring_provider::install();
        let (unknown_key, healthy) = (AtomicBool::new(false), AtomicBool::new(true));
        let this = Self { settings, keys: ArcSwapOption::empty(), unknown_key, healthy };
        match this.settings.jwks {
            JwksSource::File(_) => this.try_refresh().await?,
            JwksSource::Url { .. } => this.refresh().await,
        }
        Ok(this)
    }

    /// Why no JWT is accepted now, if that is so.
    pub(super) fn problem(&self) -> Option<JwtProblem> {
        match self.keys.load().as_ref() {
            None => Some(JwtProblem::Unread),
            Some(keys) if keys.by_id.is_empty() => Some(JwtProblem::NoUsableKey),
            Some(_) => None,
        }
    }

    /// Reads the keys again when it is time to, until stopped.
    pub(super) async fn run(&self, stop: &CancellationToken) {
        let mut schedule = Schedule::new(&self.settings.jwks, Instant::now());
        while tick(POLL_INTERVAL, stop).await {
            let healthy = self.healthy.load(Ordering::Relaxed);
            let unknown_key = self.unknown_key.load(Ordering::Relaxed);
            if schedule.is_due(healthy, unknown_key, Instant::now()) {
                // Before the keys are read: a JWT that is refused meanwhile may be of a newer key than those.
                self.unknown_key.store(false, Ordering::Relaxed);
                stop.run_until_cancelled(self.refresh()).await;
            }
        }
    }

    /// Reads the keys. While they cannot be read the last ones stay in use, and the failure is logged once. A set that
    /// was read replaces them, whatever it has: a key that the provider withdrew must not stay in use.
    async fn refresh(&self) {
        let refreshed = self.try_refresh().await;
        let was_healthy = self.healthy.swap(refreshed.is_ok(), Ordering::Relaxed);
        let (Err(error), true) = (&refreshed, was_healthy) else { return };
        let error = error.as_ref() as &dyn std::error::Error;
        if self.keys.load().is_some() {
            tracing::warn!(error, "the keys of JWTs cannot be read: the last ones stay in use");
        } else {
            tracing::warn!(
                error,
                "the keys of JWTs cannot be read: JWTs are refused until they can"
            );
        }
    }

    async fn try_refresh(&self) -> anyhow::Result<()> {
        let text = self.settings.jwks.read().await?;
        if self.keys.load().as_ref().is_none_or(|keys| keys.text != text) {
            // With the keys, the JWTs that they verified are dropped.
            self.keys.store(Some(Arc::new(self.settings.keys(text)?)));
        }
        Ok(())
    }

    /// The principal that a JWT names. `may_verify` is asked before a signature is verified; its error is how long the
    /// caller has to wait.
    pub(super) fn check(
        &self,
        token: &[u8],
        may_verify: impl FnOnce() -> Result<(), Duration>,
    ) -> Result<Arc<Principal>, Refused> {
        if token.len() > JWT_BYTES_MAX {
            return Err(Cause::JwtMalformed.into());
        }
        let (keys, hash) = (self.keys.load(), sha256(token));
        let remembered = keys.as_ref().and_then(|keys| keys.verified.get(&hash, now_ms()));
        if let Some(principal) = remembered {
            return Ok(principal);
        }
        // What is wrong with any keys is invalid, also before the keys are read.
        let (key_id, algorithm) = self.header(token)?;
        let keys = keys.as_ref().ok_or(Cause::JwtKeysUnread)?;
        let Some(key) = keys.by_id.get(&key_id) else {
            self.unknown_key.store(true, Ordering::Relaxed);
            return Err(Cause::JwtKeyUnknown.into());
        };
        if !key.algorithms.contains(&algorithm) {
            return Err(Cause::JwtAlgorithm.into());
        }
        may_verify().map_err(Refused::TooOften)?;
        let verified = self.verify(token, key, algorithm)?;
        let principal = verified.principal.clone();
        keys.verified.insert(hash, verified);
        Ok(principal)
    }

    /// The id of the key that a JWT names, and its algorithm.
    fn header(&self, token: &[u8]) -> Result<(String, Algorithm), Cause> {
        let header = decode_header(token).map_err(|_| Cause::JwtMalformed)?;
        if header.crit.is_some() {
            // An extension that must be understood (RFC 7515); this program understands none.
            return Err(Cause::JwtMalformed);
        }
        let key_id = header.kid.ok_or(Cause::JwtKeyUnknown)?;
        let is_allowed = self.settings.algorithms.iter().any(|one| algorithm(*one) == header.alg);
        if is_allowed { Ok((key_id, header.alg)) } else { Err(Cause::JwtAlgorithm) }
    }

    fn verify(
        &self,
        token: &[u8],
        key: &SigningKey,
        algorithm: Algorithm,
    ) -> Result<Verified, Cause> {
        let decoded = decode::<Map<String, Value>>(token, &key.key, &self.validation(algorithm));
        let claims = decoded.map_err(|error| cause(error.kind()))?.claims;
        let name = claims.get(&self.settings.user_claim).and_then(Value::as_str);
        let name = name.and_then(|name| name.parse().ok()).ok_or(Cause::JwtUser)?;
        let role = match &self.settings.role_claim {
            None => CallerRole::Customer,
            Some(claim) => role(claims.get(claim)).ok_or(Cause::JwtRole)?,
        };
        // Checked before: the validation requires an expiry.
        let expiry = claims.get("exp").and_then(Value::as_f64).ok_or(Cause::JwtExpired)?;
        #[expect(clippy::cast_possible_truncation, reason = "a later time than i64 is its maximum")]
        let expiry_ms = (expiry * 1000.0) as i64;
        let skew_ms = i64::try_from(self.settings.clock_skew.as_millis()).unwrap_or(0);
        let until_ms = expiry_ms.saturating_add(skew_ms);
        Ok(Verified { principal: Arc::new(Principal { name, role }), until_ms })
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let settings = &self.settings;
        let mut validation = Validation::new(algorithm);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&settings.issuer]);
        validation.set_audience(&[&settings.audience]);
        validation.validate_nbf = true;
        validation.leeway = settings.clock_skew.as_secs();
        validation
    }
}

impl JwtSettings {
    fn keys(&self, text: Vec<u8>) -> anyhow::Result<Keys> {
        let allowed: Vec<_> = self.algorithms.iter().copied().map(algorithm).collect();
        let by_id = signing_keys(&text, &allowed);
        let by_id = by_id.with_context(|| format!("cannot use {}", self.jwks))?;
        if by_id.is_empty() {
            tracing::error!(
                source = %self.jwks,
                "none of the keys of JWTs can be used, so every JWT is refused: a key needs an id (kid), and to be a public \
                 key for one of jwt_algorithms"
            );
        } else {
            tracing::info!(keys = by_id.len(), "the keys of JWTs are read");
        }
        Ok(Keys { text, by_id, verified: VerifiedJwts::default() })
    }
}

/// The role in a claim: a text, or a list of texts of which exactly one is a role. Identity providers list the roles of
/// other programs as well.
pub(super) fn role(claim: Option<&Value>) -> Option<CallerRole> {
    let claim = claim?;
    if let Some(text) = claim.as_str() {
        return text.parse().ok();
    }
    let texts = claim.as_array()?.iter().filter_map(Value::as_str);
    let mut roles = texts.filter_map(|text| text.parse().ok());
    let role = roles.next()?;
    roles.next().is_none().then_some(role)
}

fn algorithm(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::Rs256 => Algorithm::RS256,
        JwtAlgorithm::Rs384 => Algorithm::RS384,
        JwtAlgorithm::Rs512 => Algorithm::RS512,
        JwtAlgorithm::Ps256 => Algorithm::PS256,
        JwtAlgorithm::Ps384 => Algorithm::PS384,
        JwtAlgorithm::Ps512 => Algorithm::PS512,
        JwtAlgorithm::Es256 => Algorithm::ES256,
        JwtAlgorithm::Es384 => Algorithm::ES384,
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the other errors are those of an unreadable token"
)]
fn cause(kind: &ErrorKind) -> Cause {
    match kind {
        ErrorKind::InvalidSignature => Cause::JwtSignature,
        ErrorKind::ExpiredSignature => Cause::JwtExpired,
        ErrorKind::ImmatureSignature => Cause::JwtNotYetValid,
        ErrorKind::InvalidIssuer => Cause::JwtIssuer,
        ErrorKind::InvalidAudience => Cause::JwtAudience,
        ErrorKind::InvalidAlgorithm => Cause::JwtAlgorithm,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            match claim.as_str() {
                "exp" => Cause::JwtExpired,
                "nbf" => Cause::JwtNotYetValid,
                "iss" => Cause::JwtIssuer,
                "aud" => Cause::JwtAudience,
                _ => Cause::JwtMalformed,
            }
        }
        _ => Cause::JwtMalformed,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    /// What checks JWTs with these keys, if they were read.
    fn jwts(keys: Option<&Value>) -> Jwts {
        ring_provider::install();
        let settings = JwtSettings {
            jwks: JwksSource::File(PathBuf::new()),
            algorithms: vec![JwtAlgorithm::EdDsa],
            issuer: "https://id.example".to_owned(),
            audience: "yoink".to_owned(),
            clock_skew: Duration::from_secs(30),
            user_claim: "sub".to_owned(),
            role_claim: None,
        };
        let keys = keys.map(|keys| Arc::new(settings.keys(keys.to_string().into()).unwrap()));
        Jwts {
            settings,
            keys: ArcSwapOption::new(keys),
            unknown_key: AtomicBool::new(false),
            healthy: AtomicBool::new(true),
        }
    }

    fn encode(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn pair() -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
    }

    fn key_set() -> Value {
        let x = encode(pair().public_key());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": x}]})
    }

    /// A JWT with this header, which expires at this time in seconds since 1970.
    fn token(header: &Value, exp: i64) -> String {
        let claims = json!({"iss": "https://id.example", "aud": "yoink", "sub": "ann", "exp": exp});
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        format!("{message}.{}", encode(pair().sign(message.as_bytes())))
    }

    #[test]
    fn verified_jwt_is_remembered_until_its_expiry_with_the_clock_skew() {
        let jwts = jwts(Some(&key_set()));
        let exp = now_ms() / 1000 + 3600;
        let token = token(&json!({"alg": "EdDSA", "kid": "a"}), exp);
        assert_eq!(jwts.check(token.as_bytes(), || Ok(())).unwrap().name.as_str(), "ann");
        let keys = jwts.keys.load();
        let remembered = |ms| keys.as_ref().unwrap().verified.get(&sha256(token.as_bytes()), ms);
        assert!(remembered(exp * 1000 + 29_999).is_some());
        assert!(remembered(exp * 1000 + 30_000).is_none());
    }

    #[test]
    fn only_a_jwt_that_a_key_could_verify_is_unavailable_before_the_keys_are_read() {
        let jwts = jwts(None);
        assert_eq!(jwts.problem(), Some(JwtProblem::Unread));
        for (header, cause) in [
            (json!({"alg": "EdDSA", "kid": "a"}), Cause::JwtKeysUnread),
            (json!({"alg": "EdDSA"}), Cause::JwtKeyUnknown),
            (json!({"alg": "RS256", "kid": "a"}), Cause::JwtAlgorithm),
            (json!({"alg": "none", "kid": "a"}), Cause::JwtMalformed),
            (json!({"alg": "EdDSA", "kid": "a", "crit": ["b64"]}), Cause::JwtMalformed),
        ] {
            let refused = jwts.check(token(&header, i64::MAX / 2000).as_bytes(), || Ok(()));
            assert_eq!(refused, Err(Refused::Invalid(cause)), "{header}");
        }
        assert_eq!(jwts.check(b"garbage", || Ok(())), Err(Cause::JwtMalformed.into()));
        assert!(!jwts.unknown_key.load(Ordering::Relaxed), "nothing to fetch a key for");
    }

    #[test]
    fn no_signature_is_verified_for_a_caller_that_failed_too_often_but_a_known_jwt_is_accepted() {
        let jwts = jwts(Some(&key_set()));
        let token = token(&json!({"alg": "EdDSA", "kid": "a"}), now_ms() / 1000 + 3600);
        let wait = Duration::from_millis(7);
        assert_eq!(jwts.check(token.as_bytes(), || Err(wait)), Err(Refused::TooOften(wait)));
        jwts.check(token.as_bytes(), || Ok(())).unwrap();
        jwts.check(token.as_bytes(), || Err(wait)).unwrap();
    }

    #[test]
    fn set_without_a_usable_key_accepts_no_jwt() {
        let jwts = jwts(Some(&json!({"keys": []})));
        assert_eq!(jwts.problem(), Some(JwtProblem::NoUsableKey));
        let token = token(&json!({"alg": "EdDSA", "kid": "a"}), now_ms() / 1000 + 3600);
        assert_eq!(jwts.check(token.as_bytes(), || Ok(())), Err(Cause::JwtKeyUnknown.into()));
    }

    #[test]
    fn role_is_a_text_or_the_only_role_of_a_list() {
        let of = |value: Value| role(Some(&value)).map(CallerRole::as_str);
        assert_eq!(of(json!("operator")), Some("operator"));
        assert_eq!(of(json!(["offline_access", "auditor", 7])), Some("auditor"));
        for none in [json!("root"), json!(["a"]), json!([]), json!(7), json!(null)] {
            assert_eq!(of(none.clone()), None, "{none}");
        }
        assert_eq!(of(json!(["auditor", "operator"])), None, "two roles");
        assert_eq!(role(None), None);
    }
}
