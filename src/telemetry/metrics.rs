//! OpenTelemetry instruments: read by Prometheus at `/metrics`, and sent to a collector if the settings name one.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use opentelemetry::{KeyValue, metrics::MeterProvider as _};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};

use super::{
    ListenerMetrics,
    collector::{Collector, MetricSender, resource},
    instruments::Instruments,
};
use crate::config::Config;

/// Label values that the API and the code fix. Their counters are exported as 0 from the start: a rate over
/// the first event needs a value before it.
const OUTCOMES: [&str; 11] = [
    "accepted",
    "duplicate",
    "lost_or_unknown",
    "sold_out",
    "limit_reached",
    "sale_not_open",
    "sale_closed",
    "sale_stopped",
    "product_not_found",
    "backlog_full",
    "undecided",
];
const SHED_REASONS: [&str; 3] = ["OVERLOADED", "RATE_LIMITED", "ACK_UNAVAILABLE"];
const REDIS_ERRORS: [&str; 3] = ["fenced", "unavailable", "malformed"];
const DROPPED_CONNECTIONS: [&str; 4] = ["unreachable", "closed", "no_answer", "replica"];

/// Whether OpenTelemetry counts a status code as an error of a gRPC server; the others are answers, or a caller's
/// mistake.
pub(super) fn is_server_error(code: &str) -> bool {
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"]
        .contains(&code)
}

/// Every metric; clones share them.
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    instruments: Instruments,
    unlisted: Sqlstates,
    registry: Registry,
    /// Instruments record only while it exists.
    provider: SdkMeterProvider,
    sender: Option<MetricSender>,
}

impl Metrics {
    /// Instruments with a registry of their own, for Prometheus only.
    pub fn new() -> anyhow::Result<Self> {
        Self::build(None)
    }

    /// Instruments that [`Metrics::send`] sends to the collector of the settings, if they name one.
    pub fn of(config: &Config) -> anyhow::Result<Self> {
        let collector = Collector::of(config).filter(|_| config.otlp_metrics_interval_ms > 0);
        Self::build(collector.map(|collector| collector.metrics()).transpose()?)
    }

