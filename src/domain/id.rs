//! The ids that callers choose: what shops and identity providers issue, without the characters that end a line, an
//! argument or a message.
//!
//! User ids and request ids may hold `/`, `%` and `|`. `field.rs` joins ids to one text without collisions.

use std::{fmt, str::FromStr, sync::Arc};

/// The most bytes of an id.
const LEN_MAX: usize = 128;

/// Why a text is not a valid id. Never contains the text itself, which may be hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe them")]
pub enum IdError {
    #[error("must not be empty")]
    Empty,
    #[error("is {len} bytes long, at most 128 are allowed")]
    TooLong { len: usize },
    #[error("has a character at byte {at} that is not among {alphabet}")]
    BadCharacter { at: usize, alphabet: &'static str },
}

/// The characters of an id: what messages call them, and which they are.
type Alphabet = (&'static str, fn(&u8) -> bool);

/// Easy to read, and safe in a path and in a list.
const PRODUCT: Alphabet =
    ("[A-Za-z0-9._~:+@-]", |byte| byte.is_ascii_alphanumeric() || b"._~:+@-".contains(byte));
/// Without the space, which separates fields in replies of scripts.
const PRINTABLE: Alphabet =
    ("the printable ASCII characters other than space", u8::is_ascii_graphic);

fn check(text: &str, (alphabet, has): Alphabet) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > LEN_MAX {
        return Err(IdError::TooLong { len: text.len() });
    }
    match text.bytes().position(|byte| !has(&byte)) {
        None => Ok(()),
        Some(at) => Err(IdError::BadCharacter { at, alphabet }),
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $alphabet:expr) => {
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
                check(text, $alphabet)?;
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
    /// A product's id, `[A-Za-z0-9._~:+@-]{1,128}`.
    ///
    /// ```
    /// use yoink::domain::{IdError, ProductId};
    ///
    /// assert_eq!("sneaker-42".parse::<ProductId>()?.as_str(), "sneaker-42");
    /// assert_eq!("".parse::<ProductId>(), Err(IdError::Empty));
    /// assert!(matches!("a/b".parse::<ProductId>(), Err(IdError::BadCharacter { at: 1, .. })));
    /// # Ok::<(), IdError>(())
    /// ```
    ProductId, PRODUCT
);
id!(
    /// A buyer's id: 1 to 128 printable ASCII characters other than space.
    ///
    /// ```
    /// use yoink::domain::{IdError, UserId};
    ///
    /// assert!("auth0|5f7c8ec7c33c".parse::<UserId>().is_ok());
    /// assert_eq!("x".repeat(129).parse::<UserId>(), Err(IdError::TooLong { len: 129 }));
    /// ```
    UserId, PRINTABLE
);
id!(
    /// A caller's idempotency key: 1 to 128 printable ASCII characters other than space.
    RequestId, PRINTABLE
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_shops_and_identity_providers_are_accepted_unchanged() {
        for text in [
            "ann@shop.example",
            "auth0|5f7c8ec7c33c6c004bbafe82",
            "gid://shop/Customer/1",
            "eu-west-1:6b2c8f4e-91a0-4b8d-9c57-3d3c0e1f2a4b",
            "+4915112345678",
            "!\"#$%&'()*+,-./09:;<=>?@AZ[\\]^_`az{|}~",
        ] {
            assert_eq!(text.parse::<UserId>().unwrap().as_str(), text);
            assert_eq!(text.parse::<RequestId>().unwrap().as_str(), text);
        }
        for text in ["Az09._~-", "shoe:red+blue@42"] {
            assert_eq!(text.parse::<ProductId>().unwrap().as_str(), text);
        }
        assert_eq!("x".repeat(128).parse::<UserId>().unwrap().as_str().len(), 128);
    }

    #[test]
    fn characters_that_could_break_a_line_or_a_key_are_refused() {
        assert_eq!("".parse::<ProductId>(), Err(IdError::Empty));
        let long = "x".repeat(129);
        assert_eq!(long.parse::<ProductId>(), Err(IdError::TooLong { len: 129 }));
        assert_eq!(long.parse::<UserId>(), Err(IdError::TooLong { len: 129 }));
        let refused_by_all = [
            "a\0",
            "a\r",
            "a\n",
            "a\t",
            "\u{202e}a",
            "a\u{200b}",
            " a",
            "a ",
            "a b",
            "\u{7f}",
            "\u{e9}",
        ];
        for bad in refused_by_all {
            assert!(matches!(bad.parse::<UserId>(), Err(IdError::BadCharacter { .. })), "{bad:?}");
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
        for bad in refused_by_all
            .into_iter()
            .chain(["{a}", "*", "?", "[", "a/b", "a|b", "a%b", "a,b", "'a"])
        {
            let refused = bad.parse::<ProductId>();
            assert!(matches!(refused, Err(IdError::BadCharacter { .. })), "{bad:?}");
        }
    }

    #[test]
    fn error_never_contains_the_text() {
        let error = "evil\u{202e}text".parse::<UserId>().unwrap_err();
        assert!(!error.to_string().contains("evil"));
    }
}
