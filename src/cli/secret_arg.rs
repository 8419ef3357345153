//! An argument that may have a secret. It is read by the command and not by clap, whose messages repeat what they refuse.
//!
//! Must never: show its text.

use std::{convert::Infallible, fmt, str::FromStr};

/// The text of an argument.
#[derive(Clone)]
pub(super) struct SecretArg(String);

impl SecretArg {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for SecretArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_is_not_shown() {
        let arg: SecretArg = "hunter2".parse().unwrap();
        assert_eq!((arg.as_str(), format!("{arg:?}").as_str()), ("hunter2", "(hidden)"));
    }
}
