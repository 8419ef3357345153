//! Whether Redis's append-only file holds everything, as far as INFO shows it.

use super::RedisState;

/// The instance whose file was last seen to be complete, and its count of CONFIG SET then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CompleteFile {
    seen: Option<(String, u64)>,
}

impl CompleteFile {
    /// Whether a restart would find everything in the file. After `CONFIG SET appendonly yes`, Redis writes to a
    /// temporary file until the first rewrite has ended, and INFO shows that as it shows an ordinary rewrite. So a
    /// rewrite counts as the first one if it was under way when this process read INFO first, or if it began
    /// together with a CONFIG SET.
    pub(super) fn check(&mut self, state: &RedisState) -> bool {
        let now = state.run_id.clone().map(|run_id| (run_id, state.config_sets));
        match (state.has_file, state.is_rewriting) {
            (Some(true), false) => {
                self.seen = now;
                true
            }
            (Some(true), true) => now.is_some() && self.seen == now,
            (Some(false) | None, _) => {
                self.seen = None;
                false
            }
        }
    }
}
