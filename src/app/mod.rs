//! Puts the rooms together and runs them: the caller brings configuration, listeners and the shutdown.

mod connect;
mod http;
mod scrape;
mod serve;

pub use connect::Stores;
pub(crate) use connect::ledger;
pub use serve::{App, Listeners, Role};
