//! Gauges of what the stores hold, set by a scrape or by whoever finds out.

use opentelemetry::metrics::{Gauge, Meter};

/// A partition's streams at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PartitionReading {
    /// Entries in `orders`.
    pub orders: u64,
    /// Of these, delivered and not settled.
    pub pending: u64,
    /// Entries not delivered yet, if Redis can tell.
    pub lag: Option<u64>,
    /// How long the oldest entry has waited, in seconds; 0 without one.
    pub oldest_seconds: f64,
    /// Entries in `dead`.
    pub dead: u64,
}

/// Connections to Postgres at the moment of a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolReading {
    /// Open ones.
    pub open: u64,
    /// Of these, idle.
    pub idle: u64,
    /// Operations that wait for one.
    pub waiting: u64,
}

pub(super) struct StoreGauges {
    pub(super) pool: Gauge<u64>,
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

pub(super) fn gauge(meter: &Meter, name: &'static str, what: &'static str) -> Gauge<u64> {
    meter.u64_gauge(name).with_description(what).build()
}

impl StoreGauges {
    pub(super) fn new(meter: &Meter) -> Self {
        Self {
            pool: gauge(
                meter,
                "yoink_ledger_connections",
                "Connections to Postgres, by pool and state.",
            ),
            store_up: gauge(meter, "yoink_store_up", "1 if the store answered this scrape."),
            backlog_max: gauge(
                meter,
                "yoink_backlog_max_entries",
                "Entries in orders at which intake is refused.",
            ),
            conservation: gauge(
                meter,
                "yoink_conservation_error_units",
                "What the last audit found too much or too little; 0 if it holds.",
            ),
            audit_unknown: gauge(
                meter,
                "yoink_audit_unknown",
                "1 if the last audit could not see everything.",
            ),
            lost: gauge(
                meter,
                "yoink_lost_reservations",
                "Accepted reservations of ended epochs that are nowhere.",
            ),
            durability: gauge(meter, "yoink_durability", "1 for what each store promises now."),
            product_stock: meter
                .i64_gauge("yoink_product_stock")
                .with_description("Units for sale, of products that the settings name.")
                .build(),
        }
    }
}

impl PartitionGauges {
    pub(super) fn new(meter: &Meter) -> Self {
        let oldest = meter.f64_gauge("yoink_orders_oldest").with_unit("s");
        Self {
            orders: gauge(meter, "yoink_orders_depth", "Entries in the orders stream."),
            pending: gauge(meter, "yoink_orders_pending", "Entries delivered and not settled."),
            lag: gauge(meter, "yoink_orders_lag", "Entries not delivered yet."),
            oldest: oldest.with_description("How long the oldest order has waited.").build(),
            dead: gauge(meter, "yoink_dead_depth", "Entries in the dead stream."),
            fenced: gauge(meter, "yoink_partition_fenced", "1 while the partition is fenced."),
            paused: gauge(meter, "yoink_consumption_paused", "1 while its orders are not stored."),
        }
    }
}
