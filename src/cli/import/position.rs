//! Positions in a file: lines end with LF, CRLF or CR, columns are characters, and both are counted from 1.

use std::fmt;

/// A line and a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Finds positions from the beginning of a text to its end; it never goes back.
pub(super) struct Cursor<'a> {
    text: &'a [u8],
    offset: usize,
    line: usize,
    line_start: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, offset: 0, line: 1, line_start: 0 }
    }

    /// The position of an offset in bytes, which must not be smaller than the one before.
    pub(super) fn position_at(&mut self, offset: usize) -> Position {
        let end = offset.min(self.text.len());
        while self.offset < end {
            let is_crlf = self.text[self.offset..].starts_with(b"\r\n");
            let ends_line = matches!(self.text[self.offset], b'\n' | b'\r');
            self.offset += if is_crlf { 2 } else { 1 };
            if ends_line {
                self.line += 1;
                self.line_start = self.offset;
            }
        }
        let before = self.text.get(self.line_start..offset).unwrap_or_default();
        // A byte that continues a character is no column of its own.
        let characters = before.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
        Position { line: self.line, column: characters + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::Cursor;

    #[test]
    fn lines_end_with_lf_crlf_and_cr_and_columns_are_characters() {
        let text = "a\nbü,c\r\nd\re\n\nf";
        let mut cursor = Cursor::new(text.as_bytes());
        let positions = ["b", "c", "d", "e", "f"].map(|word| {
            let position = cursor.position_at(text.find(word).unwrap());
            (position.line, position.column)
        });
        assert_eq!(positions, [(2, 1), (2, 4), (3, 1), (4, 1), (6, 1)]);
    }
}
