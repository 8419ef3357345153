//! What the URLs of both stores have in common: the login before the `@`, and `%` with its two digits. Each error says
//! what is wrong, and what to write instead.

/// Refuses a URL in quotation marks.
pub(super) fn check_quotes(text: &str) -> Result<(), String> {
    if text.starts_with(['"', '\'']) {
        return Err("begins with a quotation mark, which is part of the value here: leave it out"
            .to_owned());
    }
    Ok(())
}

/// Refuses characters that a URL must escape. `rest` is what follows `scheme://`.
pub(super) fn check_characters(rest: &str) -> Result<(), String> {
    let problem = if rest.contains('#') {
        "has a raw #, which ends a URL: write %23 for a # in a password"
    } else if has_raw_percent(rest) {
        "has a % that is not followed by two hexadecimal digits: write %25 for a % in a password"
    } else if rest.contains(char::is_whitespace) {
        "has a space or a line break: write %20 for a space in a password"
    } else {
        return Ok(());
    };
    Err(problem.to_owned())
}

/// Accepts one `@` at most, before the host: it ends the login.
pub(super) fn check_login(rest: &str) -> Result<(), String> {
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let problem = if path.contains('@') {
        "has an @ after a / or ?: write %2F for a /, %3F for a ? and %40 for an @ in a user name or password"
    } else if authority.matches('@').count() > 1 {
        "has more than one @: write %40 for an @ in a password"
    } else {
        return Ok(());
    };
    Err(problem.to_owned())
}

/// Whether a `%` is not followed by two hexadecimal digits.
fn has_raw_percent(text: &str) -> bool {
    text.split('%').skip(1).any(|after| {
        let digits = after.bytes().take(2).filter(u8::is_ascii_hexdigit).count();
        digits < 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_has_one_at_sign_at_most_before_the_host() {
        for text in ["db:1/y", "ann:x@db/y"] {
            assert_eq!(check_login(text), Ok(()), "{text}");
        }
        for (text, why) in [
            ("ann:x@y@db/y", "more than one @"),
            ("ann:x/y@db/y", "after a / or ?"),
            ("db/y?user=a@b", "after a / or ?"),
        ] {
            assert!(check_login(text).unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn percent_sign_without_two_hexadecimal_digits_is_found() {
        for raw in ["%", "a%", "%2", "%zz", "%2g", "%%41"] {
            assert!(has_raw_percent(raw), "{raw}");
        }
        for fine in ["", "a", "%25", "%2f%2F", "a%41b"] {
            assert!(!has_raw_percent(fine), "{fine}");
        }
    }
}
