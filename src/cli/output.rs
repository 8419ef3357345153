//! Standard output. When its reader has closed it (`| head`), the command ends without an error.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

pub(super) fn bytes(bytes: &[u8]) -> io::Result<()> {
    io::stdout().lock().write_all(bytes)
}

/// Prints a line.
pub(super) fn line(text: impl Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        printed => printed,
    }
}

/// Prints a warning to standard error, for a command that has no log.
pub(super) fn warning(text: impl Display) {
    // If standard error is closed, there is nowhere to report that.
    drop(writeln!(io::stderr().lock(), "yoink: warning: {text}"));
}

/// Prints a note to standard error, where standard output is read by a program.
pub(super) fn note(text: impl Display) {
    // If standard error is closed, there is nowhere to report that.
    drop(writeln!(io::stderr().lock(), "yoink: {text}"));
}

/// A cell of a CSV file with text from callers. Spreadsheets read a cell that begins with `=`, `+`, `-`, `@`, a tab or a
/// carriage return as a formula: a single quote goes in front of it, and in front of a cell that begins with a single
/// quote, so that removing one quote always gives the original text.
pub(super) fn csv_text(text: String) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\'']) { format!("'{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::csv_text;

    #[test]
    fn cell_is_not_a_formula_and_can_be_read_back() {
        for text in ["=1+1", "+49151", "-1", "@ann", "\ta", "\ra", "'", "'=1"] {
            let cell = csv_text(text.to_owned());
            assert_eq!(cell.strip_prefix('\''), Some(text));
        }
        for text in ["", "ann", "a=1", "auth0|5f", "1"] {
            assert_eq!(csv_text(text.to_owned()), text);
        }
    }
}
