//! The credential of a run: a header of each call.
//!
//! Must never: show its value.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The header for an API key alone.
static API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What each call authenticates with.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    header: HeaderName,
    value: HeaderValue,
}

/// A text cannot be sent as a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is empty, or has a character that a header cannot have")]
pub struct CredentialError;

impl Credential {
    /// A JWT or an API key in `authorization`, which is sent as it is with each call.
    pub fn bearer(token: &str) -> Result<Self, CredentialError> {
        let value = if token.is_empty() { String::new() } else { format!("Bearer {token}") };
        Self::new(header::AUTHORIZATION, value)
    }

    /// An API key in `x-api-key`, which HTTP/2 sends once for each connection and refers to afterwards.
    pub fn api_key(key: &str) -> Result<Self, CredentialError> {
        Self::new(API_KEY.clone(), key.to_owned())
    }

    fn new(header: HeaderName, value: String) -> Result<Self, CredentialError> {
        // A value that is marked as sensitive would not be compressed, which is not what most clients do.
        let value = HeaderValue::try_from(value).map_err(|_| CredentialError)?;
        if value.is_empty() { Err(CredentialError) } else { Ok(Self { header, value }) }
    }

    /// The name of its header.
    pub fn header(&self) -> &str {
        self.header.as_str()
    }

    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        headers.insert(self.header.clone(), self.value.clone());
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("header", &self.header).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_is_a_header_whose_value_is_not_shown() {
        for (credential, header, value) in [
            (Credential::bearer("a.secret.c"), "authorization", "Bearer a.secret.c"),
            (Credential::api_key("yk_secret"), "x-api-key", "yk_secret"),
        ] {
            let credential = credential.unwrap();
            let mut headers = HeaderMap::new();
            credential.add_to(&mut headers);
            assert_eq!((headers.len(), credential.header()), (1, header));
            assert_eq!(headers[header], value);
            assert!(!format!("{credential:?}").contains("secret"));
        }
    }

    #[test]
    fn text_that_no_header_can_have_is_refused() {
        for text in ["", "a\nb", "a\0"] {
            assert_eq!(Credential::bearer(text), Err(CredentialError), "{text:?}");
            assert_eq!(Credential::api_key(text), Err(CredentialError), "{text:?}");
        }
    }
}
