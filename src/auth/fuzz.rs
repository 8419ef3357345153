//! Properties of credentials: no header and no file of keys panics, and only a whole key is one.

use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use jsonwebtoken::{Algorithm, decode_header};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Cause, api_key::ApiKey, credential::Credential, jwks::signing_keys, jwt};
use crate::{
    domain::{CallerRole, CertificateRole},
    mutated::{mutated, mutated_text},
};

const CREDENTIALS: &[&str] = &[
    "Bearer yk_0123456789ab_0000000000000000000000000000000000000000000000000000000000000000",
    "yk_0123456789ab_0000000000000000000000000000000000000000000000000000000000000000",
    "bEARER eyJhbGciOiJFUzI1NiIsImtpZCI6ImEifQ.eyJzdWIiOiJhbm4iLCJleHAiOjE3MDB9.c2lnbmF0dXJl",
    "Bearer eyJhbGciOiJub25lIn0.e30.",
    "Basic YTpi",
];
const KEY_SETS: &[&str] = &[
    r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "use": "sig",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
    r#"{"keys": [{"kty": "oct", "kid": "s", "alg": "HS256", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "r", "n": "AQAB", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "kid": "e", "x": "AA", "y": "AA"}]}"#,
    r#"{"keys": {}}"#,
    "[]",
];
const ROLES: &[&str] =
    &["spiffe://shop/backend=service", "a=b=auditor", "backend.shop.example = operator"];
/// What a claim of a JWT may have, whose signature is verified before.
const CLAIMS: &[&str] = &[
    "\"operator\"",
    "[\"offline_access\", \"auditor\", 7]",
    "[\"operator\", \"auditor\"]",
    "{\"roles\": [\"operator\"]}",
    "null",
];

proptest! {
    #[test]
    fn role_of_any_claim_is_written_in_it(text in mutated_text(CLAIMS)) {
        let claim: Value = serde_json::from_str(&text).unwrap_or_else(|_| json!(text));
        let list = claim.as_array().cloned().unwrap_or_else(|| vec![claim.clone()]);
        let roles = CallerRole::ALL.map(|role| list.iter().filter(|text| **text == json!(role.as_str())).count());
        let role = jwt::role(Some(&claim));
        prop_assert_eq!(role.is_some(), roles.iter().sum::<usize>() == 1);
        prop_assert!(role.is_none_or(|role| list.contains(&json!(role.as_str()))));
    }

    #[test]
    fn headers_of_any_bytes_have_one_credential_or_a_cause(
        values in prop::collection::vec((mutated(CREDENTIALS), any::<bool>()), 0..3),
    ) {
        let mut headers = HeaderMap::new();
        for (bytes, bearer) in &values {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return Ok(()) };
            let name = if *bearer { AUTHORIZATION } else { HeaderName::from_static("x-api-key") };
            headers.append(name, value);
        }
        match Credential::of(&headers) {
            Ok(None) => prop_assert!(values.is_empty()),
            Ok(Some(Credential::ApiKey(key))) => prop_assert_eq!(key.id.len(), 12),
            Ok(Some(Credential::Jwt(token))) => {
                // What is read of a token before its signature is verified.
                let _header = decode_header(token);
            }
            Err(cause) => prop_assert!(matches!(cause, Cause::Several | Cause::Malformed)),
        }
        // Only one of them would be checked.
        prop_assert!(values.len() < 2 || Credential::of(&headers).is_err());
    }

    #[test]
    fn api_key_is_its_own_text_or_none(text in mutated_text(CREDENTIALS)) {
        if let Some(key) = ApiKey::parse(&text) {
            let secret = text.rsplit('_').next().unwrap();
            prop_assert_eq!(format!("yk_{}_{secret}", key.id), text.as_str());
            let shown = format!("{key:?}");
            prop_assert!(!shown.contains(secret));
        }
    }

    #[test]
    fn key_set_of_any_bytes_has_only_allowed_algorithms(bytes in mutated(KEY_SETS)) {
        let allowed = [Algorithm::EdDSA, Algorithm::RS256, Algorithm::ES256];
        if let Ok(keys) = signing_keys(&bytes, &allowed) {
            for key in keys.values() {
                prop_assert!(key.algorithms.iter().all(|algorithm| allowed.contains(algorithm)));
            }
        }
    }

    #[test]
    fn role_of_a_certificate_is_written_as_it_is_read(text in mutated_text(ROLES)) {
        if let Ok(role) = text.parse::<CertificateRole>() {
            prop_assert_eq!(role.to_string().parse(), Ok(role));
        }
    }
}
