//! Gauges of what the stores hold, set by a scrape or by the task that finds it out.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue;

use super::Metrics;

/// A partition's streams at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PartitionReading {
    /// Entries in `orders`.
    pub orders: u64,
    /// Of these, delivered and not settled.
    pub pending: u64,
    /// Entries not delivered yet, where Redis reports them.
    pub lag: Option<u64>,
    /// How long the oldest entry has waited, in seconds; 0 without one.
    pub oldest_seconds: f64,
    /// Entries in `dead`.
    pub dead: u64,
}

impl Metrics {
    /// A partition's streams were read.
    pub fn set_partition(&self, partition: u16, reading: &PartitionReading) {
        let labels = [KeyValue::new("partition", i64::from(partition))];
        let instruments = self.instruments();
        instruments.orders.record(reading.orders, &labels);
        instruments.pending.record(reading.pending, &labels);
        if let Some(lag) = reading.lag {
            instruments.lag.record(lag, &labels);
        }
        instruments.oldest.record(reading.oldest_seconds, &labels);
        instruments.dead.record(reading.dead, &labels);
    }

    /// Whether a partition was last seen to be fenced, and whether this process has paused its consumption.
    pub fn set_partition_state(&self, partition: u16, fenced: bool, paused: bool) {
        let labels = [KeyValue::new("partition", i64::from(partition))];
        self.instruments().fenced.record(u64::from(fenced), &labels);
        self.instruments().paused.record(u64::from(paused), &labels);
    }

    /// Whether a store answered.
    pub fn set_store_up(&self, store: &'static str, up: bool) {
        self.instruments().store_up.record(u64::from(up), &[KeyValue::new("store", store)]);
    }

    /// Whether this is the durability that a store's settings give.
    pub fn set_durability(&self, store: &'static str, mode: &'static str, is: bool) {
        let labels = [KeyValue::new("store", store), KeyValue::new("mode", mode)];
        self.instruments().durability.record(u64::from(is), &labels);
    }

    /// An audit ended; `complete` if it could read everything.
    pub fn set_audit_complete(&self, complete: bool) {
        self.instruments().audit_unknown.record(u64::from(!complete), &[]);
    }

    /// The sum of all differences that an audit found.
    pub fn set_audit_differences(&self, differences: u64) {
        self.instruments().audit_differences.record(differences, &[]);
    }

    /// This many accepted reservations were lost; at least so many, if the count is not exact.
    pub fn set_lost(&self, is_exact: bool, count: u64) {
        let certainty = if is_exact { "exact" } else { "minimum" };
        self.instruments().lost.record(count, &[KeyValue::new("certainty", certainty)]);
    }

    /// A partition was audited, and could be read.
    pub fn set_audited(&self, partition: u16, at: SystemTime) {
        let labels = [KeyValue::new("partition", i64::from(partition))];
        let since_1970 = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.instruments().audit_last.record(since_1970.as_secs_f64(), &labels);
    }

    /// In so many partitions, the checkpoint of the audit cannot cover more rows.
    pub fn set_blocked_checkpoints(&self, partitions: usize) {
        self.instruments().audit_blocked.record(partitions as u64, &[]);
    }

    /// This worker no longer audits; another one reports what its audits find. The times of its audits stay: the newest time
    /// that any worker reports counts.
    pub fn clear_audit(&self) {
        self.set_audit_complete(true);
        self.set_audit_differences(0);
        self.set_blocked_checkpoints(0);
        for is_exact in [true, false] {
            self.set_lost(is_exact, 0);
        }
    }

    /// How many workers this worker knows to run, itself among them, and how many partitions it reads.
    pub fn set_spread(&self, workers: usize, partitions: usize) {
        self.instruments().live_workers.record(workers as u64, &[]);
        self.instruments().owned_partitions.record(partitions as u64, &[]);
    }

    /// The limit of entries in a partition's orders stream.
    pub fn set_backlog_max_entries(&self, entries: u64) {
        self.instruments().backlog_max.record(entries, &[]);
    }

    /// The stock of a product that the settings name was read.
    pub fn set_product_stock(&self, product: &str, units: i64) {
        let labels = [KeyValue::new("product", product.to_owned())];
        self.instruments().product_stock.record(units, &labels);
    }
}
