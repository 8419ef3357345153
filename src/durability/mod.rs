//! What the settings and the state of Redis and Postgres allow this program to promise. Some of them refuse the start,
//! or stop the sale; others lower the promise, and are logged.

mod postgres;
mod redis_nodes;
mod redis_state;

pub(crate) use postgres::assess_postgres;
pub(crate) use redis_nodes::RedisNodes;
pub(crate) use redis_state::{AofCompleteness, RedisState, setting_warnings};

/// What a store promises, and the reasons not to sell with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Assessment {
    /// How durable its writes are: a label of `yoink_durability`.
    pub(crate) mode: &'static str,
    /// The mode that the settings give once the append-only file is complete.
    pub(crate) configured_mode: &'static str,
    /// Settings that are not safe to sell with.
    pub(crate) refusals: Vec<String>,
    /// Why this server can never be used, such as a replica.
    pub(crate) unusable: Vec<String>,
    /// Why nothing can be sold for now.
    pub(crate) outages: Vec<String>,
    /// Why nothing can be sold for now from some of several masters.
    pub(crate) partial_outages: Vec<String>,
    /// Why it promises less than other settings would.
    pub(crate) warnings: Vec<&'static str>,
}

/// Every mode of Redis, from the strongest; the last one where Redis does not report its settings.
pub(crate) const REDIS_MODES: [&str; 4] = ["always", "everysec", "memory", "unknown"];
/// Every mode of Postgres.
pub(crate) const POSTGRES_MODES: [&str; 2] = ["synchronous", "asynchronous"];
