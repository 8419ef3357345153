//! Operations on Redis and Postgres, and pools of connections, with the labels of OpenTelemetry's conventions for
//! database clients.

use std::time::{Duration, Instant};

use opentelemetry::{KeyValue, metrics::Histogram};

use super::Metrics;

const SYSTEM: &str = "db.system.name";
const OPERATION: &str = "db.operation.name";
const ERROR: &str = "error.type";

/// A pool of connections to Postgres at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolReading {
    /// The most connections that it may have.
    pub max: usize,
    /// Connections in use.
    pub used: usize,
    /// Open connections that are free.
    pub idle: usize,
    /// Operations that wait for a connection.
    pub pending_requests: usize,
}

impl Metrics {
    /// A Redis command ended; `error` is the reason why it failed.
    pub fn record_command(&self, name: String, took: Duration, error: Option<String>) {
        let mut labels = vec![KeyValue::new(SYSTEM, "redis"), KeyValue::new(OPERATION, name)];
        labels.extend(error.map(|error| KeyValue::new(ERROR, error)));
        self.instruments().operations.record(took.as_secs_f64(), &labels);
    }

    /// A script call ended; `error` is the reason why it did nothing or failed.
    pub fn record_script(&self, name: &'static str, took: Duration, error: Option<&'static str>) {
        let labels = [
            KeyValue::new(SYSTEM, "redis"),
            KeyValue::new(OPERATION, "EVALSHA"),
            KeyValue::new("db.stored_procedure.name", name),
            KeyValue::new(ERROR, error.unwrap_or_default()),
        ];
        let labels = if error.is_some() { &labels[..] } else { &labels[..3] };
        self.instruments().operations.record(took.as_secs_f64(), labels);
        if let Some(error) = error {
            let labels = [KeyValue::new("script", name), KeyValue::new("error", error)];
            self.instruments().redis_errors.add(1, &labels);
        }
    }

    /// An operation on Postgres begins; it ends when the result is dropped.
    pub fn ledger_operation(&self, name: &'static str) -> LedgerOperation {
        let (duration, error) = (self.instruments().operations.clone(), Some("cancelled"));
        LedgerOperation { duration, name, started: Instant::now(), error }
    }

    /// A pool of connections to Postgres was read.
    pub fn set_pool(&self, name: &'static str, reading: PoolReading) {
        let instruments = self.instruments();
        let pool = KeyValue::new("db.client.connection.pool.name", name);
        for (state, count) in [("idle", reading.idle), ("used", reading.used)] {
            let labels = [pool.clone(), KeyValue::new("db.client.connection.state", state)];
            instruments.connections.record(count as u64, &labels);
        }
        let pool = [pool];
        instruments.connections_max.record(reading.max as u64, &pool);
        instruments.pending_requests.record(reading.pending_requests as u64, &pool);
    }
}

/// An operation on Postgres that is in progress. It is recorded when it is dropped: as `cancelled`, unless it has
/// finished before.
pub struct LedgerOperation {
    duration: Histogram<f64>,
    name: &'static str,
    started: Instant,
    error: Option<&'static str>,
}

impl LedgerOperation {
    /// The operation ended, with this error or without one.
    pub fn finish(&mut self, error: Option<&'static str>) {
        self.error = error;
    }
}

impl Drop for LedgerOperation {
    fn drop(&mut self) {
        let labels = [
            KeyValue::new(SYSTEM, "postgresql"),
            KeyValue::new(OPERATION, self.name),
            KeyValue::new(ERROR, self.error.unwrap_or_default()),
        ];
        let labels = if self.error.is_some() { &labels[..] } else { &labels[..2] };
        self.duration.record(self.started.elapsed().as_secs_f64(), labels);
    }
}
