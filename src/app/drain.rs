//! The order in which a process that shuts down stops answering calls: health reports it first, so that load balancers
//! send nothing more; then connections are closed; then the calls in progress have some time left.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use super::{Role, store_monitor::report};
use crate::tasks::Tasks;

/// How long calls may take to end after the connections were asked to close.
const CALLS_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(4);

/// The shutdown of a process, as far as calls are concerned.
pub(super) struct Drain {
    pub(super) role: Role,
    pub(super) reporter: HealthReporter,
    /// Begins it.
    pub(super) shutdown: CancellationToken,
    /// How long new connections and calls are still accepted.
    pub(super) delay: Duration,
    /// Closes the connections, each after its calls in progress.
    pub(super) close: CancellationToken,
}

impl Drain {
    /// Waits for the shutdown; returns when calls that are still in progress are to be cancelled.
    pub(super) async fn run(self, tasks: &Tasks) {
        let stopped = tokio::select! {
            () = self.shutdown.cancelled() => true,
            // A process that can no longer store orders must end.
            () = tasks.panicked() => {
                self.shutdown.cancel();
                false
            }
        };
        let delay = if stopped && self.role.answers_calls() { self.delay } else { Duration::ZERO };
        tracing::info!(delay_ms = delay.as_millis(), "shutting down");
        report(&self.reporter, self.role, false).await;
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = tasks.panicked() => {}
        }
        self.close.cancel();
        tokio::time::sleep(CALLS_SHUTDOWN_TIMEOUT).await;
    }
}
