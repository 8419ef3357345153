//! The public keys that sign JWTs, from a JWK Set (RFC 7517).

use std::collections::{HashMap, hash_map::Entry};

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

/// A text is not a set of keys.
#[derive(Debug, thiserror::Error)]
#[error("it is not a JWK Set in JSON")]
pub(super) struct NotAJwkSet;

/// The usable keys of a set, by their ids. Other keys, such as those for encryption, are left out, because identity
/// providers publish all their keys in one set; so are keys that share an id, because it does not name one of them. A
/// set may have no usable key: a provider that withdraws its only key publishes such a set.
pub(super) fn signing_keys(
    text: &[u8],
    allowed: &[Algorithm],
) -> Result<HashMap<String, SigningKey>, NotAJwkSet> {
    let set: Value = serde_json::from_slice(text).map_err(|_| NotAJwkSet)?;
    let members = set.get("keys").and_then(Value::as_array).ok_or(NotAJwkSet)?;
    let mut keys: HashMap<String, Option<SigningKey>> = HashMap::new();
    for (id, key) in members.iter().filter_map(|member| signing_key(member, allowed)) {
        match keys.entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(Some(key));
            }
            Entry::Occupied(mut entry) => {
                tracing::warn!(
                    key_id = entry.key(),
                    "several keys of JWTs have one id: none of them is used"
                );
                entry.insert(None);
            }
        }
    }
    Ok(keys.into_iter().filter_map(|(id, key)| Some((id, key?))).collect())
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
        let other_secret = r#"{"kty": "oct", "kid": "s", "k": "c2VjcmV0"}"#;
        let unusable = [&without_id, &for_encryption, &other_algorithm, secret, other_secret];
        for unused in unusable.into_iter().chain(["{}", "1"]) {
            assert_eq!(ids(unused, &allowed), Ok(Vec::new()), "{unused}");
            assert_eq!(ids(&format!("{unused}, {ED}"), &allowed), Ok(vec!["a".to_owned()]));
        }
        assert_eq!(ids(ED, &[Algorithm::RS256]), Ok(Vec::new()));
    }

    #[test]
    fn text_that_is_not_a_set_is_refused_and_keys_that_share_an_id_are_not_used() {
        for text in ["", "[]", "{}", "{\"keys\": {}}", "not json"] {
            assert!(signing_keys(text.as_bytes(), &[Algorithm::EdDSA]).is_err(), "{text}");
        }
        let other = ED.replace("\"kid\": \"a\"", "\"kid\": \"b\"");
        for members in [format!("{ED}, {ED}, {other}"), format!("{ED}, {other}, {ED}, {ED}")] {
            assert_eq!(ids(&members, &[Algorithm::EdDSA]), Ok(vec!["b".to_owned()]));
        }
    }
}
