//! The text of a file, which must be UTF-8.

use super::position::Cursor;

/// The text without its byte order mark, or what is wrong with the encoding.
pub(super) fn decode(bytes: &[u8]) -> Result<&str, String> {
    let utf_16 = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..]);
    if utf_16 {
        return Err("line 1, column 1: the file is UTF-16: save the file as UTF-8".to_owned());
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let offset = error.valid_up_to();
        let position = Cursor::new(bytes).position_at(offset);
        format!("{position}: the byte 0x{:02x} is not UTF-8: save the file as UTF-8", bytes[offset])
    })
}
