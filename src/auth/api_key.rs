//! The text of an API key: `yk_<id>_<secret>`. The id names the key, and the secret proves it.

use std::fmt;

use rand::{TryRngCore as _, rngs::OsRng};
use ring::digest::{SHA256, digest};

/// How each key begins, so that people and scanners of secrets recognize one.
const PREFIX: &str = "yk_";
const ID_CHARS: usize = 12;
const SECRET_BYTES: usize = 32;
const SECRET_CHARS: usize = 2 * SECRET_BYTES;

/// An API key. Its `Debug` hides the secret.
pub struct ApiKey<S = String> {
    /// Names the key; not a secret.
    pub id: S,
    secret: S,
}

impl<S: fmt::Debug> fmt::Debug for ApiKey<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ApiKey {
    /// A new key, from the random numbers of the operating system. Fails if it gives none.
    pub fn generate() -> anyhow::Result<Self> {
        let (mut id, mut secret) = ([0; ID_CHARS / 2], [0; SECRET_BYTES]);
        OsRng.try_fill_bytes(&mut id)?;
        OsRng.try_fill_bytes(&mut secret)?;
        Ok(Self { id: hexadecimal(&id), secret: hexadecimal(&secret) })
    }

    /// The whole key, to be shown once.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret)
    }
}

impl<'a> ApiKey<&'a str> {
    /// Reads a key; `None` if the text is not one.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let is_hexadecimal =
            |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let lengths = (id.len(), secret.len()) == (ID_CHARS, SECRET_CHARS);
        (lengths && is_hexadecimal(id) && is_hexadecimal(secret)).then_some(Self { id, secret })
    }

    /// Whether a text is meant as an API key.
    pub(super) fn is_meant_by(text: &[u8]) -> bool {
        text.starts_with(PREFIX.as_bytes())
    }
}

impl<S: AsRef<str>> ApiKey<S> {
    /// The hash of the secret. A secret of 256 random bits cannot be found by guessing, so a fast hash is enough.
    pub fn secret_sha256(&self) -> [u8; 32] {
        sha256(self.secret.as_ref().as_bytes())
    }
}

/// SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn generated_key_can_be_read_and_its_debug_hides_the_secret() {
        let key = ApiKey::generate().unwrap();
        let text = key.reveal();
        let read = ApiKey::parse(&text).unwrap();
        assert_eq!((read.id, read.secret_sha256()), (key.id.as_str(), key.secret_sha256()));
        assert_eq!(text.len(), 80);
        assert!(!format!("{key:?} {read:?}").contains(&key.secret));
        assert_ne!(ApiKey::generate().unwrap().reveal(), text);
    }

    #[test]
    fn each_digit_of_id_and_secret_differs_from_key_to_key() {
        let keys: Vec<_> = (0..100).map(|_| ApiKey::generate().unwrap()).collect();
        // A random digit is equal in all keys with a probability of 16 to the power of -99.
        let varies = |text: fn(&ApiKey) -> &str, at: usize| {
            let digits = keys.iter().map(|key| text(key).as_bytes()[at]);
            digits.collect::<BTreeSet<_>>().len() > 1
        };
        assert!((0..ID_CHARS).all(|at| varies(|key| &key.id, at)));
        assert!((0..SECRET_CHARS).all(|at| varies(|key| &key.secret, at)));
    }

    #[test]
    fn text_of_another_form_is_not_a_key() {
        let (id, secret) = ("0123456789ab", "0".repeat(64));
        assert!(ApiKey::parse(&format!("yk_{id}_{secret}")).is_some());
        for text in [
            String::new(),
            "yk_".to_owned(),
            format!("yk_{id}"),
            format!("yk_{id}_"),
            format!("yk_{id}_{secret}0"),
            format!("yk_{id}0_{secret}"),
            format!("yk_{id}_{}", "G".repeat(64)),
            format!("yk_{id}_{}", "A".repeat(64)),
            format!("Yk_{id}_{secret}"),
            format!("yk_{id}-{secret}"),
            format!(" yk_{id}_{secret}"),
        ] {
            assert!(ApiKey::parse(&text).is_none(), "{text}");
        }
    }
}
