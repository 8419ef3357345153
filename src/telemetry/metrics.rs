//! OpenTelemetry instruments, read by Prometheus at `/metrics`.

use std::{sync::Arc, time::Duration};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter, MeterProvider as _},
};
use opentelemetry_sdk::{error::OTelSdkError, metrics::SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use super::{
    ListenerMetrics, PartitionReading, PoolReading,
    gauges::{PartitionGauges, StoreGauges, gauge},
    sqlstates::Sqlstates,
};

/// Seconds, from 0.2 ms to 10 s.
const SECONDS: [f64; 14] =
    [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Orders may wait for minutes while Postgres is away.
const LAG_SECONDS: [f64; 12] =
    [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];
const SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The exporter could not be built.
    #[error("cannot set up metrics")]
    Setup(#[from] OTelSdkError),
    /// The readings could not be written.
    #[error("cannot write metrics")]
    Encode(#[from] prometheus::Error),
}

/// What stands in the contract and in the code: told as 0 before it happens, so that a rate over the
/// first of them is one.
const OUTCOMES: [&str; 11] = [
    "accepted",
    "duplicate",
    "lost",
    "sold_out",
    "limit_reached",
    "not_open",
    "closed",
    "stopped",
    "unknown_product",
    "backlog_full",
    "none",
];
const REFUSALS: [&str; 3] = ["OVERLOADED", "RATE_LIMITED", "ACK_UNAVAILABLE"];
const REDIS_ERRORS: [&str; 3] = ["fenced", "unavailable", "malformed"];
const DROPPED_CONNECTIONS: [&str; 4] = ["unreachable", "closed", "silent", "replica"];

/// Every instrument; clones share them.
#[derive(Clone)]
pub struct Metrics {
    instruments: Arc<Instruments>,
}

struct Instruments {
    registry: Registry,
    /// Lives as long as the instruments.
    provider: SdkMeterProvider,
    call_duration: Histogram<f64>,
    outcomes: Counter<u64>,
    batch_size: Histogram<u64>,
    script_duration: Histogram<f64>,
    redis_errors: Counter<u64>,
    redis_connections_dropped: Counter<u64>,
    commands: Histogram<f64>,
    store_batch_size: Histogram<u64>,
    store_duration: Histogram<f64>,
    write_lag: Histogram<f64>,
    dead_letters: Counter<u64>,
    unlisted: Sqlstates,
    refused: Counter<u64>,
    ack_wait: Histogram<f64>,
    partitions: PartitionGauges,
    stores: StoreGauges,
}

fn seconds(
    meter: &Meter,
    name: &'static str,
    what: &'static str,
    bounds: &[f64],
) -> Histogram<f64> {
    let histogram = meter.f64_histogram(name).with_description(what).with_unit("s");
    histogram.with_boundaries(bounds.to_vec()).build()
}

fn sizes(meter: &Meter, name: &'static str, what: &'static str) -> Histogram<u64> {
    let histogram = meter.u64_histogram(name).with_description(what);
    histogram.with_boundaries(SIZES.to_vec()).build()
}

impl Metrics {
    /// Instruments with a registry of their own.
    ///
    /// # Errors
    ///
    /// When the exporter cannot be built.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone());
        let provider = SdkMeterProvider::builder().with_reader(exporter.build()?).build();
        let meter = &provider.meter("yoink");
        let build = gauge(meter, "yoink_build_info", "The version and commit that run.");
        let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
        build.record(1, &[version, KeyValue::new("commit", env!("YOINK_COMMIT"))]);
        let instruments = Instruments {
            call_duration: seconds(meter, "rpc_server_call_duration", "gRPC calls.", &SECONDS),
            outcomes: meter
                .u64_counter("yoink_reserve_outcomes")
                .with_description("What Redis decided.")
                .build(),
            batch_size: sizes(meter, "yoink_reserve_batch_size", "Requests a script call."),
            script_duration: seconds(
                meter,
                "yoink_script_duration",
                "Scripts, with the way there and back.",
                &SECONDS,
            ),
            redis_errors: meter
                .u64_counter("yoink_redis_errors")
                .with_description("Scripts that did not run to their end.")
                .build(),
            redis_connections_dropped: meter
                .u64_counter("yoink_redis_connections_dropped")
                .with_description("Connections to Redis that were useless and were given up.")
                .build(),
            commands: seconds(
                meter,
                "db_client_operation_duration",
                "Plain Redis commands, with the way there and back.",
                &SECONDS,
            ),
            store_batch_size: sizes(meter, "yoink_store_batch_size", "Orders a transaction."),
            store_duration: seconds(meter, "yoink_store_duration", "Transactions.", &SECONDS),
            write_lag: seconds(meter, "yoink_write_lag", "From accepted to stored.", &LAG_SECONDS),
            dead_letters: meter
                .u64_counter("yoink_dead_letters")
                .with_description("Orders that could not be stored.")
                .build(),
            unlisted: Sqlstates::new(meter),
            refused: meter
                .u64_counter("yoink_refused")
                .with_description("Calls refused before anything was decided.")
                .build(),
            ack_wait: seconds(
                meter,
                "yoink_ack_wait_duration",
                "From accepted to answered, where the answer waits.",
                &SECONDS,
            ),
            partitions: PartitionGauges::new(meter),
            stores: StoreGauges::new(meter),
            registry,
            provider,
        };
        let this = Self { instruments: Arc::new(instruments) };
        this.begin();
        Ok(this)
    }

    fn begin(&self) {
        OUTCOMES.into_iter().for_each(|outcome| self.decided(outcome, 0));
        let Instruments { refused, redis_errors, dead_letters, .. } = &*self.instruments;
        REFUSALS.into_iter().for_each(|reason| refused.add(0, &[KeyValue::new("reason", reason)]));
        for error in REDIS_ERRORS {
            let labels = [KeyValue::new("script", "reserve"), KeyValue::new("error", error)];
            redis_errors.add(0, &labels);
        }
        dead_letters.add(0, &[]);
        for reason in DROPPED_CONNECTIONS {
            self.instruments.redis_connections_dropped.add(0, &[KeyValue::new("reason", reason)]);
        }
    }

    /// A gRPC call was answered; `method` is one of the contract's.
    pub fn call(&self, method: &'static str, code: &'static str, took: Duration) {
        let labels = [KeyValue::new("rpc_method", method), KeyValue::new("rpc_status", code)];
        self.instruments.call_duration.record(took.as_secs_f64(), &labels);
    }

    /// Redis decided a request.
    pub fn decided(&self, outcome: &'static str, count: u64) {
        self.instruments.outcomes.add(count, &[KeyValue::new("outcome", outcome)]);
    }

    /// A batch of requests was sent.
    pub fn batch(&self, size: usize) {
        self.instruments.batch_size.record(u64::try_from(size).unwrap_or(u64::MAX), &[]);
    }

    /// A script ran, or did not (`error` names why).
    pub fn script(&self, name: &'static str, took: Duration, error: Option<&'static str>) {
        let script = KeyValue::new("script", name);
        self.instruments.script_duration.record(took.as_secs_f64(), std::slice::from_ref(&script));
        if let Some(error) = error {
            self.instruments.redis_errors.add(1, &[script, KeyValue::new("error", error)]);
        }
    }

    /// A connection to Redis was given up.
    pub fn redis_connection_dropped(&self, reason: &'static str) {
        self.instruments.redis_connections_dropped.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A plain Redis command was answered, or was not (`error` names why).
    pub fn command(&self, name: String, took: Duration, error: Option<String>) {
        let mut labels = vec![
            KeyValue::new("db_system_name", "redis"),
            KeyValue::new("db_operation_name", name),
        ];
        labels.extend(error.map(|error| KeyValue::new("error_type", error)));
        self.instruments.commands.record(took.as_secs_f64(), &labels);
    }

    /// A transaction stored orders; `lags` are the times from accepted to stored.
    pub fn stored(&self, took: Duration, lags: impl ExactSizeIterator<Item = Duration>) {
        let instruments = &self.instruments;
        instruments.store_batch_size.record(u64::try_from(lags.len()).unwrap_or(u64::MAX), &[]);
        instruments.store_duration.record(took.as_secs_f64(), &[]);
        for lag in lags {
            instruments.write_lag.record(lag.as_secs_f64(), &[]);
        }
    }

    /// An order was buried.
    pub fn dead_lettered(&self) {
        self.instruments.dead_letters.add(1, &[]);
    }

    /// A transaction failed with this SQLSTATE, which is in no list; or it gave none.
    pub fn unlisted(&self, sqlstate: String) {
        self.instruments.unlisted.add(sqlstate);
    }

    /// A call was refused before anything was decided; `reason` is one of the contract's.
    pub fn refused(&self, reason: &'static str) {
        self.instruments.refused.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// An answer has waited for what it was asked to wait for.
    pub fn acknowledged(&self, ack: &'static str, took: Duration) {
        self.instruments.ack_wait.record(took.as_secs_f64(), &[KeyValue::new("ack", ack)]);
    }

    /// The instruments of a listener.
    pub fn listener(&self, name: &'static str) -> ListenerMetrics {
        ListenerMetrics::new(&self.instruments.provider.meter("yoink"), name)
    }

    /// A partition was read.
    pub fn partition(&self, partition: u16, reading: &PartitionReading) {
        let labels = [KeyValue::new("partition", i64::from(partition))];
        let gauges = &self.instruments.partitions;
        gauges.orders.record(reading.orders, &labels);
        gauges.pending.record(reading.pending, &labels);
        if let Some(lag) = reading.lag {
            gauges.lag.record(lag, &labels);
        }
        gauges.oldest.record(reading.oldest_seconds, &labels);
        gauges.dead.record(reading.dead, &labels);
    }

    /// Whether a partition was last seen to be fenced, and whether its orders are not stored here.
    pub fn standing(&self, partition: u16, fenced: bool, paused: bool) {
        let labels = [KeyValue::new("partition", i64::from(partition))];
        self.instruments.partitions.fenced.record(u64::from(fenced), &labels);
        self.instruments.partitions.paused.record(u64::from(paused), &labels);
    }

    /// A store was asked whether it answers.
    pub fn store_up(&self, store: &'static str, up: bool) {
        self.instruments.stores.store_up.record(u64::from(up), &[KeyValue::new("store", store)]);
    }

    /// What a store promises, by its own settings.
    pub fn durability(&self, store: &'static str, mode: &'static str, is: bool) {
        let labels = [KeyValue::new("store", store), KeyValue::new("mode", mode)];
        self.instruments.stores.durability.record(u64::from(is), &labels);
    }

    /// An audit could see everything, or could not.
    pub fn audited(&self, whole: bool) {
        self.instruments.stores.audit_unknown.record(u64::from(!whole), &[]);
    }

    /// An audit found so much too much or too little.
    pub fn off_by(&self, error_units: u64) {
        self.instruments.stores.conservation.record(error_units, &[]);
    }

    /// So many accepted reservations are nowhere; `certainty` is `exactly` or `at least`.
    pub fn lost(&self, certainty: &'static str, count: u64) {
        self.instruments.stores.lost.record(count, &[KeyValue::new("certainty", certainty)]);
    }

    /// A partition takes so many waiting orders.
    pub fn backlog_max_entries(&self, entries: u64) {
        self.instruments.stores.backlog_max.record(entries, &[]);
    }

    /// The stock of a product that the settings name was read.
    pub fn product_stock(&self, product: &str, units: i64) {
        let product = KeyValue::new("product", product.to_owned());
        self.instruments.stores.product_stock.record(units, &[product]);
    }

    /// The connections to Postgres were read.
    pub fn pool(&self, pool: &'static str, reading: PoolReading) {
        let states = [("open", reading.open), ("idle", reading.idle), ("waiting", reading.waiting)];
        for (state, count) in states {
            let labels = [KeyValue::new("pool", pool), KeyValue::new("state", state)];
            self.instruments.stores.pool.record(count, &labels);
        }
    }

    /// Everything, in Prometheus's text format.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn encode(&self) -> Result<String, MetricsError> {
        Ok(TextEncoder::new().encode_to_string(&self.instruments.registry.gather())?)
    }
}
