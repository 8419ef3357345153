//! The ids that callers choose. Their alphabets keep every key and CSV line in shape.

use std::{fmt, str::FromStr, sync::Arc};

/// Longest id, in bytes.
const MAX_LEN: usize = 64;

/// Why a text is no id. Never carries the text itself: it may be hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("must not be empty")]
    Empty,
    /// More than 64 bytes.
    #[error("is {len} bytes long, at most 64 are allowed")]
    TooLong {
        /// Bytes given.
        len: usize,
    },
    /// A character outside the alphabet.
    #[error("has a character at byte {at} that is not among {alphabet}")]
    BadCharacter {
        /// Where, in bytes.
        at: usize,
        /// What is allowed.
        alphabet: &'static str,
    },
}

fn check(text: &str, colon: bool) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > MAX_LEN {
        return Err(IdError::TooLong { len: text.len() });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._~-".contains(c) || (colon && c == ':');
    match text.char_indices().find(|(_, c)| !allowed(*c)) {
        None => Ok(()),
        Some((at, _)) => Err(IdError::BadCharacter {
            at,
            alphabet: if colon { "[A-Za-z0-9._~:-]" } else { "[A-Za-z0-9._~-]" },
        }),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, colon: $colon:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check(text, $colon)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A product's id, `[A-Za-z0-9._~-]{1,64}`.
    ProductId, colon: false
);
id!(
    /// A buyer's id, `[A-Za-z0-9._~-]{1,64}`.
    UserId, colon: false
);
id!(
    /// A caller's idempotency key, `[A-Za-z0-9._~:-]{1,64}`.
    RequestId, colon: true
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_the_alphabet_is_taken_as_it_is() {
        let text = "Az09._~-";
        assert_eq!(text.parse::<ProductId>().unwrap().as_str(), text);
        assert_eq!("a:b".parse::<RequestId>().unwrap().as_str(), "a:b");
        assert_eq!("x".repeat(64).parse::<UserId>().unwrap().as_str().len(), 64);
    }

    #[test]
    fn whatever_could_alter_a_key_is_refused() {
        assert_eq!("".parse::<ProductId>(), Err(IdError::Empty));
        assert_eq!("x".repeat(65).parse::<ProductId>(), Err(IdError::TooLong { len: 65 }));
        for bad in [
            "a:b",
            "{a}",
            "a\0",
            "a\r",
            "a\n",
            "\u{202e}a",
            "a\u{200b}",
            " a",
            "a ",
            "*",
            "?",
            "[",
            "a/b",
            "a|b",
            "é",
        ] {
            assert!(
                matches!(bad.parse::<ProductId>(), Err(IdError::BadCharacter { .. })),
                "{bad:?}"
            );
        }
        assert!("a/b".parse::<RequestId>().is_err());
    }

    #[test]
    fn an_error_never_repeats_the_text() {
        let error = "evil\u{202e}text".parse::<UserId>().unwrap_err();
        assert!(!error.to_string().contains("evil"));
    }
}
