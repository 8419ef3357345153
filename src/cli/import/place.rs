//! Places in a file: lines end with LF, CRLF or CR, and columns are characters, both counted from 1.

use std::fmt;

/// Where something stands in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
    /// The name of the column or key, if it has one.
    pub(super) name: Option<&'static str>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)?;
        self.name.map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

/// Counts lines and columns from the beginning of a text; may only go forward.
pub(super) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
    /// Where the line begins.
    line_start: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, line: 1, line_start: 0 }
    }

    /// The line of an offset.
    pub(super) fn line_at(&mut self, offset: usize) -> usize {
        let end = offset.min(self.text.len());
        while self.at < end {
            let crlf = self.text[self.at..].starts_with(b"\r\n");
            let ends_line = matches!(self.text[self.at], b'\n' | b'\r');
            self.at += if crlf { 2 } else { 1 };
            if ends_line {
                self.line += 1;
                self.line_start = self.at;
            }
        }
        self.line
    }

    /// Line and column of an offset; the column counts characters.
    pub(super) fn place_at(&mut self, offset: usize) -> (usize, usize) {
        let line = self.line_at(offset);
        let before = self.text.get(self.line_start..offset).unwrap_or_default();
        let continues = |byte: &&u8| **byte & 0xc0 == 0x80;
        (line, before.len() - before.iter().filter(continues).count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::Cursor;

    #[test]
    fn lines_end_with_lf_crlf_and_cr_and_columns_are_characters() {
        let text = "a\nbü,c\r\nd\re\n\nf";
        let mut cursor = Cursor::new(text.as_bytes());
        let places: Vec<_> = ["b", "c", "d", "e", "f"]
            .into_iter()
            .map(|word| cursor.place_at(text.find(word).unwrap()))
            .collect();
        assert_eq!(places, [(2, 1), (2, 4), (3, 1), (4, 1), (6, 1)]);
    }
}
