//! SQLSTATEs as labels of a metric.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// The most codes that become a label value; all others are counted as `other`, because a trigger may raise any code.
const LABELS_MAX: usize = 20;

/// The codes that are label values so far.
#[derive(Default)]
pub(super) struct Sqlstates(Mutex<BTreeSet<String>>);

impl Sqlstates {
    pub(super) fn label(&self, sqlstate: String) -> String {
        let mut labels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if labels.len() < LABELS_MAX {
            labels.insert(sqlstate.clone());
        }
        if labels.contains(&sqlstate) { sqlstate } else { "other".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_beyond_the_limit_is_counted_as_other() {
        let sqlstates = Sqlstates::default();
        for code in 0..LABELS_MAX {
            let code = format!("P{code:04}");
            assert_eq!(sqlstates.label(code.clone()), code);
        }
        assert_eq!(sqlstates.label("ZZZZZ".to_owned()), "other");
        assert_eq!(sqlstates.label("P0001".to_owned()), "P0001");
    }
}
