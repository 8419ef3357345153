//! The way into Redis: a connection, what this process believes of each partition, and scripts that
//! begin with the fence (R1). A script runs on a partition only under the epoch believed here, and Redis
//! refuses it if anything else is true there.
//!
//! Must never: retry a script whose outcome is unknown; seed anything.

mod connection;
mod error;
mod partitions;
mod script;

pub use connection::Connection;
pub use error::{Applied, FenceError, FenceReason};
pub use partitions::{Partitions, Taking, expect};
pub use script::Script;
