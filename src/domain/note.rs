//! Texts that operators write into the record of dead letters: a name, a reason.

use std::{fmt, str::FromStr};

use super::name::has_refused_character;

/// The most characters of a note.
const CHARACTERS_MAX: usize = 200;

/// At most 200 characters, none of which changes how the text around it is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note(String);

/// A text is not a valid note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must have at most 200 characters, and none that is a control character or an invisible one \
     that alters the text around it"
)]
pub struct NoteError;

impl Note {
    /// The note, or `other` if it is empty.
    pub fn or(self, other: &str) -> String {
        if self.0.is_empty() { other.to_owned() } else { self.0 }
    }
}

impl FromStr for Note {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        if text.chars().count() > CHARACTERS_MAX || has_refused_character(text) {
            return Err(NoteError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_and_control_characters_are_refused() {
        assert_eq!("refunded, é".parse::<Note>().unwrap().or("x"), "refunded, é");
        assert_eq!("".parse::<Note>().unwrap().or("x"), "x");
        assert!("é".repeat(200).parse::<Note>().is_ok());
        for bad in
            ["a\nb", "a\0", "\u{1b}[31m", "\u{85}", "\u{202e}a", "a\u{2028}b", &"x".repeat(201)]
        {
            assert_eq!(bad.parse::<Note>(), Err(NoteError), "{bad:?}");
        }
        let message = "must have at most 200 characters, and none that is a control character or an \
                       invisible one that alters the text around it";
        assert_eq!(NoteError.to_string(), message);
    }
}