    fn build(sender: Option<MetricSender>) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone());
        let mut provider = SdkMeterProvider::builder().with_resource(resource());
        provider = provider.with_reader(exporter.build().context("cannot set up metrics")?);
        if let Some(sender) = &sender {
            provider = provider.with_reader(sender.reader());
        }
        let provider = provider.build();
        let instruments = Instruments::new(&provider.meter("yoink"));
        let unlisted = Sqlstates::default();
        let shared = Shared { instruments, unlisted, registry, provider, sender };
        let this = Self { shared: Arc::new(shared) };
        this.export_first_values();
        Ok(this)
    }

    pub(super) fn instruments(&self) -> &Instruments {
        &self.shared.instruments
    }

    fn export_first_values(&self) {
        let Instruments { build_info, shed, redis_errors, .. } = self.instruments();
        let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
        build_info.record(1, &[version, KeyValue::new("commit", env!("YOINK_COMMIT"))]);
        OUTCOMES.into_iter().for_each(|outcome| self.record_outcome(outcome, 0));
        SHED_REASONS.into_iter().for_each(|reason| shed.add(0, &[KeyValue::new("reason", reason)]));
        for error in REDIS_ERRORS {
            let labels = [KeyValue::new("script", "reserve"), KeyValue::new("error", error)];
            redis_errors.add(0, &labels);
        }
        for reason in DROPPED_CONNECTIONS {
            self.instruments().redis_dropped.add(0, &[KeyValue::new("reason", reason)]);
        }
        self.allow_authentication_failures(["missing"]);
        self.record_tls_files_refused(0);
        self.instruments().dead_letters.add(0, &[]);
        self.instruments().unlisted.add(0, &[KeyValue::new("sqlstate", "none")]);
    }

    /// A gRPC call ended; `method` is one of the API's, or `_OTHER`.
    pub fn record_call(&self, method: &'static str, code: &'static str, took: Duration) {
        let labels = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
            KeyValue::new("rpc.response.status_code", code),
            KeyValue::new("error.type", code),
        ];
        let labels = if is_server_error(code) { &labels[..] } else { &labels[..3] };
        self.instruments().calls.record(took.as_secs_f64(), labels);
    }

    /// Redis decided this many requests.
    pub fn record_outcome(&self, outcome: &'static str, count: u64) {
        self.instruments().outcomes.add(count, &[KeyValue::new("outcome", outcome)]);
    }

    /// A batch of requests was sent.
    pub fn record_reserve_batch(&self, size: usize) {
        self.instruments().reserve_batch.record(size as u64, &[]);
    }

    /// A connection to Redis was replaced.
    pub fn record_dropped_connection(&self, reason: &'static str) {
        self.instruments().redis_dropped.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A transaction stored orders; `delays` are the times from accepted to stored.
    pub fn record_stored(&self, delays: impl ExactSizeIterator<Item = Duration>) {
        self.instruments().store_batch.record(delays.len() as u64, &[]);
        for delay in delays {
            self.instruments().store_delay.record(delay.as_secs_f64(), &[]);
        }
    }

    /// An order was moved to the dead stream.
    pub fn record_dead_letter(&self) {
        self.instruments().dead_letters.add(1, &[]);
    }

    /// A transaction failed with this SQLSTATE, which this program does not classify; `none` if Postgres gave no code.
    pub fn record_unlisted(&self, sqlstate: String) {
        let label = self.shared.unlisted.label(sqlstate);
        self.instruments().unlisted.add(1, &[KeyValue::new("sqlstate", label)]);
    }

    /// A call was shed: refused before a unit was taken; `reason` is one of the API's.
    pub fn record_shed(&self, reason: &'static str) {
        self.instruments().shed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A caller could not be authenticated; `cause` is one of a fixed set.
    pub fn record_authentication_failure(&self, cause: &'static str) {
        let labels = [KeyValue::new("cause", cause)];
        self.instruments().authentication_failures.add(1, &labels);
    }

    /// Exports a counter for each cause from the start.
    pub fn allow_authentication_failures(&self, causes: impl IntoIterator<Item = &'static str>) {
        let failures = &self.instruments().authentication_failures;
        causes.into_iter().for_each(|cause| failures.add(0, &[KeyValue::new("cause", cause)]));
    }

    /// So many groups of TLS files changed and cannot be used.
    pub fn record_tls_files_refused(&self, groups: usize) {
        self.instruments().tls_files_refused.record(groups as u64, &[]);
    }

    /// An answer has waited for its acknowledgement.
    pub fn record_ack_wait(&self, ack: &'static str, took: Duration) {
        self.instruments().ack_wait.record(took.as_secs_f64(), &[KeyValue::new("ack", ack)]);
    }

    /// The instruments of a listener.
    pub fn listener(&self, name: &'static str) -> ListenerMetrics {
        ListenerMetrics::new(&self.shared.provider.meter("yoink"), name)
    }

    /// Every metric, in Prometheus's text format.
    pub fn encode(&self) -> anyhow::Result<String> {
        let metrics = self.shared.registry.gather();
        TextEncoder::new().encode_to_string(&metrics).context("cannot write metrics")
    }

    /// Whether [`Metrics::send`] has a collector to send to.
    pub fn are_sent(&self) -> bool {
        self.shared.sender.is_some()
    }

    /// Sends every metric to the collector. A failure is logged, once.
    pub async fn send(&self) {
        if let Some(sender) = &self.shared.sender {
            sender.send().await;
        }
    }
}

/// The most SQLSTATEs that become label values; all others are counted as `other`, because a trigger may raise any.
const SQLSTATES_MAX: usize = 20;

/// The SQLSTATEs that are label values so far.
#[derive(Default)]
struct Sqlstates(Mutex<BTreeSet<String>>);

impl Sqlstates {
    fn label(&self, sqlstate: String) -> String {
        let mut labels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if labels.len() < SQLSTATES_MAX {
            labels.insert(sqlstate.clone());
        }
        if labels.contains(&sqlstate) { sqlstate } else { "other".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_beyond_the_limit_is_counted_as_other() {
        let sqlstates = Sqlstates::default();
        for code in 0..SQLSTATES_MAX {
            let code = format!("P{code:04}");
            assert_eq!(sqlstates.label(code.clone()), code);
        }
        assert_eq!(sqlstates.label("ZZZZZ".to_owned()), "other");
        assert_eq!(sqlstates.label("P0001".to_owned()), "P0001");
    }
}
