//! Named points between two effects at which a test may end the process, as a crash would.
//!
//! Compiled out of release builds. A development build ends itself at the point that the environment
//! variable `YOINK_CRASH_POINT` names.

/// Ends the process here if the environment names this point.
#[cfg(debug_assertions)]
pub(crate) fn reach(point: &str) {
    if std::env::var("YOINK_CRASH_POINT").is_ok_and(|named| named == point) {
        std::process::abort();
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn reach(_point: &str) {}
