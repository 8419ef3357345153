//! The settings as `yoink config check` prints them.

use std::fmt;

use ipnet::IpNet;

use super::{Automation, Config, LogFormat, postgres_url, redis_url};
use crate::domain::ProductId;

/// The settings as they apply, in the form of `yoink.toml`, secrets hidden.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |auto: Automation| {
            if auto == Automation::Auto { "auto" } else { "manual" }
        };
        writeln!(f, "grpc_listen = \"{}\"", self.grpc_listen)?;
        writeln!(f, "http_listen = \"{}\"", self.http_listen)?;
        writeln!(f, "redis_url = \"{}\"", redis_url::show(&self.redis))?;
        writeln!(f, "postgres_url = \"{}\"", postgres_url::show(&self.postgres))?;
        writeln!(f, "partitions = {}", self.partitions.get())?;
        writeln!(f, "key_prefix = \"{}\"", self.key_prefix)?;
        writeln!(f, "reflection = {}", self.reflection)?;
        writeln!(f, "max_deliveries = {}", self.max_deliveries)?;
        writeln!(f, "takeover_idle_ms = {}", self.takeover_idle_ms)?;
        writeln!(f, "backlog_max_entries = {}", self.backlog_max_entries)?;
        writeln!(f, "idempotency_window_ms = {}", self.idempotency_window_ms)?;
        writeln!(f, "ack = \"{}\"", self.ack.as_str())?;
        writeln!(f, "ack_replicas = {}", self.ack_replicas)?;
        writeln!(f, "dead_letter_release = \"{}\"", word(self.dead_letter_release))?;
        writeln!(f, "recovery = \"{}\"", word(self.recovery))?;
        let proxies = self.trusted_proxies.iter().map(IpNet::to_string).collect::<Vec<_>>();
        writeln!(f, "audit_interval_ms = {}", self.audit_interval_ms)?;
        writeln!(f, "concurrency_max_calls = {}", self.concurrency_max_calls)?;
        writeln!(f, "address_calls_per_second = {}", self.address_calls_per_second)?;
        writeln!(f, "user_calls_per_second = {}", self.user_calls_per_second)?;
        writeln!(f, "call_timeout_ms = {}", self.call_timeout_ms)?;
        writeln!(f, "request_max_bytes = {}", self.request_max_bytes)?;
        writeln!(f, "header_max_bytes = {}", self.header_max_bytes)?;
        writeln!(f, "connection_max_streams = {}", self.connection_max_streams)?;
        writeln!(f, "connections_max = {}", self.connections_max)?;
        writeln!(f, "connection_max_age_ms = {}", self.connection_max_age_ms)?;
        writeln!(
            f,
            "require_request_id = \"{}\"",
            if self.require_request_id { "on" } else { "off" }
        )?;
        writeln!(f, "trusted_proxies = \"{}\"", proxies.join(","))?;
        writeln!(f, "pool_workers = {}", self.pool_workers)?;
        writeln!(f, "pool_operators = {}", self.pool_operators)?;
        writeln!(f, "pool_lookups = {}", self.pool_lookups)?;
        writeln!(f, "pool_maintenance = {}", self.pool_maintenance)?;
        let products = self.metrics_products.iter().map(ProductId::to_string).collect::<Vec<_>>();
        writeln!(f, "metrics_products = \"{}\"", products.join(","))?;
        writeln!(f, "otlp_endpoint = \"{}\"", self.otlp_endpoint.as_deref().unwrap_or_default())?;
        let headers = if self.otlp_headers.is_empty() { "" } else { "(hidden)" };
        writeln!(f, "otlp_headers = \"{headers}\"")?;
        writeln!(f, "otlp_metrics_interval_ms = {}", self.otlp_metrics_interval_ms)?;
        writeln!(f, "trace_sample_ratio = {}", self.trace_sample_ratio)?;
        writeln!(f, "log = \"{}\"", self.log)?;
        let format = if self.log_format == LogFormat::Json { "json" } else { "text" };
        write!(f, "log_format = \"{format}\"")
    }
}
