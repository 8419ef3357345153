//! Standard output. A reader that goes away (`| head`) ends a command quietly.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

/// Prints bytes as they are.
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
    // Nothing is left to be done if standard error is gone.
    drop(writeln!(io::stderr().lock(), "yoink: warning: {text}"));
}

/// A cell of a CSV file that holds text of callers. Spreadsheets take one that begins with `=`, `+`, `-`, `@`, a tab or a
/// carriage return for a formula: it gets a single quote in front, and so does one that begins with a single quote, so
/// that whoever takes one away has the text as it was.
pub(super) fn csv_text(text: String) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\'']) { format!("'{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::csv_text;

    #[test]
    fn no_cell_is_taken_for_a_formula_and_each_can_be_read_back() {
        for text in ["=1+1", "+49151", "-1", "@ann", "\ta", "\ra", "'", "'=1"] {
            let cell = csv_text(text.to_owned());
            assert_eq!(cell.strip_prefix('\''), Some(text));
        }
        for text in ["", "ann", "a=1", "auth0|5f", "1"] {
            assert_eq!(csv_text(text.to_owned()), text);
        }
    }
}
