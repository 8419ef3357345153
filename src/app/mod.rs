//! Puts the services together and runs them: the caller brings configuration, listeners and the shutdown.

mod auditing;
mod connect;
mod connections;
mod http;
mod inspect;
mod redis_state;
mod safety;
mod scrape;
mod serve;
mod watch;

pub use connect::Stores;
pub(crate) use connect::pools;
pub(crate) use connections::{check_descriptor_limit, raise_descriptor_limit};
pub(crate) use inspect::{Inspection, inspect};
pub use serve::{App, Listeners, Role};
