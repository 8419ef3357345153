//! The test harness: private servers, a service, buyers, and the audit at the end.

mod answers;
mod binary;
mod buyer_load;
mod certificates;
mod cluster_bus;
mod compose;
mod dead_letters;
mod pgbouncer;
mod proxy;
mod redis_cli;
mod redis_cluster;
mod schedule;
mod sentinels;
mod servers;
mod service;
mod standby;
mod test_env;
mod tls_server;
mod wire;

use std::time::Duration;

pub use answers::{Account, Answers};
pub use binary::{
    Binary, Dev, first_sale, processes_under, run_yoink, run_yoink_in, run_yoink_on_terminal,
    run_yoink_with, spawn_yoink,
};
pub use buyer_load::{BuyerLoad, RunningLoad};
pub use certificates::{Authority, Issued, Validity, replace};
pub use compose::{Deployment, compose, make_passwords, mode, text, words};
pub use dead_letters::{dead_entries, move_to_dead};
pub use pgbouncer::PgBouncer;
pub use proxy::Proxy;
pub use redis_cli::{Cli, redis_cli, redis_command, try_redis_cli, try_redis_command};
pub use redis_cluster::{ClusterOptions, RedisCluster};
pub use schedule::Schedule;
pub use sentinels::Sentinels;
pub use servers::{scratch_dir, shared};
pub use service::{Bought, Service, get, reason};
pub use standby::{promote, standby};
pub use test_env::{TestEnv, product};

/// The longest wait for a condition.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// Polls until `done` returns a value; panics with `what` after `WAIT_MAX`.
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
    match tokio::time::timeout(WAIT_MAX, poll).await {
        Ok(value) => value,
        Err(_) => panic!("never happened: {what}"),
    }
}

/// As [`eventually`] for a fallible attempt; panics with the last error after `WAIT_MAX`.
pub async fn succeeds<T, E: std::fmt::Debug>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let mut last = None;
    let started = tokio::time::Instant::now();
    eventually(what, async || match attempt().await {
        Ok(value) => Some(value),
        Err(error) if started.elapsed() + LAST_ATTEMPT > WAIT_MAX => {
            panic!("never happened: {what}: {error:?}, before that {last:?}")
        }
        Err(error) => {
            last = Some(error);
            None
        }
    })
    .await
}

/// An attempt that fails within this time before `WAIT_MAX` is the last one.
const LAST_ATTEMPT: Duration = Duration::from_secs(1);

/// Whether this machine can trace processes, which `what` needs. Reported as [`not_tried`] if not.
pub fn can_trace(what: &str) -> bool {
    let traced = std::process::Command::new("strace").args(["-o", "/dev/null", "true"]).status();
    let works = traced.is_ok_and(|status| status.success());
    if !works {
        not_tried(&format!("{what} (strace is missing, or ptrace is forbidden)"));
    }
    works
}

/// Reports that a test cannot run on this machine; fails if `STRICT` is set.
pub fn not_tried(what: &str) {
    use std::io::Write as _;
    let strict = std::env::var_os("STRICT").is_some_and(|strict| !strict.is_empty());
    assert!(!strict, "NOT TRIED: {what}");
    // Not captured with the test's output, so that it is always shown.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "NOT TRIED: {what}").unwrap();
}
