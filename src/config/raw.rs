//! The settings as written: gathered from everywhere, each read for itself.

use std::{net::SocketAddr, path::Path};

use figment::{
    Figment, Provider as _,
    providers::{Env, Format as _, Serialized, Toml},
};
use serde::{Deserialize, Serialize};

use super::{Automation, Config, ConfigError, LogFormat};
use crate::domain::Ack;

/// The settings' names.
pub const NAMES: [&str; 34] = [
    "grpc_listen",
    "http_listen",
    "redis_url",
    "postgres_url",
    "partitions",
    "key_prefix",
    "reflection",
    "max_deliveries",
    "claim_idle_ms",
    "backlog_max_entries",
    "claims_window_ms",
    "ack",
    "ack_replicas",
    "replay",
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
    "trusted_proxies",
    "pool_workers",
    "pool_operators",
    "pool_lookups",
    "pool_maintenance",
    "metrics_products",
    "otlp_endpoint",
    "trace_sample_ratio",
    "log",
    "log_format",
];

const PREFIX: &str = "YOINK_";
/// Read at other places than here: a build's commit, and a crash that a test asked for.
const NOT_SETTINGS: [&str; 2] = ["COMMIT", "CRASH_POINT"];

/// Whether clients may ask for the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reflection {
    /// On loopback.
    Auto,
    On,
    Off,
}

