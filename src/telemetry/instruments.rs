//! Every instrument, with its name and its description.
//!
//! Names have dots, as OpenTelemetry writes them. The exporter for Prometheus turns them into underscores and appends the
//! unit and, to counters, `_total`. What is counted in `f64` is a time in seconds.

use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, UpDownCounter};

/// Buckets of times: calls take less than 10 s, orders may wait for an hour while Postgres is unavailable.
const SECONDS: [f64; 18] = [
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 300.0, 3600.0,
];
const SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

pub(super) trait Instrument {
    fn new(meter: &Meter, name: &'static str, description: &'static str) -> Self;
}

macro_rules! instrument {
    ($type:ty, $build:ident $(, $option:ident($value:expr))*) => {
        impl Instrument for $type {
            fn new(meter: &Meter, name: &'static str, description: &'static str) -> Self {
                meter.$build(name).with_description(description)$(.$option($value))*.build()
            }
        }
    };
}

instrument!(Counter<u64>, u64_counter);
instrument!(UpDownCounter<i64>, i64_up_down_counter);
instrument!(Gauge<u64>, u64_gauge);
instrument!(Gauge<i64>, i64_gauge);
instrument!(Gauge<f64>, f64_gauge, with_unit("s"));
instrument!(Histogram<f64>, f64_histogram, with_unit("s"), with_boundaries(SECONDS.to_vec()));
instrument!(Histogram<u64>, u64_histogram, with_boundaries(SIZES.to_vec()));

macro_rules! instruments {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty = $metric:literal, $what:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }

        impl $name {
            pub(super) fn new(meter: &Meter) -> Self {
                Self { $($field: Instrument::new(meter, $metric, $what),)* }
            }
        }
    };
}

instruments! {
    /// The instruments of a process.
    Instruments {
        calls: Histogram<f64> = "rpc.server.call.duration", "gRPC calls.";
        authentication_failures: Counter<u64> = "yoink.authentication_failures",
            "Calls refused because their caller is not authenticated.";
        shed: Counter<u64> = "yoink.shed", "Calls refused before a unit was taken.";
        ack_wait: Histogram<f64> = "yoink.ack.wait_duration",
            "From accepted to answered, of calls that wait for replicas or the ledger.";

        outcomes: Counter<u64> = "yoink.reserve.outcomes", "Decisions of Redis.";
        reserve_batch: Histogram<u64> = "yoink.reserve.batch_size", "Requests in a script call.";
        product_stock: Gauge<i64> = "yoink.product.stock",
            "Units for sale, of the products that the settings name.";
        lost: Gauge<u64> = "yoink.lost_reservations",
            "Accepted reservations of ended epochs that neither store holds.";

        orders: Gauge<u64> = "yoink.orders.depth", "Entries in the orders stream.";
        pending: Gauge<u64> = "yoink.orders.pending", "Entries delivered and not settled.";
        lag: Gauge<u64> = "yoink.orders.lag", "Entries not delivered yet.";
        oldest: Gauge<f64> = "yoink.orders.oldest", "How long the oldest order has waited.";
        backlog_max: Gauge<u64> = "yoink.backlog.max_entries",
            "Entries in a partition's orders stream at which requests are refused.";
        store_batch: Histogram<u64> = "yoink.orders.stored_batch_size", "Orders in a transaction.";
        store_delay: Histogram<f64> = "yoink.orders.store_delay", "From accepted to stored.";
        dead: Gauge<u64> = "yoink.dead.depth", "Entries in the dead stream.";
        dead_letters: Counter<u64> = "yoink.dead_letters", "Orders moved to a dead stream.";
        unlisted: Counter<u64> = "yoink.ledger.unlisted_errors",
            "Transactions that failed with a SQLSTATE that this program does not classify.";
        fenced: Gauge<u64> = "yoink.partition.fenced", "1 while the partition is fenced.";
        paused: Gauge<u64> = "yoink.consumption.paused", "1 while its orders are not stored.";

        live_workers: Gauge<u64> = "yoink.live_workers",
            "Workers over which this worker spreads the partitions.";
        owned_partitions: Gauge<u64> = "yoink.owned_partitions",
            "Partitions whose orders this worker reads.";

        operations: Histogram<f64> = "db.client.operation.duration",
            "Redis commands and scripts, and operations on Postgres with their wait for a connection.";
        connections: Gauge<u64> = "db.client.connection.count", "Connections to Postgres.";
        connections_max: Gauge<u64> = "db.client.connection.max", "The most connections of a pool.";
        pending_requests: Gauge<u64> = "db.client.connection.pending_requests",
            "Operations that wait for a connection to Postgres.";
        redis_errors: Counter<u64> = "yoink.redis.errors",
            "Script calls that were refused by the fence, or failed.";
        redis_dropped: Counter<u64> = "yoink.redis.connections_dropped",
            "Connections to Redis that were replaced.";
        store_up: Gauge<u64> = "yoink.store.up", "1 if the store answered the last scrape in time.";
        tls_files_refused: Gauge<u64> = "yoink.tls_files_refused",
            "Groups of TLS files that changed and cannot be used.";
        durability: Gauge<u64> = "yoink.durability", "1 for the durability that each store gives.";

        audit_differences: Gauge<u64> = "yoink.audit.differences",
            "The sum of all differences that the last audit found; 0 if both stores agree.";
        audit_unknown: Gauge<u64> = "yoink.audit.unknown",
            "1 if the last audit could not read everything.";
        audit_last: Gauge<f64> = "yoink.audit.last_timestamp",
            "When the partition was last audited, in seconds since 1970.";
        audit_blocked: Gauge<u64> = "yoink.audit.blocked_checkpoints",
            "Partitions whose checkpoint cannot cover more rows.";
        build_info: Gauge<u64> = "yoink.build_info", "The version and commit that run.";
    }
}

instruments! {
    /// The instruments of the listeners for clients.
    ListenerInstruments {
        open: UpDownCounter<i64> = "yoink.connections", "Open connections of clients.";
        max: Gauge<u64> = "yoink.connections_max", "The most connections at the same time.";
        limited: Counter<u64> = "yoink.connections_limited",
            "Connections closed because the limit was reached.";
        accept_failures: Counter<u64> = "yoink.accept_failures",
            "Connections that could not be accepted.";
        handshake_failures: Counter<u64> = "yoink.tls_handshake_failures",
            "Connections closed because their TLS handshake failed or took too long.";
    }
}
