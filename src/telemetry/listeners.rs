//! The instruments of one listener.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Meter, UpDownCounter},
};

use super::instruments::{counter, gauge};

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
        let open = meter.i64_up_down_counter("yoink.connections");
        let this = Self {
            open: open.with_description("Open connections of clients.").build(),
            max: gauge(meter, "yoink.connections_max", "The most connections at the same time."),
            limited: counter(
                meter,
                "yoink.connections_limited",
                "Connections closed because the limit was reached.",
            ),
            accept_failures: counter(
                meter,
                "yoink.accept_failures",
                "Connections that could not be accepted.",
            ),
            label: [KeyValue::new("listener", listener)],
        };
        this.open.add(0, &this.label);
        this.limited.add(0, &this.label);
        this.accept_failures.add(0, &this.label);
        this
    }

    /// The most connections that may be open at the same time.
    pub fn allows(&self, connections: usize) {
        self.max.record(connections as u64, &self.label);
    }

    /// A connection was accepted.
    pub fn opened(&self) {
        self.open.add(1, &self.label);
    }

    /// A connection ended.
    pub fn ended(&self) {
        self.open.add(-1, &self.label);
    }

    /// A connection was closed because the limit was reached.
    pub fn limited(&self) {
        self.limited.add(1, &self.label);
    }

    /// A connection could not be accepted.
    pub fn accept_failed(&self) {
        self.accept_failures.add(1, &self.label);
    }
}
