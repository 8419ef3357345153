//! Which characters a text for people may have: a product's name, an actor or a reason that an operator gives.
//!
//! Marks that scripts and emoji need are allowed (joiners, direction marks). Characters that hide text, reorder the text around
//! them or break a line are not.

use std::{fmt, str::FromStr};

/// Opens an emoji flag of a region, such as that of Scotland; tag characters follow.
const BLACK_FLAG: char = '\u{1f3f4}';
const CANCEL_TAG: char = '\u{e007f}';

/// The most characters of a name or of an operator's text.
const CHARACTERS_MAX: usize = 200;

/// Why a text is not a valid name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe them")]
pub enum NameError {
    #[error("name must have 1 to 200 characters")]
    Length,
    #[error("name has a control character or an invisible one that alters the text around it")]
    Character,
    #[error("name has no visible character")]
    Blank,
}

/// A text of an operator for the record, an actor or a reason: at most 200 characters, none of which
/// changes how the text around it is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperatorText(String);

/// A text is not a valid actor or reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must have at most 200 characters, and none that is a control character or an invisible one \
     that alters the text around it"
)]
pub struct OperatorTextError;

impl OperatorText {
    /// The text, or `other` if it is empty.
    pub fn or(self, other: &str) -> String {
        if self.0.is_empty() { other.to_owned() } else { self.0 }
    }
}

impl FromStr for OperatorText {
    type Err = OperatorTextError;

    fn from_str(text: &str) -> Result<Self, OperatorTextError> {
        if text.chars().count() > CHARACTERS_MAX || has_refused_character(text) {
            return Err(OperatorTextError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for OperatorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a product's name.
pub(super) fn check_name(name: &str) -> Result<(), NameError> {
    let length = name.chars().count();
    if length == 0 || length > CHARACTERS_MAX {
        return Err(NameError::Length);
    }
    if has_refused_character(name) {
        return Err(NameError::Character);
    }
    if name.chars().all(is_blank) {
        return Err(NameError::Blank);
    }
    Ok(())
}

/// Whether a text has a character that may change how the text around it is shown.
fn has_refused_character(text: &str) -> bool {
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if c == BLACK_FLAG {
            // The tags of one flag: a region's letters and digits, and the end of it.
            let rest = characters.as_str();
            let region = rest.trim_start_matches(
                |c| matches!(c, '\u{e0030}'..='\u{e0039}' | '\u{e0061}'..='\u{e007a}'),
            );
            if region.len() < rest.len()
                && let Some(after) = region.strip_prefix(CANCEL_TAG)
            {
                characters = after.chars();
            }
        } else if is_refused(c) {
            return true;
        }
    }
    false
}

fn is_refused(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{180e}' // a separator without width
            | '\u{200b}' | '\u{feff}' // zero-width spaces
            | '\u{2028}' | '\u{2029}' // line and paragraph separators
            | '\u{202a}'..='\u{202e}' // embeddings and overrides of direction
            | '\u{2060}'..='\u{2064}' // invisible operators
            | '\u{2066}'..='\u{206f}' // isolates of direction, deprecated marks
            | '\u{fff9}'..='\u{fffb}' // annotations
            | '\u{e0000}'..='\u{e007f}' // tags
        )
}

/// Whether a character is invisible.
fn is_blank(c: char) -> bool {
    c.is_whitespace()
        || matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' // soft hyphen, grapheme joiner, Arabic letter mark
            | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' // Hangul fillers
            | '\u{17b4}' | '\u{17b5}' // Khmer inherent vowels
            | '\u{180b}'..='\u{180f}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}' // variation selectors
            | '\u{200c}'..='\u{200f}' // joiners, direction marks
            | '\u{2800}' // Braille blank
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_script_and_emoji_are_accepted() {
        for name in [
            "Sneaker 42, limited edition",
            "Crème brûlée",
            "\u{6a9}\u{62a}\u{627}\u{628}\u{200c}\u{647}\u{627}", // Persian, with a non-joiner
            "\u{915}\u{94d}\u{200d}\u{937}",                      // Hindi, with a joiner
            "\u{5e9}\u{5dc}\u{5d5}\u{5dd} A\u{200e} \u{200f}B",   // Hebrew, with direction marks
            "\u{627}\u{61c}1",                                    // Arabic letter mark
            "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",        // a family
            "\u{1f3f4}\u{e0067}\u{e0062}\u{e0073}\u{e0063}\u{e0074}\u{e007f}", // the flag of Scotland
            "\u{1f3f4}\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}\u{1f3f4} cup",
            "\u{2764}\u{fe0f}",
            "\u{1f3f4}", // a flag without a region
            "a\u{ad}b",
        ] {
            assert_eq!(check_name(name), Ok(()), "{name:?}");
        }
        assert_eq!(check_name(&"\u{e9}".repeat(200)), Ok(()));
    }

    #[test]
    fn characters_that_alter_the_text_around_them_are_refused() {
        let mut refused: Vec<char> =
            vec!['\u{200b}', '\u{feff}', '\u{2028}', '\u{2029}', '\u{180e}'];
        for range in [
            '\0'..='\u{1f}',
            '\u{7f}'..='\u{9f}',
            '\u{202a}'..='\u{202e}',
            '\u{2060}'..='\u{2064}',
            '\u{2066}'..='\u{206f}',
            '\u{e0000}'..='\u{e007f}',
        ] {
            refused.extend(range);
        }
        for c in refused {
            let name = format!("a{c}b");
            assert_eq!(check_name(&name), Err(NameError::Character), "{name:?}");
        }
        for flag in [
            "\u{1f3f4}\u{e0067}", // without an end
            "\u{1f3f4}\u{e007f}", // without a region
            "\u{1f3f4} \u{e0067}\u{e007f}",
            "\u{1f3f4}\u{e0067}\u{e0020}\u{e007f}",
            "\u{1f3f4}\u{e0067}\u{e007f}\u{e0067}", // tags behind its end
        ] {
            assert_eq!(check_name(flag), Err(NameError::Character), "{flag:?}");
        }
    }

    #[test]
    fn names_that_are_only_blank_are_refused() {
        for name in [
            " ",
            "\u{a0}",
            "\u{3164}",
            "\u{115f}\u{1160}",
            "\u{ffa0}",
            "\u{2800}",
            "\u{200d}\u{200e}",
            "\u{2003}\u{3000}",
            "\u{fe0f}",
        ] {
            assert_eq!(check_name(name), Err(NameError::Blank), "{name:?}");
        }
        assert_eq!(check_name(""), Err(NameError::Length));
        assert_eq!(check_name(&"x".repeat(201)), Err(NameError::Length));
    }

    #[test]
    fn long_notes_and_control_characters_are_refused() {
        assert_eq!("refunded, é".parse::<OperatorText>().unwrap().or("x"), "refunded, é");
        assert_eq!("".parse::<OperatorText>().unwrap().or("x"), "x");
        assert!("é".repeat(200).parse::<OperatorText>().is_ok());
        for bad in
            ["a\nb", "a\0", "\u{1b}[31m", "\u{85}", "\u{202e}a", "a\u{2028}b", &"x".repeat(201)]
        {
            assert_eq!(bad.parse::<OperatorText>(), Err(OperatorTextError), "{bad:?}");
        }
        let message = "must have at most 200 characters, and none that is a control character or an \
                       invisible one that alters the text around it";
        assert_eq!(OperatorTextError.to_string(), message);
    }
}
