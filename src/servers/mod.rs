//! Private redis-server and postgres processes for `dev`, `demo` and the tests: on loopback, on free
//! ports, in a directory of the caller. The kernel ends them when this process ends for any reason.
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

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Not installed.
    #[error("{0} is not installed: run `make install`")]
    Missing(&'static str),
    /// Postgres refuses to run as root, and no other user exists to run it.
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
    #[error("{program} failed: {output}")]
    Failed {
        /// Which.
        program: String,
        /// What it printed.
        output: String,
    },
    /// The server did not answer in time.
    #[error("{program} did not answer: see its log {}", log.display())]
    Silent {
        /// Which.
        program: &'static str,
        /// Its log.
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
