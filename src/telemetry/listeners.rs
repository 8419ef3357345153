//! The metrics of one listener.

use opentelemetry::{KeyValue, metrics::Meter};

use super::instruments::ListenerInstruments;

/// Connections of clients to one listener; clones share them.
#[derive(Clone)]
pub struct ListenerMetrics {
    instruments: ListenerInstruments,
    label: [KeyValue; 1],
}

impl ListenerMetrics {
    pub(super) fn new(meter: &Meter, listener: &'static str) -> Self {
        let instruments = ListenerInstruments::new(meter);
        let label = [KeyValue::new("listener", listener)];
        instruments.open.add(0, &label);
        instruments.limited.add(0, &label);
        instruments.accept_failures.add(0, &label);
        instruments.handshake_failures.add(0, &label);
        Self { instruments, label }
    }

    /// The most connections that may be open at the same time.
    pub fn allows(&self, connections: usize) {
        self.instruments.max.record(connections as u64, &self.label);
    }

    /// A connection was accepted.
    pub fn opened(&self) {
        self.instruments.open.add(1, &self.label);
    }

    /// A connection ended.
    pub fn ended(&self) {
        self.instruments.open.add(-1, &self.label);
    }

    /// A connection was closed because the limit was reached.
    pub fn limited(&self) {
        self.instruments.limited.add(1, &self.label);
    }

    /// A connection could not be accepted.
    pub fn accept_failed(&self) {
        self.instruments.accept_failures.add(1, &self.label);
    }

    /// A TLS handshake failed.
    pub fn handshake_failed(&self) {
        self.instruments.handshake_failures.add(1, &self.label);
    }
}