impl<'de> Deserialize<'de> for Reflection {
    /// `auto`, `on`, `off`, or a boolean.
    fn deserialize<D: serde::Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bool(bool),
            Word(String),
        }
        match Written::deserialize(value)? {
            Written::Bool(true) => Ok(Self::On),
            Written::Bool(false) => Ok(Self::Off),
            Written::Word(word) => match word.as_str() {
                "auto" => Ok(Self::Auto),
                "on" => Ok(Self::On),
                "off" => Ok(Self::Off),
                _ => Err(serde::de::Error::custom("reflection must be auto, on or off")),
            },
        }
    }
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
#[derive(Debug, Clone, Serialize)]
pub(super) struct Raw {
    pub(super) grpc_listen: String,
    pub(super) http_listen: String,
    pub(super) redis_url: String,
    pub(super) postgres_url: String,
    pub(super) partitions: u32,
    pub(super) key_prefix: String,
    pub(super) reflection: Reflection,
    pub(super) max_deliveries: u32,
    pub(super) claim_idle_ms: u64,
    pub(super) backlog_max_entries: u64,
    pub(super) claims_window_ms: u64,
    pub(super) ack: String,
    pub(super) ack_replicas: u32,
    pub(super) replay: Automation,
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
    pub(super) trusted_proxies: String,
    pub(super) pool_workers: u32,
    pub(super) pool_operators: u32,
    pub(super) pool_lookups: u32,
    pub(super) pool_maintenance: u32,
    pub(super) metrics_products: String,
    pub(super) otlp_endpoint: String,
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
            claim_idle_ms: 30_000,
            backlog_max_entries: 500_000,
            claims_window_ms: 259_200_000,
            ack: Ack::Memory.as_str().into(),
            ack_replicas: 1,
            replay: Automation::Auto,
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
            trusted_proxies: String::new(),
            pool_workers: 16,
            pool_operators: 8,
            pool_lookups: 8,
            pool_maintenance: 10,
            metrics_products: String::new(),
            otlp_endpoint: String::new(),
            trace_sample_ratio: 0.01,
            log: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

/// The setting's value, or a note of what is wrong with it and a stand-in.
fn one<T: serde::de::DeserializeOwned>(
    figment: &Figment,
    name: &str,
    stand_in: T,
    problems: &mut Vec<String>,
) -> T {
    figment.extract_inner(name).unwrap_or_else(|error| {
        problems.extend(error.into_iter().map(|error| error.to_string()));
        stand_in
    })
}

impl Raw {
    /// Each setting for itself, so that every problem is told at once.
    pub(super) fn read(figment: &Figment) -> Result<Self, ConfigError> {
        let (mut problems, d) = (Vec::new(), Self::default());
        let all =
            figment.data().map_err(|error| ConfigError { problems: vec![error.to_string()] })?;
        for name in all.values().flat_map(|settings| settings.keys()) {
            if !NAMES.contains(&name.as_str()) {
                problems.push(format!("there is no setting {name:?}"));
            }
        }
        let p = &mut problems;
        let raw = Self {
            grpc_listen: one(figment, "grpc_listen", d.grpc_listen, p),
            http_listen: one(figment, "http_listen", d.http_listen, p),
            redis_url: one(figment, "redis_url", d.redis_url, p),
            postgres_url: one(figment, "postgres_url", d.postgres_url, p),
            partitions: one(figment, "partitions", d.partitions, p),
            key_prefix: one(figment, "key_prefix", d.key_prefix, p),
            reflection: one(figment, "reflection", d.reflection, p),
            max_deliveries: one(figment, "max_deliveries", d.max_deliveries, p),
            claim_idle_ms: one(figment, "claim_idle_ms", d.claim_idle_ms, p),
            backlog_max_entries: one(figment, "backlog_max_entries", d.backlog_max_entries, p),
            claims_window_ms: one(figment, "claims_window_ms", d.claims_window_ms, p),
            ack: one(figment, "ack", d.ack, p),
            ack_replicas: one(figment, "ack_replicas", d.ack_replicas, p),
            replay: one(figment, "replay", d.replay, p),
            recovery: one(figment, "recovery", d.recovery, p),
            audit_interval_ms: one(figment, "audit_interval_ms", d.audit_interval_ms, p),
            concurrency_max_calls: one(
                figment,
                "concurrency_max_calls",
                d.concurrency_max_calls,
                p,
            ),
            address_calls_per_second: one(
                figment,
                "address_calls_per_second",
                d.address_calls_per_second,
                p,
            ),
            user_calls_per_second: one(
                figment,
                "user_calls_per_second",
                d.user_calls_per_second,
                p,
            ),
            call_timeout_ms: one(figment, "call_timeout_ms", d.call_timeout_ms, p),
            request_max_bytes: one(figment, "request_max_bytes", d.request_max_bytes, p),
            header_max_bytes: one(figment, "header_max_bytes", d.header_max_bytes, p),
            connection_max_streams: one(
                figment,
                "connection_max_streams",
                d.connection_max_streams,
                p,
            ),
            connections_max: one(figment, "connections_max", d.connections_max, p),
            trusted_proxies: one(figment, "trusted_proxies", d.trusted_proxies, p),
            pool_workers: one(figment, "pool_workers", d.pool_workers, p),
            pool_operators: one(figment, "pool_operators", d.pool_operators, p),
            pool_lookups: one(figment, "pool_lookups", d.pool_lookups, p),
            pool_maintenance: one(figment, "pool_maintenance", d.pool_maintenance, p),
            metrics_products: one(figment, "metrics_products", d.metrics_products, p),
            otlp_endpoint: one(figment, "otlp_endpoint", d.otlp_endpoint, p),
            trace_sample_ratio: one(figment, "trace_sample_ratio", d.trace_sample_ratio, p),
            log: one(figment, "log", d.log, p),
            log_format: one(figment, "log_format", d.log_format, p),
        };
        if !problems.is_empty() {
            // What was read is checked as well: one look shows all there is to mend.
            problems.extend(Config::check(raw).err().into_iter().flat_map(|error| error.problems));
            return Err(ConfigError { problems });
        }
        Ok(raw)
    }
}

/// Defaults → file, if there is one → environment → flags.
pub(super) fn gather(file: &Path, flags: &[(&'static str, String)]) -> Figment {
    // A cluster that names a service `yoink` sets YOINK_PORT… and YOINK_SERVICE_… for everybody.
    let ours = |key: &figment::value::UncasedStr| {
        let key = key.as_str().to_ascii_lowercase();
        !key.starts_with("port") && !key.starts_with("service_")
    };
    let environment = Env::prefixed(PREFIX).ignore(&NOT_SETTINGS).filter(ours);
    let mut figment = Figment::from(Serialized::defaults(Raw::default()));
    if file.exists() {
        figment = figment.merge(Toml::file_exact(file));
    }
    figment = figment.merge(environment);
    for (name, value) in flags {
        // Read as the environment is: a number is a number.
        let Ok(value) = value.parse::<figment::value::Value>();
        figment = figment.merge((*name, value));
    }
    figment
}
