//! The credential in the headers of a call: `authorization: Bearer …`, or an API key in `x-api-key`.

use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use subtle::ConstantTimeEq as _;

use super::{
    Cause,
    api_key::{ApiKey, sha256},
};

/// The header for an API key alone, which many HTTP clients and gateways can set.
static API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");
const SCHEME: &str = "bearer";

/// A credential that is not checked yet.
pub(super) enum Credential<'a> {
    ApiKey(ApiKey<&'a str>),
    /// Any bytes: whether they are those of a JWT is checked only for one that was not verified before.
    Jwt(&'a [u8]),
}

impl<'a> Credential<'a> {
    /// The credential of a call. Two of them are refused, because only one would be checked.
    pub(super) fn of(headers: &'a HeaderMap) -> Result<Option<Self>, Cause> {
        let token = one(headers, &AUTHORIZATION)?.map(bearer).transpose()?;
        let key = one(headers, &API_KEY_HEADER)?.map(<[u8]>::trim_ascii);
        match (token, key) {
            (Some(_), Some(_)) => Err(Cause::Several),
            (None, None) => Ok(None),
            (None, Some(key)) => Self::api_key(key).map(Some),
            (Some(token), None) if ApiKey::is_meant_by(token) => Self::api_key(token).map(Some),
            (Some(token), None) => Ok(Some(Self::Jwt(token))),
        }
    }

    fn api_key(bytes: &'a [u8]) -> Result<Self, Cause> {
        let text = std::str::from_utf8(bytes).ok();
        text.and_then(ApiKey::parse).map(Self::ApiKey).ok_or(Cause::Malformed)
    }
}

/// The bearer token of a request, if it has exactly one.
pub fn bearer_of(headers: &HeaderMap) -> Option<&[u8]> {
    one(headers, &AUTHORIZATION).ok().flatten().and_then(|value| bearer(value).ok())
}

/// Whether what a caller sent is a secret.
pub fn is_same_secret(sent: &[u8], secret: &[u8]) -> bool {
    // Hashes have the same length, so the time of the comparison does not depend on the secret.
    sha256(sent).ct_eq(&sha256(secret)).into()
}

/// The value of a header that may be sent once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, Cause> {
    let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let value = values.next();
    if values.next().is_some() { Err(Cause::Several) } else { Ok(value) }
}

/// The token after the scheme, which is compared without regard to case (RFC 9110).
fn bearer(value: &[u8]) -> Result<&[u8], Cause> {
    let (scheme, token) =
        value.trim_ascii().split_at_checked(SCHEME.len()).ok_or(Cause::Malformed)?;
    let separated = token.first() == Some(&b' ');
    let is_bearer = separated && scheme.eq_ignore_ascii_case(SCHEME.as_bytes());
    if is_bearer { Ok(token.trim_ascii_start()) } else { Err(Cause::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&'static str, &[u8])]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        match Credential::of(&map) {
            Ok(None) => "none".to_owned(),
            Ok(Some(Credential::ApiKey(key))) => format!("key {}", key.id),
            Ok(Some(Credential::Jwt(token))) => format!("jwt {}", token.escape_ascii()),
            Err(cause) => cause.as_str().to_owned(),
        }
    }

    #[test]
    fn credential_is_a_bearer_token_or_an_api_key() {
        let key = format!("yk_0123456789ab_{}", "0".repeat(64));
        let bearer_key = format!("Bearer {key}");
        for (headers, expected) in [
            (&[] as &[(&'static str, &[u8])], "none"),
            (&[("authorization", b"Bearer a.b.c")], "jwt a.b.c"),
            (&[("authorization", b"bEARER   a.b.c ")], "jwt a.b.c"),
            (&[("authorization", bearer_key.as_bytes())], "key 0123456789ab"),
            (&[("x-api-key", key.as_bytes())], "key 0123456789ab"),
            (&[("authorization", b"Bearer")], "malformed"),
            (&[("authorization", b"Bearer ")], "malformed"),
            (&[("authorization", b"")], "malformed"),
            (&[("authorization", b"Basic YTpi")], "malformed"),
            (&[("authorization", key.as_bytes())], "malformed"),
            (&[("authorization", b"Bearer yk_0123456789ab_1")], "malformed"),
            (&[("authorization", b"Bearer \xc3\xa9")], "jwt \\xc3\\xa9"),
            (&[("authorization", b"Bearers a.b.c")], "malformed"),
            (&[("x-api-key", b"\xff")], "malformed"),
            (&[("x-api-key", b"a.b.c")], "malformed"),
            (&[("x-api-key", b"")], "malformed"),
            (&[("authorization", b"Bearer a"), ("authorization", b"Bearer a")], "several"),
            (&[("authorization", b"Bearer a"), ("x-api-key", key.as_bytes())], "several"),
        ] {
            assert_eq!(read(headers), expected, "{headers:?}");
        }
    }
}
