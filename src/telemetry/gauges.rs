//! Gauges of what the stores hold, set by a scrape or by the task that finds it out.

use opentelemetry::metrics::{Gauge, Meter};

use super::instruments::gauge;

/// A partition's streams at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PartitionReading {
    /// Entries in `orders`.
    pub orders: u64,
    /// Of these, delivered and not settled.
    pub pending: u64,
    /// Entries not delivered yet, if Redis knows.
    pub lag: Option<u64>,
    /// How long the oldest entry has waited, in seconds; 0 without one.
    pub oldest_seconds: f64,
    /// Entries in `dead`.
    pub dead: u64,
}

pub(super) struct StoreGauges {
    pub(super) store_up: Gauge<u64>,
    pub(super) backlog_max: Gauge<u64>,
    pub(super) durability: Gauge<u64>,
    pub(super) conservation: Gauge<u64>,
    pub(super) audit_unknown: Gauge<u64>,
    pub(super) lost: Gauge<u64>,
    pub(super) product_stock: Gauge<i64>,
}

pub(super) struct PartitionGauges {
    pub(super) orders: Gauge<u64>,
    pub(super) pending: Gauge<u64>,
    pub(super) lag: Gauge<u64>,
    pub(super) oldest: Gauge<f64>,
    pub(super) dead: Gauge<u64>,
    pub(super) fenced: Gauge<u64>,
    pub(super) paused: Gauge<u64>,
}

impl StoreGauges {
    pub(super) fn new(meter: &Meter) -> Self {
        let gauge = |name, what| gauge(meter, name, what);
        let stock = meter.i64_gauge("yoink.product.stock");
        Self {
            store_up: gauge("yoink.store.up", "1 if the store answered the last scrape in time."),
            backlog_max: gauge(
                "yoink.backlog.max_entries",
                "Entries in a partition's orders stream from which on requests are refused.",
            ),
            conservation: gauge(
                "yoink.conservation.error_units",
                "How much the last audit found too much or too little; 0 if the ledger and Redis agree.",
            ),
            audit_unknown: gauge(
                "yoink.audit.unknown",
                "1 if the last audit could not read everything.",
            ),
            lost: gauge(
                "yoink.lost_reservations",
                "Accepted reservations of ended epochs that neither store holds.",
            ),
            durability: gauge("yoink.durability", "1 for the durability that each store gives."),
            product_stock: stock
                .with_description("Units for sale, of the products that the settings name.")
                .build(),
        }
    }
}

impl PartitionGauges {
    pub(super) fn new(meter: &Meter) -> Self {
        let gauge = |name, what| gauge(meter, name, what);
        let oldest = meter.f64_gauge("yoink.orders.oldest").with_unit("s");
        Self {
            orders: gauge("yoink.orders.depth", "Entries in the orders stream."),
            pending: gauge("yoink.orders.pending", "Entries delivered and not settled."),
            lag: gauge("yoink.orders.lag", "Entries not delivered yet."),
            oldest: oldest.with_description("How long the oldest order has waited.").build(),
            dead: gauge("yoink.dead.depth", "Entries in the dead stream."),
            fenced: gauge("yoink.partition.fenced", "1 while the partition is fenced."),
            paused: gauge("yoink.consumption.paused", "1 while its orders are not stored."),
        }
    }
}
