//! Failures of Postgres whose SQLSTATE is in no list, counted by it.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Meter},
};

use super::instruments::counter;

/// The most codes that become a label value; all others are counted as `other`, because a trigger may raise any code.
const LABELS_MAX: usize = 20;

pub(super) struct Sqlstates {
    counter: Counter<u64>,
    labels: Mutex<BTreeSet<String>>,
}

impl Sqlstates {
    pub(super) fn new(meter: &Meter) -> Self {
        let what = "Transactions that failed with a SQLSTATE that is in no list.";
        let counter = counter(meter, "yoink.ledger.unlisted_errors", what);
        // Exported as 0 before the first failure.
        counter.add(0, &[KeyValue::new("sqlstate", "none")]);
        Self { counter, labels: Mutex::default() }
    }

    pub(super) fn add(&self, sqlstate: String) {
        self.counter.add(1, &[KeyValue::new("sqlstate", self.label(sqlstate))]);
    }

    fn label(&self, sqlstate: String) -> String {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if labels.len() < LABELS_MAX {
            labels.insert(sqlstate.clone());
        }
        if labels.contains(&sqlstate) { sqlstate } else { "other".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider as _;

    use super::*;

    #[test]
    fn code_beyond_the_limit_is_counted_as_other() {
        let meter = opentelemetry_sdk::metrics::SdkMeterProvider::default().meter("test");
        let sqlstates = Sqlstates::new(&meter);
        for code in 0..LABELS_MAX {
            let code = format!("P{code:04}");
            assert_eq!(sqlstates.label(code.clone()), code);
        }
        assert_eq!(sqlstates.label("ZZZZZ".to_owned()), "other");
        assert_eq!(sqlstates.label("P0001".to_owned()), "P0001");
    }
}
