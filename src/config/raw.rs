//! The settings as written: each read for itself, from the source that applies.

use std::{net::SocketAddr, str::FromStr};

use super::{Automation, Config, ConfigError, LogFormat, sources::Sources};
use crate::domain::Ack;

/// The settings' names.
pub const NAMES: [&str; 38] = [
    "grpc_listen",
    "http_listen",
    "redis_url",
    "postgres_url",
    "partitions",
    "key_prefix",
    "reflection",
    "max_deliveries",
    "takeover_idle_ms",
    "backlog_max_entries",
    "idempotency_window_ms",
    "ack",
    "ack_replicas",
    "dead_letter_release",
    "recovery",
    "audit_interval_ms",
    "concurrency_max_calls",
    "address_calls_per_second",
    "user_calls_per_second",
    "call_timeout_ms",
    "request_max_bytes",
    "header_max_bytes",
    "connection_max_streams",
    "connections_max",
    "connection_max_age_ms",
    "require_request_id",
    "trusted_proxies",
    "pool_workers",
    "pool_operators",
    "pool_lookups",
    "pool_maintenance",
    "metrics_products",
    "otlp_endpoint",
    "otlp_headers",
    "otlp_metrics_interval_ms",
    "trace_sample_ratio",
    "log",
    "log_format",
];

/// Whether clients may ask for the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reflection {
    /// On loopback.
    Auto,
    On,
    Off,
}

impl Reflection {
    pub(super) fn applies(self, grpc_listen: SocketAddr) -> bool {
        match self {
            Self::Auto => grpc_listen.ip().is_loopback(),
            Self::On => true,
            Self::Off => false,
        }
    }
}

/// The settings as written, not yet checked together.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub(super) grpc_listen: String,
    pub(super) http_listen: String,
    pub(super) redis_url: String,
    pub(super) postgres_url: String,
    pub(super) partitions: u32,
    pub(super) key_prefix: String,
    pub(super) reflection: Reflection,
    pub(super) max_deliveries: u32,
    pub(super) takeover_idle_ms: u64,
    pub(super) backlog_max_entries: u64,
    pub(super) idempotency_window_ms: u64,
    pub(super) ack: String,
    pub(super) ack_replicas: u32,
    pub(super) dead_letter_release: Automation,
    pub(super) recovery: Automation,
    pub(super) audit_interval_ms: u64,
    pub(super) concurrency_max_calls: u32,
    pub(super) address_calls_per_second: u32,
    pub(super) user_calls_per_second: u32,
    pub(super) call_timeout_ms: u64,
    pub(super) request_max_bytes: usize,
    pub(super) header_max_bytes: u32,
    pub(super) connection_max_streams: u32,
    pub(super) connections_max: u32,
    pub(super) connection_max_age_ms: u64,
    pub(super) require_request_id: bool,
    pub(super) trusted_proxies: String,
    pub(super) pool_workers: u32,
    pub(super) pool_operators: u32,
    pub(super) pool_lookups: u32,
    pub(super) pool_maintenance: u32,
    pub(super) metrics_products: String,
    pub(super) otlp_endpoint: String,
    pub(super) otlp_headers: String,
    pub(super) otlp_metrics_interval_ms: u64,
    pub(super) trace_sample_ratio: f64,
    pub(super) log: String,
    pub(super) log_format: LogFormat,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            grpc_listen: "127.0.0.1:50051".into(),
            http_listen: "127.0.0.1:9464".into(),
            redis_url: "redis://127.0.0.1:6379".into(),
            postgres_url: "postgres://postgres@127.0.0.1:5432/yoink".into(),
            partitions: 8,
            key_prefix: "yoink".into(),
            reflection: Reflection::Auto,
            max_deliveries: 3,
            takeover_idle_ms: 30_000,
            backlog_max_entries: 500_000,
            idempotency_window_ms: 259_200_000,
            ack: Ack::Memory.as_str().into(),
            ack_replicas: 1,
            dead_letter_release: Automation::Auto,
            recovery: Automation::Auto,
            audit_interval_ms: 30_000,
            concurrency_max_calls: 10_000,
            address_calls_per_second: 0,
            user_calls_per_second: 0,
            call_timeout_ms: 10_000,
            request_max_bytes: 16_384,
            header_max_bytes: 16_384,
            connection_max_streams: 1_000,
            connections_max: 10_000,
            connection_max_age_ms: 300_000,
            require_request_id: false,
            trusted_proxies: String::new(),
            pool_workers: 16,
            pool_operators: 8,
            pool_lookups: 8,
            pool_maintenance: 10,
            metrics_products: String::new(),
            otlp_endpoint: String::new(),
            otlp_headers: String::new(),
            otlp_metrics_interval_ms: 60_000,
            trace_sample_ratio: 0.01,
            log: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

/// Reads single settings; whatever cannot be read is noted, and its default stands in.
struct Reader<'a> {
    sources: &'a Sources,
    problems: Vec<String>,
}

/// The longest part of a value that a message repeats.
const SHOWN_CHARS: usize = 60;

