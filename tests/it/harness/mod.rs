//! What every test stands on: servers of our own, a service, buyers, and the audit at the end.

mod answers;
mod binary;
mod buried;
mod crowd;
mod pgbouncer;
mod proxy;
mod schedule;
mod servers;
mod service;
mod wire;
mod yard;

use std::time::Duration;

pub use answers::Answers;
pub use binary::{Binary, Dev, processes_under, run_yoink, run_yoink_with};
pub use buried::bury;
pub use crowd::{Crowd, Rush};
pub use pgbouncer::PgBouncer;
pub use proxy::Proxy;
pub use schedule::Schedule;
pub use servers::{scratch_dir, shared};
pub use service::{Service, get, reason};
pub use yard::{Yard, product};

/// No test waits longer for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `done` gives something, and panics with `what` when it never does.
pub async fn eventually<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let poll = async {
        loop {
            ticks.tick().await;
            if let Some(value) = done().await {
                return value;
            }
        }
    };
    match tokio::time::timeout(PATIENCE, poll).await {
        Ok(value) => value,
        Err(_) => panic!("never happened: {what}"),
    }
}
