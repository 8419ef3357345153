//! Failures of Postgres that are in no list, counted by their SQLSTATE.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Meter},
};

/// Most codes that are labels; the rest is `other`. A trigger may raise any code.
const MAX_LABELS: usize = 20;

pub(super) struct Sqlstates {
    counter: Counter<u64>,
    labels: Mutex<BTreeSet<String>>,
}

impl Sqlstates {
    pub(super) fn new(meter: &Meter) -> Self {
        let counter = meter.u64_counter("yoink_ledger_unlisted_errors");
        let what = "Transactions that failed with a SQLSTATE that is in no list.";
        let counter = counter.with_description(what).build();
        // It is there before anything happens.
        counter.add(0, &[KeyValue::new("sqlstate", "none")]);
        Self { counter, labels: Mutex::default() }
    }

    pub(super) fn add(&self, sqlstate: String) {
        self.counter.add(1, &[KeyValue::new("sqlstate", self.label(sqlstate))]);
    }

    fn label(&self, sqlstate: String) -> String {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        if labels.len() < MAX_LABELS {
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
    fn labels_are_limited() {
        let meter = opentelemetry_sdk::metrics::SdkMeterProvider::default().meter("test");
        let sqlstates = Sqlstates::new(&meter);
        for code in 0..MAX_LABELS {
            let code = format!("P{code:04}");
            assert_eq!(sqlstates.label(code.clone()), code);
        }
        assert_eq!(sqlstates.label("ZZZZZ".to_owned()), "other");
        assert_eq!(sqlstates.label("P0001".to_owned()), "P0001");
    }
}