impl Reader<'_> {
    /// As it is written.
    fn text(&self, name: &'static str, default: String) -> String {
        self.sources.get(name).map_or(default, |written| written.text.clone())
    }

    /// A number, written with digits.
    fn number<T: FromStr>(&mut self, name: &'static str, default: T) -> T {
        let Some(written) = self.sources.get(name) else { return default };
        written.number.trim().parse().unwrap_or_else(|_| {
            let shown: String = written.number.chars().take(SHOWN_CHARS).collect();
            let number = if name == "trace_sample_ratio" { "number" } else { "whole number" };
            let source = written.source(name);
            self.problems.push(format!("{name} must be a {number}, not {shown:?} ({source})"));
            default
        })
    }

    /// One of these words.
    fn word<T: Copy>(&mut self, name: &'static str, default: T, words: &[(&str, T)]) -> T {
        let Some(written) = self.sources.get(name) else { return default };
        let found = words.iter().find(|(word, _)| *word == written.text.trim());
        found.map_or_else(
            || {
                let shown: String = written.text.chars().take(SHOWN_CHARS).collect();
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                let (words, source) = (words.join(", "), written.source(name));
                self.problems
                    .push(format!("{name} must be one of {words}, not {shown:?} ({source})"));
                default
            },
            |(_, value)| *value,
        )
    }
}

const REFLECTION: [(&str, Reflection); 5] = [
    ("auto", Reflection::Auto),
    ("on", Reflection::On),
    ("off", Reflection::Off),
    ("true", Reflection::On),
    ("false", Reflection::Off),
];
const AUTOMATION: [(&str, Automation); 2] =
    [("auto", Automation::Auto), ("manual", Automation::Manual)];
const SWITCH: [(&str, bool); 4] = [("on", true), ("off", false), ("true", true), ("false", false)];
const LOG_FORMAT: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

impl Raw {
    /// Each setting for itself, so that every problem is reported at once.
    pub(super) fn read(sources: &Sources) -> Result<Self, ConfigError> {
        let mut reader = Reader { sources, problems: sources.problems().to_vec() };
        let (r, d) = (&mut reader, Self::default());
        let raw = Self {
            grpc_listen: r.text("grpc_listen", d.grpc_listen),
            http_listen: r.text("http_listen", d.http_listen),
            redis_url: r.text("redis_url", d.redis_url),
            postgres_url: r.text("postgres_url", d.postgres_url),
            partitions: r.number("partitions", d.partitions),
            key_prefix: r.text("key_prefix", d.key_prefix),
            reflection: r.word("reflection", d.reflection, &REFLECTION),
            max_deliveries: r.number("max_deliveries", d.max_deliveries),
            takeover_idle_ms: r.number("takeover_idle_ms", d.takeover_idle_ms),
            backlog_max_entries: r.number("backlog_max_entries", d.backlog_max_entries),
            idempotency_window_ms: r.number("idempotency_window_ms", d.idempotency_window_ms),
            ack: r.text("ack", d.ack),
            ack_replicas: r.number("ack_replicas", d.ack_replicas),
            dead_letter_release: r.word("dead_letter_release", d.dead_letter_release, &AUTOMATION),
            recovery: r.word("recovery", d.recovery, &AUTOMATION),
            audit_interval_ms: r.number("audit_interval_ms", d.audit_interval_ms),
            concurrency_max_calls: r.number("concurrency_max_calls", d.concurrency_max_calls),
            address_calls_per_second: r
                .number("address_calls_per_second", d.address_calls_per_second),
            user_calls_per_second: r.number("user_calls_per_second", d.user_calls_per_second),
            call_timeout_ms: r.number("call_timeout_ms", d.call_timeout_ms),
            request_max_bytes: r.number("request_max_bytes", d.request_max_bytes),
            header_max_bytes: r.number("header_max_bytes", d.header_max_bytes),
            connection_max_streams: r.number("connection_max_streams", d.connection_max_streams),
            connections_max: r.number("connections_max", d.connections_max),
            connection_max_age_ms: r.number("connection_max_age_ms", d.connection_max_age_ms),
            require_request_id: r.word("require_request_id", d.require_request_id, &SWITCH),
            trusted_proxies: r.text("trusted_proxies", d.trusted_proxies),
            pool_workers: r.number("pool_workers", d.pool_workers),
            pool_operators: r.number("pool_operators", d.pool_operators),
            pool_lookups: r.number("pool_lookups", d.pool_lookups),
            pool_maintenance: r.number("pool_maintenance", d.pool_maintenance),
            metrics_products: r.text("metrics_products", d.metrics_products),
            otlp_endpoint: r.text("otlp_endpoint", d.otlp_endpoint),
            otlp_headers: r.text("otlp_headers", d.otlp_headers),
            otlp_metrics_interval_ms: r
                .number("otlp_metrics_interval_ms", d.otlp_metrics_interval_ms),
            trace_sample_ratio: r.number("trace_sample_ratio", d.trace_sample_ratio),
            log: r.text("log", d.log),
            log_format: r.word("log_format", d.log_format, &LOG_FORMAT),
        };
        let mut problems = reader.problems;
        if problems.is_empty() {
            return Ok(raw);
        }
        // What could be read is checked as well: one run shows everything that is wrong.
        problems.extend(Config::check(raw).err().into_iter().flat_map(|error| error.problems));
        Err(ConfigError { problems })
    }
}
