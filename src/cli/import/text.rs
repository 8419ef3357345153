//! The text of a file: UTF-8, or a sentence that says what it is instead and where.

use super::place::Cursor;

/// The text without its byte order mark.
pub(super) fn decode(bytes: &[u8]) -> Result<&str, String> {
    let utf_16 = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..]);
    if utf_16 {
        return Err("line 1, column 1: the file is UTF-16: save the file as UTF-8".to_owned());
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let offset = error.valid_up_to();
        let (line, column) = Cursor::new(bytes).place_at(offset);
        format!(
            "line {line}, column {column}: the byte 0x{:02x} is not UTF-8: save the file as UTF-8",
            bytes[offset]
        )
    })
}
