//! Named points between two effects at which a test may end the process, as a crash would.
//!
//! Compiled out of release builds. A development build ends itself at the point that the environment
//! variable `YOINK_CRASH_POINT` names. With `:panic` after the name, it panics there.

/// Ends the process here if the environment names this point.
#[cfg(debug_assertions)]
pub(crate) fn reach(point: &str) {
    let Ok(named) = std::env::var("YOINK_CRASH_POINT") else { return };
    if named == point {
        std::process::abort();
    }
    if named.strip_suffix(":panic") == Some(point) {
        panic!("the crash point {point} is reached");
    }
}

/// Does nothing in a release build.
#[cfg(not(debug_assertions))]
pub(crate) fn reach(_point: &str) {}
