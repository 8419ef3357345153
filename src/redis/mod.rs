//! Access to Redis: connections, keys, the epoch in which each partition is open as far as this process knows, and
//! scripts that begin with the fence (R1). A script runs on a partition only under that epoch, and Redis refuses it
//! where its own state differs.
//!
//! A Redis that is a replica is fenced, even if its data is right, and its connection is dropped.
//!
//! Partitions may be on several masters of a Redis Cluster. `Topology` has the address of each one's master.
//!
//! Must never: retry a script whose outcome is unknown; create stock or meta by itself.

mod commands;
mod connection;
mod drop_reason;
mod error;
mod keys;
mod nodes;
mod partitions;
mod script;
mod slots;
mod topology;
mod views;

pub use commands::Commands;
pub use connection::{Connection, retry_at_start};
pub use error::{Applied, FenceReason, RedisCallError};
pub use keys::{GROUP, Key};
pub use nodes::{NodeTls, Source, TopologyError};
pub use partitions::{Partitions, SellingGuard};
pub use script::Script;
pub(crate) use script::script;
pub use topology::Topology;
