//! Why a script did not do what it was asked, and whether it may have.

use std::fmt;

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

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
    /// Redis follows another one, or the connection leads to one that does: it cannot be written.
    Replica,
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
    /// The ledger holds an earlier epoch than Redis: it lost commits.
    LedgerBehind,
    /// This process has not learned yet that the partition is open.
    Unknown,
}

impl FenceReason {
    pub(crate) fn from_word(word: &str) -> Self {
        match word {
            "replica" => Self::Replica,
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
            Self::Replica => "Redis is a replica: it cannot be written",
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
            Self::LedgerBehind => {
                "Postgres holds an earlier epoch than the one that was sold in: it lost commits"
            }
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
    /// The answer is not one that the script gives, or the script itself failed: a bug, or somebody else's
    /// data under our keys. It may have taken effect.
    #[error("Redis gave an answer that this program does not understand: {0:?}")]
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
        if is_malformed(&source) {
            return Self::Malformed(vec![source.to_string()]);
        }
        Self::Unavailable { applied: applied(&source), source }
    }
}

/// Whether Redis did answer, and not as it was asked: with another type, or because a script failed or found
/// a key of another type.
fn is_malformed(error: &RedisError) -> bool {
    let failed = || error.detail().is_some_and(|detail| detail.contains("user_script"));
    [ErrorKind::Parse, ErrorKind::UnexpectedReturnType].contains(&error.kind())
        || error.code() == Some("WRONGTYPE")
        || error.code() == Some("ERR") && failed()
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

#[cfg(test)]
mod tests {
    use ::redis::Value;

    use super::*;

    #[test]
    fn an_answer_of_another_type_is_malformed_and_a_broken_connection_is_not() {
        let wrong = ::redis::from_redis_value::<Vec<String>>(Value::Int(7)).unwrap_err();
        let wrong = FenceError::from(RedisError::from(wrong));
        assert!(matches!(wrong, FenceError::Malformed(_)), "{wrong:?}");
        let closed = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let closed = FenceError::from(closed);
        assert!(
            matches!(closed, FenceError::Unavailable { applied: Applied::Maybe, .. }),
            "{closed:?}"
        );
    }
}
