//! What is wrong with single settings, and settings that hold more than one value.

use std::net::IpAddr;

use ipnet::IpNet;

use super::raw::Raw;
use crate::domain::{Ack, ProductId};

impl Raw {
    /// What is wrong with single settings, apart from the addresses.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let scheme =
            |url: &str, schemes: &[&str]| schemes.iter().any(|scheme| url.starts_with(scheme));
        require(
            self.log.parse::<tracing_subscriber::EnvFilter>().is_ok(),
            "log must be a filter such as info or warn,yoink=debug",
        );
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        require(
            !self.key_prefix.is_empty()
                && self.key_prefix.len() <= 64
                && self.key_prefix.chars().all(plain),
            "key_prefix must match [A-Za-z0-9._:-]{1,64}",
        );
        require((1..=100).contains(&self.max_deliveries), "max_deliveries must be 1 to 100");
        require(
            (100..=86_400_000).contains(&self.takeover_idle_ms),
            "takeover_idle_ms must be 100 to 86400000 (a day)",
        );
        require(self.backlog_max_entries > 0, "backlog_max_entries must be at least 1");
        require(
            (1_000..=2_592_000_000).contains(&self.idempotency_window_ms),
            "idempotency_window_ms must be 1000 to 2592000000 (30 days)",
        );
        require(
            self.otlp_endpoint.is_empty()
                || (scheme(&self.otlp_endpoint, &["http://"])
                    && self.otlp_endpoint.parse::<tonic::transport::Uri>().is_ok()),
            "otlp_endpoint must be an address such as http://127.0.0.1:4317",
        );
        require(
            (0.0..=1.0).contains(&self.trace_sample_ratio),
            "trace_sample_ratio must be 0 to 1",
        );
        require(
            self.audit_interval_ms == 0 || (100..=86_400_000).contains(&self.audit_interval_ms),
            "audit_interval_ms must be 100 to 86400000 (a day), or 0 for never",
        );
        require((1..=100).contains(&self.ack_replicas), "ack_replicas must be 1 to 100");
        problems.extend(self.limit_problems());
        problems
    }

    fn limit_problems(&self) -> impl Iterator<Item = String> {
        let pools = 1..=1_000;
        let limits = [
            (
                (1..=1_000_000).contains(&self.concurrency_max_calls),
                "concurrency_max_calls must be 1 to 1000000",
            ),
            (
                (10..=600_000).contains(&self.call_timeout_ms),
                "call_timeout_ms must be 10 to 600000 (10 minutes)",
            ),
            (
                (1_024..=1_048_576).contains(&self.request_max_bytes),
                "request_max_bytes must be 1024 to 1048576 (1 MiB)",
            ),
            (
                (4_096..=1_048_576).contains(&self.header_max_bytes),
                "header_max_bytes must be 4096 to 1048576 (1 MiB)",
            ),
            (
                (1..=100_000).contains(&self.connection_max_streams),
                "connection_max_streams must be 1 to 100000",
            ),
            (
                (1..=1_000_000).contains(&self.connections_max),
                "connections_max must be 1 to 1000000",
            ),
            (pools.contains(&self.pool_workers), "pool_workers must be 1 to 1000"),
            (pools.contains(&self.pool_operators), "pool_operators must be 1 to 1000"),
            (pools.contains(&self.pool_lookups), "pool_lookups must be 1 to 1000"),
            (
                (6..=1000).contains(&self.pool_maintenance),
                "pool_maintenance must be 6 to 1000 (four rebuilds, an audit, an export)",
            ),
        ];
        let wrong = limits.into_iter().filter(|(holds, _)| !holds);
        wrong.map(|(_, problem): (bool, &str)| problem.to_owned())
    }

    /// When an accepted reservation is answered.
    pub(super) fn ack(&self) -> Result<Ack, String> {
        let ack = Ack::from_name(&self.ack);
        ack.ok_or_else(|| "ack must be memory, disk, replica or ledger".to_owned())
    }

    /// The products that metrics name; the first one that is no id is the error.
    pub(super) fn metrics_products(&self) -> Result<Vec<ProductId>, String> {
        let product = |one: &str| {
            one.parse().map_err(|error| format!("metrics_products names {one:?}, which {error}"))
        };
        listed(&self.metrics_products).map(product).collect()
    }

    /// The proxies that are believed; the first one that is no address is the error.
    pub(super) fn trusted_proxies(&self) -> Result<Vec<IpNet>, String> {
        let network = |one: &str| {
            let address = one.parse::<IpAddr>().map(IpNet::from);
            let network = address.or_else(|_| one.parse::<IpNet>());
            // Peers are written as IPv4 where they are: such a network would hold none of them.
            let mapped = |network: &IpNet| match network {
                IpNet::V4(_) => false,
                IpNet::V6(network) => network.addr().to_ipv4_mapped().is_some(),
            };
            network.ok().filter(|network| !mapped(network)).ok_or_else(|| {
                format!("trusted_proxies names no address or network such as 10.0.0.0/8: {one:?}")
            })
        };
        listed(&self.trusted_proxies).map(network).collect()
    }
}

/// What is written with commas between.
fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|one| !one.is_empty())
}
