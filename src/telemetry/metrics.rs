//! OpenTelemetry instruments: read by Prometheus at `/metrics`, and sent to a collector if the settings name one.

use std::{sync::Arc, time::Duration};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, MeterProvider as _},
};
use opentelemetry_sdk::{error::OTelSdkError, metrics::SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use super::{
    LedgerOperation, ListenerMetrics, PartitionReading, PoolReading,
    collector::{Collector, MetricSender, resource},
    database::Database,
    gauges::{PartitionGauges, StoreGauges},
    instruments::{SECONDS, counter, gauge, seconds, sizes},
    sqlstates::Sqlstates,
};
use crate::config::Config;

/// Orders may wait for minutes while Postgres is away.
const LAG_SECONDS: [f64; 12] =
    [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];

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

/// Label values that the contract and the code fix. Their counters are exported as 0 from the start: a rate over
/// the first event needs a value before it.
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

/// The status codes that OpenTelemetry counts as errors of a gRPC server; the others are answers, or a caller's
/// mistake.
const SERVER_ERRORS: [&str; 6] =
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

/// Whether a status code counts as an error of the server.
pub(super) fn is_server_error(code: &str) -> bool {
    SERVER_ERRORS.contains(&code)
}

/// Every instrument; clones share them.
#[derive(Clone)]
pub struct Metrics {
    instruments: Arc<Instruments>,
}

struct Instruments {
    registry: Registry,
    /// Instruments record only while it exists.
    provider: SdkMeterProvider,
    sender: Option<MetricSender>,
    call_duration: Histogram<f64>,
    database: Database,
    outcomes: Counter<u64>,
    batch_size: Histogram<u64>,
    redis_errors: Counter<u64>,
    redis_connections_dropped: Counter<u64>,
    store_batch_size: Histogram<u64>,
    write_lag: Histogram<f64>,
    dead_letters: Counter<u64>,
    unlisted: Sqlstates,
    refused: Counter<u64>,
    ack_wait: Histogram<f64>,
    partitions: PartitionGauges,
    stores: StoreGauges,
}

impl Metrics {
    /// Instruments with a registry of their own, for Prometheus only.
    ///
    /// # Errors
    ///
    /// When the exporter cannot be built.
    pub fn new() -> Result<Self, MetricsError> {
        Self::build(None)
    }

    /// Instruments that [`Metrics::send`] sends to the collector of the settings, if they name one.
    ///
    /// # Errors
    ///
    /// When an exporter cannot be built.
    pub fn of(config: &Config) -> anyhow::Result<Self> {
        let collector = Collector::of(config)?.filter(|_| config.otlp_metrics_interval_ms > 0);
        let sender = collector.map(|collector| collector.metrics()).transpose()?;
        Ok(Self::build(sender)?)
    }

    fn build(sender: Option<MetricSender>) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone());
        let mut provider = SdkMeterProvider::builder().with_resource(resource());
        provider = provider.with_reader(exporter.build()?);
        if let Some(sender) = &sender {
            provider = provider.with_reader(sender.reader());
        }
        let provider = provider.build();
        let meter = &provider.meter("yoink");
        let build = gauge(meter, "yoink.build_info", "The version and commit that run.");
        let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
        build.record(1, &[version, KeyValue::new("commit", env!("YOINK_COMMIT"))]);
        let instruments = Instruments {
            call_duration: seconds(meter, "rpc.server.call.duration", "gRPC calls.", &SECONDS),
            database: Database::new(meter),
            outcomes: counter(meter, "yoink.reserve.outcomes", "Decisions of Redis, by outcome."),
            batch_size: sizes(meter, "yoink.reserve.batch_size", "Requests in a script call."),
            redis_errors: counter(
                meter,
                "yoink.redis.errors",
                "Script calls that were refused by the fence, or failed.",
            ),
            redis_connections_dropped: counter(
                meter,
                "yoink.redis.connections_dropped",
                "Connections to Redis that were replaced.",
            ),
            store_batch_size: sizes(meter, "yoink.store.batch_size", "Orders in a transaction."),
            write_lag: seconds(meter, "yoink.write_lag", "From accepted to stored.", &LAG_SECONDS),
            dead_letters: counter(meter, "yoink.dead_letters", "Orders moved to a dead stream."),
            unlisted: Sqlstates::new(meter),
            refused: counter(meter, "yoink.refused", "Calls refused before Redis was asked."),
            ack_wait: seconds(
                meter,
                "yoink.ack.wait_duration",
                "From accepted to answered, of calls that wait for replicas or the ledger.",
                &SECONDS,
            ),
            partitions: PartitionGauges::new(meter),
            stores: StoreGauges::new(meter),
            registry,
            provider,
            sender,
        };
        let this = Self { instruments: Arc::new(instruments) };
        this.export_zeros();
        Ok(this)
    }

    fn export_zeros(&self) {
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

    /// A gRPC call ended; `method` is one of the contract's, or `_OTHER`.
    pub fn call(&self, method: &'static str, code: &'static str, took: Duration) {
        let labels = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
            KeyValue::new("rpc.response.status_code", code),
            KeyValue::new("error.type", code),
        ];
        let labels = if is_server_error(code) { &labels[..] } else { &labels[..3] };
        self.instruments.call_duration.record(took.as_secs_f64(), labels);
    }

    /// Redis decided so many requests.
    pub fn decided(&self, outcome: &'static str, count: u64) {
        self.instruments.outcomes.add(count, &[KeyValue::new("outcome", outcome)]);
    }

    /// A batch of requests was sent.
    pub fn batch(&self, size: usize) {
        self.instruments.batch_size.record(size as u64, &[]);
    }

    /// A script call ended; `error` is the reason why it did nothing or failed.
    pub fn script(&self, name: &'static str, took: Duration, error: Option<&'static str>) {
        self.instruments.database.script(name, took, error);
        if let Some(error) = error {
            let labels = [KeyValue::new("script", name), KeyValue::new("error", error)];
            self.instruments.redis_errors.add(1, &labels);
        }
    }

    /// A Redis command ended; `error` is the reason why it failed.
    pub fn command(&self, name: String, took: Duration, error: Option<String>) {
        self.instruments.database.command(name, took, error);
    }

    /// An operation on Postgres begins; it ends when the result is dropped.
    pub fn ledger_operation(&self, name: &'static str) -> LedgerOperation {
        self.instruments.database.ledger_operation(name)
    }

    /// A connection to Redis was replaced.
    pub fn redis_connection_dropped(&self, reason: &'static str) {
        self.instruments.redis_connections_dropped.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A transaction stored orders; `lags` are the times from accepted to stored.
    pub fn stored(&self, lags: impl ExactSizeIterator<Item = Duration>) {
        self.instruments.store_batch_size.record(lags.len() as u64, &[]);
        for lag in lags {
            self.instruments.write_lag.record(lag.as_secs_f64(), &[]);
        }
    }

    /// An order was moved to the dead stream.
    pub fn dead_lettered(&self) {
        self.instruments.dead_letters.add(1, &[]);
    }

    /// A transaction failed with this SQLSTATE, which is in no list; `none` if Postgres gave no code.
    pub fn unlisted(&self, sqlstate: String) {
        self.instruments.unlisted.add(sqlstate);
    }

    /// A call was refused before Redis was asked; `reason` is one of the contract's.
    pub fn refused(&self, reason: &'static str) {
        self.instruments.refused.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// An answer has waited for its acknowledgement.
    pub fn acknowledged(&self, ack: &'static str, took: Duration) {
        self.instruments.ack_wait.record(took.as_secs_f64(), &[KeyValue::new("ack", ack)]);
    }

    /// The instruments of a listener.
    pub fn listener(&self, name: &'static str) -> ListenerMetrics {
        ListenerMetrics::new(&self.instruments.provider.meter("yoink"), name)
    }

    /// A partition's streams were read.
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

    /// Whether a partition was last seen to be fenced, and whether this process has paused its consumption.
    pub fn partition_state(&self, partition: u16, fenced: bool, paused: bool) {
        let labels = [KeyValue::new("partition", i64::from(partition))];
        self.instruments.partitions.fenced.record(u64::from(fenced), &labels);
        self.instruments.partitions.paused.record(u64::from(paused), &labels);
    }

    /// Whether a store answered.
    pub fn store_up(&self, store: &'static str, up: bool) {
        self.instruments.stores.store_up.record(u64::from(up), &[KeyValue::new("store", store)]);
    }

    /// Whether this is the durability that a store's settings give.
    pub fn durability(&self, store: &'static str, mode: &'static str, is: bool) {
        let labels = [KeyValue::new("store", store), KeyValue::new("mode", mode)];
        self.instruments.stores.durability.record(u64::from(is), &labels);
    }

    /// An audit ended; `whole` if it could read everything.
    pub fn audited(&self, whole: bool) {
        self.instruments.stores.audit_unknown.record(u64::from(!whole), &[]);
    }

    /// An audit found so many units too many or too few.
    pub fn off_by(&self, error_units: u64) {
        self.instruments.stores.conservation.record(error_units, &[]);
    }

    /// So many accepted reservations were lost; `certainty` is `exactly` or `at least`.
    pub fn lost(&self, certainty: &'static str, count: u64) {
        self.instruments.stores.lost.record(count, &[KeyValue::new("certainty", certainty)]);
    }

    /// The limit of entries in a partition's orders stream.
    pub fn backlog_max_entries(&self, entries: u64) {
        self.instruments.stores.backlog_max.record(entries, &[]);
    }

    /// The stock of a product that the settings name was read.
    pub fn product_stock(&self, product: &str, units: i64) {
        let product = KeyValue::new("product", product.to_owned());
        self.instruments.stores.product_stock.record(units, &[product]);
    }

    /// A pool of connections to Postgres was read.
    pub fn pool(&self, name: &'static str, reading: PoolReading) {
        self.instruments.database.pool(name, reading);
    }

    /// Every metric, in Prometheus's text format.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn encode(&self) -> Result<String, MetricsError> {
        Ok(TextEncoder::new().encode_to_string(&self.instruments.registry.gather())?)
    }

    /// Whether [`Metrics::send`] has a collector to send to.
    pub fn are_sent(&self) -> bool {
        self.instruments.sender.is_some()
    }

    /// Sends every metric to the collector. A failure is logged, once.
    pub async fn send(&self) {
        if let Some(sender) = &self.instruments.sender {
            sender.send().await;
        }
    }
}
