//! Page tokens: the position where a list continues, bound to the list and to its filters.
//!
//! A token is opaque to clients. It is checked when a client sends it, so that a wrong one is refused and not answered with
//! an empty page. Must never: be used as a security boundary. The checksum is not a signature; a forged token shows nothing
//! that the list itself does not show.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// The first byte of a token: the number of its layout.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// The problem of a token that is refused.
const REFUSED: &str =
    "is not a token of this list with these filters: request the first page without a token";

/// One list with one set of filters. It accepts only its own tokens.
pub(super) struct PagedList {
    /// The checksum of the version, the name and the filters.
    checksum: crc32fast::Hasher,
}

impl PagedList {
    /// The list's name, and its filters as they are in the request, in a fixed order.
    pub(super) fn new(name: &str, filters: &[&str]) -> Self {
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&[VERSION]);
        for part in [name].iter().chain(filters) {
            // With its length, so that two different sets of filters never give the same bytes.
            checksum.update(&part.len().to_be_bytes());
            checksum.update(part.as_bytes());
        }
        Self { checksum }
    }

    /// The token of a position.
    pub(super) fn token(&self, position: &str) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend(self.checksum_of(position.as_bytes()));
        bytes.extend(position.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The position of a token, as `parse` reads it; `None` for the first page.
    /// A token that is refused is an error, with its problem.
    pub(super) fn position<T>(
        &self,
        token: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, &'static str> {
        if token.is_empty() {
            return Ok(None);
        }
        let position = || {
            let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
            let (head, position) = bytes.split_at_checked(1 + CHECKSUM_BYTES)?;
            let given = head[0] == VERSION && head[1..] == self.checksum_of(position);
            let position = std::str::from_utf8(position).ok().filter(|_| given)?;
            parse(position)
        };
        position().map(Some).ok_or(REFUSED)
    }

    fn checksum_of(&self, position: &[u8]) -> [u8; CHECKSUM_BYTES] {
        let mut checksum = self.checksum.clone();
        checksum.update(position);
        checksum.finalize().to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(list: &PagedList, token: &str) -> Result<Option<String>, &'static str> {
        list.position(token, |text| Some(text.to_owned()))
    }

    #[test]
    fn a_list_accepts_only_the_tokens_that_it_gave() {
        let list = PagedList::new("products", &["shoe", ""]);
        let token = list.token("shoe-7");
        assert_eq!(position(&list, &token), Ok(Some("shoe-7".to_owned())));
        assert_eq!(position(&list, ""), Ok(None), "the first page");
        for other in [
            PagedList::new("reservations", &["shoe", ""]),
            PagedList::new("products", &["", "shoe"]),
            PagedList::new("products", &["shoe"]),
            PagedList::new("products", &["sho", "e"]),
        ] {
            assert_eq!(position(&other, &token), Err(REFUSED));
        }
        for wrong in ["shoe-7", "AA", "*", "AQAAAAA", "é", &format!("{token}="), &token[1..]] {
            assert_eq!(position(&list, wrong), Err(REFUSED), "{wrong}");
        }
    }

    #[test]
    fn a_token_with_any_changed_byte_is_refused() {
        let list = PagedList::new("products", &[]);
        let bytes = URL_SAFE_NO_PAD.decode(list.token("shoe-7")).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(position(&list, &URL_SAFE_NO_PAD.encode(changed)).is_err());
            }
        }
    }

    #[test]
    fn a_position_that_the_list_does_not_understand_is_refused() {
        let list = PagedList::new("products", &[]);
        let token = list.token("shoe-7");
        assert_eq!(list.position(&token, |text| text.parse::<u64>().ok()), Err(REFUSED));
    }
}
