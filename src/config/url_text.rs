//! What URLs of both stores have in common: the login before the `@`, and `%` with its two digits.

/// Where the text after `scheme://` has an `@`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Login {
    /// It has none.
    None,
    /// One, which ends the login.
    One,
    /// More than one before the host.
    Several,
    /// One that stands after the first `/` or `?`, where no login is.
    BehindPath,
}

impl Login {
    /// Looks at what follows `scheme://`.
    pub(super) fn of(rest: &str) -> Self {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, behind) = rest.split_at(end);
        match (authority.matches('@').count(), behind.contains('@')) {
            (_, true) => Self::BehindPath,
            (0, false) => Self::None,
            (1, false) => Self::One,
            (_, false) => Self::Several,
        }
    }
}

/// Refuses characters that no URL may hold as they are.
///
/// # Errors
///
/// What is wrong, and what to write instead.
pub(super) fn check_characters(rest: &str) -> Result<(), String> {
    let problem = if raw_percent(rest) {
        "has a % that two hexadecimal digits do not follow: write %25 for a % in a password"
    } else if rest.contains(char::is_whitespace) {
        "has a space or a line break: write %20 for a space in a password"
    } else {
        return Ok(());
    };
    Err(problem.to_owned())
}

/// Whether a `%` is not followed by two hexadecimal digits.
fn raw_percent(text: &str) -> bool {
    text.split('%').skip(1).any(|after| {
        let digits = after.bytes().take(2).filter(u8::is_ascii_hexdigit).count();
        digits < 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_ends_at_one_at_sign_before_the_host() {
        assert_eq!(Login::of("db:1/y"), Login::None);
        assert_eq!(Login::of("ann:x@db/y"), Login::One);
        assert_eq!(Login::of("ann:x@y@db/y"), Login::Several);
        assert_eq!(Login::of("ann:x/y@db/y"), Login::BehindPath);
        assert_eq!(Login::of("db/y?user=a@b"), Login::BehindPath);
    }

    #[test]
    fn a_percent_sign_needs_two_hexadecimal_digits() {
        for raw in ["%", "a%", "%2", "%zz", "%2g", "%%41"] {
            assert!(raw_percent(raw), "{raw}");
        }
        for fine in ["", "a", "%25", "%2f%2F", "a%41b"] {
            assert!(!raw_percent(fine), "{fine}");
        }
    }
}
