//! Why a script did not do what it was asked, and whether it may have.

use std::fmt;

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Whether a failed call may have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Certainly not.
    No,
    /// Nobody knows yet: ask again with the same request id.
    Maybe,
}

impl Applied {
    /// The word in error metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Maybe => "maybe",
        }
    }
}

/// Why a partition is fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceReason {
    /// Redis has no meta: it was emptied, or never opened.
    Missing,
    /// Redis holds another deployment's data.
    Deployment,
    /// Redis restarted, was promoted, or came back from a backup.
    Replid,
    /// This process or Redis is of another epoch.
    Epoch,
    /// Closed for repair.
    Closed,
    /// Redis's settings are not safe to sell with.
    Settings,
    /// Postgres failed over or was restored since the partition was opened.
    Timeline,
    /// Postgres lost an order that it had stored.
    StoredLost,
    /// This process has not learned yet that the partition is open.
    Unknown,
}

impl FenceReason {
    pub(crate) fn from_word(word: &str) -> Self {
        match word {
            "missing" => Self::Missing,
            "deployment" => Self::Deployment,
            "replid" => Self::Replid,
            "epoch" => Self::Epoch,
            "closed" => Self::Closed,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for FenceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "Redis holds nothing of it",
            Self::Deployment => "Redis holds another deployment's data",
            Self::Replid => "Redis is not the instance it was opened on, or has restarted",
            Self::Epoch => "it is of another epoch",
            Self::Closed => "it is closed",
            Self::Settings => "Redis's settings are not safe to sell with",
            Self::Timeline => {
                "Postgres is on another timeline than when it was opened: it failed over or was restored"
            }
            Self::StoredLost => "Postgres no longer holds an order that it had stored",
            Self::Unknown => "it is not known to be open",
        })
    }
}

/// A script did not run to its end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FenceError {
    /// The partition must be rebuilt first; nothing was done.
    #[error("the partition is fenced: {0}")]
    Fenced(FenceReason),
    /// Redis could not be asked, or did not answer.
    #[error("Redis is unavailable")]
    Unavailable {
        /// Whether it may have happened all the same.
        applied: Applied,
        /// What the client library said.
        #[source]
        source: RedisError,
    },
    /// The answer is not one that the script gives; it may have taken effect.
    #[error("a script answered what it never answers: {0:?}")]
    Malformed(Vec<String>),
}

impl FenceError {
    /// The label of a metric.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Fenced(_) => "fenced",
            Self::Unavailable { .. } => "unavailable",
            Self::Malformed(_) => "malformed",
        }
    }
}

impl From<RedisError> for FenceError {
    fn from(source: RedisError) -> Self {
        Self::Unavailable { applied: applied(&source), source }
    }
}

/// Only refusals from before the first command of a script are certain to have had no effect.
fn applied(error: &RedisError) -> Applied {
    if error.is_connection_refusal() {
        return Applied::No;
    }
    let refused_kinds = [
        ErrorKind::Server(ServerErrorKind::BusyLoading),
        ErrorKind::Server(ServerErrorKind::NoScript),
        ErrorKind::Server(ServerErrorKind::MasterDown),
        ErrorKind::Server(ServerErrorKind::ReadOnly),
        ErrorKind::AuthenticationFailed,
        ErrorKind::InvalidClientConfig,
    ];
    let before_any_effect = refused_kinds.contains(&error.kind());
    // A script refused for memory or for a failing disk is refused whole, before its first command.
    let code = error.code().unwrap_or_default();
    if before_any_effect || ["OOM", "MISCONF", "BUSY", "NOREPLICAS", "NOAUTH"].contains(&code) {
        Applied::No
    } else {
        Applied::Maybe
    }
}
