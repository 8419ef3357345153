//! The way into Redis: connections, what this process believes of each partition, and scripts that
//! begin with the fence (R1). A script runs on a partition only under the epoch believed here, and Redis
//! refuses it if anything else is true there.
//!
//! A Redis that is a replica is fenced whatever it holds, and its connection is dropped.
//!
//! Must never: retry a script whose outcome is unknown; seed anything.

mod commands;
mod connection;
mod drop_reason;
mod error;
mod keys;
mod partitions;
mod script;

pub use commands::Commands;
pub use connection::{Connection, retry_at_start};
pub use error::{Applied, FenceError, FenceReason};
pub use keys::{GROUP, Keys};
pub use partitions::{Partitions, Taking, expect};
pub use script::Script;
