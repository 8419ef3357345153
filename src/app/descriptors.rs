//! How many connections the descriptor limit of this process allows.

use anyhow::ensure;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// Descriptors that are not for gRPC connections nor for Postgres: those of HTTP, connections to Redis, logs, the
/// runtime's own. Each partition's consumer has one more.
const RESERVED_DESCRIPTORS: u64 = 112;

/// Raises the soft limit of descriptors to the hard one, which is as high as a process may go by itself. If that fails,
/// the limit stays as it was.
pub(crate) fn raise_descriptor_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// How many gRPC connections there may be: the setting, or what the descriptor limit leaves after the connections to
/// Postgres. Fails when it leaves none.
pub(super) fn connections_max(config: &Config) -> anyhow::Result<usize> {
    let setting = u64::from(config.connections_max);
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let reserved = RESERVED_DESCRIPTORS
        + u64::from(config.partitions.get())
        + u64::from(config.ledger_connections());
    ensure!(
        limit > reserved,
        "this process may open {limit} files, and needs {reserved} before it can accept a connection: \
         raise the limit (ulimit -n, LimitNOFILE)"
    );
    let left = limit - reserved;
    if left < setting {
        tracing::warn!(
            "at most {left} connections instead of connections_max = {setting}: this process may open \
             {limit} files and keeps {reserved} for itself; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
    Ok(usize::try_from(left.min(setting))?)
}

/// Refuses settings with which the descriptor limit of this process leaves no connection; connects to nothing.
pub(crate) fn check_descriptor_limit(config: &Config) -> anyhow::Result<()> {
    connections_max(config).map(drop)
}
