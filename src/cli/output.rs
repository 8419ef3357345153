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
