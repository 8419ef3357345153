//! Private redis-server and postgres processes for `dev`, `demo` and the tests: on loopback, on free
//! ports, in a directory of the caller's. The kernel ends them when this process ends, however it does.
//!
//! Must never: touch a server it did not start.

mod child;
mod postgres;
mod redis;

use std::{io, path::PathBuf};

pub use self::{
    postgres::PostgresServer,
    redis::{AppendFsync, RedisServer},
};

/// Why a server could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Not installed.
    #[error("{0} is not installed: run `make install`")]
    Missing(&'static str),
    /// Postgres refuses to run as root, and there is no other user to run it as.
    #[error(
        "Postgres cannot run as root, user namespaces are forbidden, and neither the user {} nor the user {} exists: \
         create one of them, or run this as another user than root",
        _0[0], _0[1]
    )]
    NoUser([&'static str; 2]),
    /// A command could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A command failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// Which.
        program: String,
        /// The end of what it said.
        said: String,
    },
    /// The server never answered.
    #[error("{program} did not answer; its log is {}", log.display())]
    Silent {
        /// Which.
        program: &'static str,
        /// Where it logs.
        log: PathBuf,
    },
    /// Its directory could not be prepared.
    #[error("cannot prepare {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
