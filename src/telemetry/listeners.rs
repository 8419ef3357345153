//! The instruments of one listener.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Meter, UpDownCounter},
};

/// Connections of clients to one listener; clones share them.
#[derive(Clone)]
pub struct ListenerMetrics {
    open: UpDownCounter<i64>,
    max: Gauge<u64>,
    limited: Counter<u64>,
    accept_failures: Counter<u64>,
    label: [KeyValue; 1],
}

impl ListenerMetrics {
    pub(super) fn new(meter: &Meter, listener: &'static str) -> Self {
        let this = Self {
            open: meter
                .i64_up_down_counter("yoink_connections")
                .with_description("Connections of clients.")
                .build(),
            max: meter
                .u64_gauge("yoink_connections_max")
                .with_description("Most connections of clients at the same time.")
                .build(),
            limited: meter
                .u64_counter("yoink_connections_limited")
                .with_description("Connections closed because there were too many.")
                .build(),
            accept_failures: meter
                .u64_counter("yoink_accept_failures")
                .with_description("Attempts at accepting a connection that failed.")
                .build(),
            label: [KeyValue::new("listener", listener)],
        };
        this.open.add(0, &this.label);
        this.limited.add(0, &this.label);
        this.accept_failures.add(0, &this.label);
        this
    }

    /// There may be so many connections at the same time.
    pub fn allows(&self, connections: usize) {
        self.max.record(u64::try_from(connections).unwrap_or(u64::MAX), &self.label);
    }

    /// A connection was accepted.
    pub fn opened(&self) {
        self.open.add(1, &self.label);
    }

    /// A connection ended.
    pub fn ended(&self) {
        self.open.add(-1, &self.label);
    }

    /// A connection was closed because there were too many.
    pub fn limited(&self) {
        self.limited.add(1, &self.label);
    }

    /// A connection could not be accepted.
    pub fn accept_failed(&self) {
        self.accept_failures.add(1, &self.label);
    }
}
