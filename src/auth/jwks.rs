//! The public keys that sign JWTs, from a JWK Set (RFC 7517).

use std::collections::HashMap;

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde_json::Value;

/// A public key, and the algorithms that may be used with it.
pub(super) struct SigningKey {
    pub(super) key: DecodingKey,
    pub(super) algorithms: Vec<Algorithm>,
}

/// Why a text is not a usable set of keys.
#[derive(Debug, thiserror::Error)]
pub(super) enum JwksError {
    #[error("it is not a JWK Set in JSON")]
    NotAJwkSet,
    #[error("two keys have the id {0:?}")]
    DuplicateId(String),
    #[error(
        "none of its keys can be used: a key needs an id (kid), and to be a public key for one of jwt_algorithms"
    )]
    NoKey,
}

/// The usable keys of a set, by their ids. Other keys, such as those for encryption, are left out, because identity
/// providers publish all their keys in one set.
pub(super) fn signing_keys(
    text: &[u8],
    allowed: &[Algorithm],
) -> Result<HashMap<String, SigningKey>, JwksError> {
    let set: Value = serde_json::from_slice(text).map_err(|_| JwksError::NotAJwkSet)?;
    let members = set.get("keys").and_then(Value::as_array).ok_or(JwksError::NotAJwkSet)?;
    let mut keys = HashMap::new();
    for member in members {
        let Some((id, key)) = signing_key(member, allowed) else { continue };
        if keys.insert(id.clone(), key).is_some() {
            return Err(JwksError::DuplicateId(id));
        }
    }
    if keys.is_empty() { Err(JwksError::NoKey) } else { Ok(keys) }
}

fn signing_key(member: &Value, allowed: &[Algorithm]) -> Option<(String, SigningKey)> {
    let jwk: Jwk = serde_json::from_value(member.clone()).ok()?;
    let common = &jwk.common;
    if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let mut algorithms = algorithms_of(&jwk.algorithm);
    algorithms.retain(|algorithm| allowed.contains(algorithm));
    if let Some(declared) = common.key_algorithm {
        let declared = declared_algorithm(declared)?;
        algorithms.retain(|algorithm| *algorithm == declared);
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    let id = common.key_id.clone()?;
    (!algorithms.is_empty()).then_some((id, SigningKey { key, algorithms }))
}

/// The algorithms that a key can be used with. A shared secret has none: it must not be in a set of public keys.
fn algorithms_of(parameters: &AlgorithmParameters) -> Vec<Algorithm> {
    match parameters {
        AlgorithmParameters::RSA(_) => vec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            vec![Algorithm::ES256]
        }
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P384 => {
            vec![Algorithm::ES384]
        }
        AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
            vec![Algorithm::EdDSA]
        }
        AlgorithmParameters::EllipticCurve(_)
        | AlgorithmParameters::OctetKeyPair(_)
        | AlgorithmParameters::OctetKey(_)
        | AlgorithmParameters::Other(_)
        | _ => Vec::new(),
    }
}

fn declared_algorithm(algorithm: KeyAlgorithm) -> Option<Algorithm> {
    algorithm.to_string().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = r#"{"kty": "OKP", "crv": "Ed25519", "kid": "a", "use": "sig",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

    fn ids(members: &str, allowed: &[Algorithm]) -> Result<Vec<String>, String> {
        let set = format!("{{\"keys\": [{members}]}}");
        let keys = signing_keys(set.as_bytes(), allowed).map_err(|error| error.to_string())?;
        Ok(keys.into_keys().collect())
    }

    #[test]
    fn only_public_keys_for_signatures_of_the_allowed_algorithms_are_used() {
        let allowed = [Algorithm::EdDSA, Algorithm::RS256];
        assert_eq!(ids(ED, &allowed), Ok(vec!["a".to_owned()]));
        let without_id = ED.replace("\"kid\": \"a\",", "");
        let for_encryption = ED.replace("sig", "enc");
        let other_algorithm = ED.replace("\"use\"", "\"alg\": \"RS256\", \"use\"");
        let secret = r#"{"kty": "oct", "kid": "s", "alg": "HS256", "k": "c2VjcmV0"}"#;
        for unused in [&without_id, &for_encryption, &other_algorithm, secret, "{}", "1"] {
            assert!(ids(unused, &allowed).unwrap_err().contains("none of its keys"), "{unused}");
            assert_eq!(ids(&format!("{unused}, {ED}"), &allowed), Ok(vec!["a".to_owned()]));
        }
        assert!(ids(ED, &[Algorithm::RS256]).is_err());
    }

    #[test]
    fn text_that_is_not_a_set_or_has_an_id_twice_is_refused() {
        for text in ["", "[]", "{}", "{\"keys\": {}}", "not json"] {
            assert!(signing_keys(text.as_bytes(), &[Algorithm::EdDSA]).is_err(), "{text}");
        }
        assert!(ids(&format!("{ED}, {ED}"), &[Algorithm::EdDSA]).unwrap_err().contains("two keys"));
    }
}
