//! Operations on Redis and Postgres, and pools of connections, named as OpenTelemetry's conventions for database
//! clients name them.

use std::time::{Duration, Instant};

use opentelemetry::{
    KeyValue,
    metrics::{Gauge, Histogram, Meter},
};

use super::instruments::{SECONDS, gauge, seconds};

const SYSTEM: &str = "db.system.name";
const OPERATION: &str = "db.operation.name";
const ERROR: &str = "error.type";
const POOL: &str = "db.client.connection.pool.name";

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

pub(super) struct Database {
    duration: Histogram<f64>,
    connections: Gauge<u64>,
    connections_max: Gauge<u64>,
    pending_requests: Gauge<u64>,
}

impl Database {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            duration: seconds(
                meter,
                "db.client.operation.duration",
                "Redis commands and scripts with their round trip, operations on Postgres with their wait for a connection.",
                &SECONDS,
            ),
            connections: gauge(
                meter,
                "db.client.connection.count",
                "Connections to Postgres, by pool and state.",
            ),
            connections_max: gauge(
                meter,
                "db.client.connection.max",
                "The most connections of a pool.",
            ),
            pending_requests: gauge(
                meter,
                "db.client.connection.pending_requests",
                "Operations that wait for a connection to Postgres.",
            ),
        }
    }

    /// A Redis command ended.
    pub(super) fn command(&self, name: String, took: Duration, error: Option<String>) {
        let mut labels = vec![KeyValue::new(SYSTEM, "redis"), KeyValue::new(OPERATION, name)];
        labels.extend(error.map(|error| KeyValue::new(ERROR, error)));
        self.duration.record(took.as_secs_f64(), &labels);
    }

    /// A call of a script ended.
    pub(super) fn script(&self, name: &'static str, took: Duration, error: Option<&'static str>) {
        let labels = [
            KeyValue::new(SYSTEM, "redis"),
            KeyValue::new(OPERATION, "EVALSHA"),
            KeyValue::new("db.stored_procedure.name", name),
            KeyValue::new(ERROR, error.unwrap_or_default()),
        ];
        let labels = if error.is_some() { &labels[..] } else { &labels[..3] };
        self.duration.record(took.as_secs_f64(), labels);
    }

    /// An operation on Postgres begins.
    pub(super) fn ledger_operation(&self, name: &'static str) -> LedgerOperation {
        let (duration, error) = (self.duration.clone(), Some("cancelled"));
        LedgerOperation { duration, name, started: Instant::now(), error }
    }

    /// A pool was read.
    pub(super) fn pool(&self, name: &'static str, reading: PoolReading) {
        let pool = KeyValue::new(POOL, name);
        for (state, count) in [("idle", reading.idle), ("used", reading.used)] {
            let labels = [pool.clone(), KeyValue::new("db.client.connection.state", state)];
            self.connections.record(count as u64, &labels);
        }
        let pool = std::slice::from_ref(&pool);
        self.connections_max.record(reading.max as u64, pool);
        self.pending_requests.record(reading.pending_requests as u64, pool);
    }
}

/// An operation on Postgres that is under way. It is recorded when it is dropped: as `cancelled`, unless it has
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
