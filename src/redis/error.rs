//! Why a call to Redis failed, and whether it may have taken effect.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

/// Whether a failed call may have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Certainly not.
    No,
    /// Possibly. A repeated call with the same request id returns the outcome.
    Maybe,
}

impl Applied {
    /// The value in error metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Maybe => "maybe",
        }
    }
}

/// Why a partition is fenced. The first six are answers of `lua/fence.lua`; `Closed` also means that the ledger has the
/// partition closed. This process finds the other six.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each has its message")]
pub enum FenceReason {
    #[error("Redis is a replica, which cannot be written")]
    Replica,
    /// It was emptied, or the partition was never opened there.
    #[error("Redis holds no data of the partition")]
    Missing,
    #[error("Redis holds another deployment's data")]
    Deployment,
    /// After a restart, a promotion, or a restored backup.
    #[error("Redis restarted, or is not the instance on which the partition was opened")]
    Replid,
    #[error("this process and Redis have different epochs of the partition")]
    Epoch,
    #[error("it is closed until it is rebuilt")]
    Closed,
    #[error("the settings of Redis are not safe to sell with")]
    Settings,
    #[error(
        "Postgres is on another timeline than at the opening of the partition: it failed over or was restored"
    )]
    Timeline,
    #[error("Postgres no longer holds an order that it had stored")]
    StoredLost,
    #[error(
        "Postgres lost commits: it holds an earlier epoch than the one in which units were sold"
    )]
    LedgerBehind,
    #[error("Postgres lost commits: it no longer holds the opening of the partition")]
    OpeningLost,
    #[error("this process does not know yet whether the partition is open")]
    Unknown,
}

impl FenceReason {
    pub(crate) fn from_label(label: &str) -> Self {
        match label {
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

/// Why a call to Redis failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RedisCallError {
    /// The partition is fenced; nothing was done.
    #[error("the partition is fenced: {0}")]
    Fenced(FenceReason),
    /// Redis could not be reached, or did not answer.
    #[error("Redis is unavailable")]
    Unavailable {
        /// Whether the script may have taken effect.
        applied: Applied,
        /// The error of the client library.
        source: RedisError,
    },
    /// The script never gives this reply, or it failed: a bug, or another program's data under the keys of this one. It
    /// may have taken effect.
    #[error("Redis sent a reply that this program does not understand: {0:?}")]
    Malformed(Vec<String>),
}

impl RedisCallError {
    /// The label of a metric.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Fenced(_) => "fenced",
            Self::Unavailable { .. } => "unavailable",
            Self::Malformed(_) => "malformed",
        }
    }
}

impl From<RedisError> for RedisCallError {
    fn from(source: RedisError) -> Self {
        if is_malformed(&source) {
            return Self::Malformed(vec![source.to_string()]);
        }
        Self::Unavailable { applied: applied(&source), source }
    }
}

/// Whether Redis answered with a reply of another type, or because the script failed or found a key of another type.
fn is_malformed(error: &RedisError) -> bool {
    let contains = |part: &str| error.detail().is_some_and(|detail| detail.contains(part));
    // Redis up to 7.0 reports in this way that the user may not run a command of the script.
    // A cluster reports in this way ("Script" or, up to 7.0, "Lua script") that a key is being moved to another node.
    let refused = ["The user executing the script", "cript attempted to"];
    let failed = || contains("user_script") && !refused.iter().any(|part| contains(part));
    [ErrorKind::Parse, ErrorKind::UnexpectedReturnType].contains(&error.kind())
        || error.code() == Some("WRONGTYPE")
        || error.code() == Some("ERR") && failed()
}

/// Only a refusal before the first command of a script certainly had no effect.
fn applied(error: &RedisError) -> Applied {
    if error.is_connection_refusal() {
        return Applied::No;
    }
    let refused_kinds = [
        ErrorKind::Server(ServerErrorKind::BusyLoading),
        ErrorKind::Server(ServerErrorKind::NoScript),
        ErrorKind::Server(ServerErrorKind::MasterDown),
        ErrorKind::Server(ServerErrorKind::ReadOnly),
        // A node of a cluster checks the slot of the keys before it runs a script.
        ErrorKind::Server(ServerErrorKind::Moved),
        ErrorKind::Server(ServerErrorKind::Ask),
        ErrorKind::Server(ServerErrorKind::TryAgain),
        ErrorKind::Server(ServerErrorKind::ClusterDown),
        ErrorKind::AuthenticationFailed,
        ErrorKind::InvalidClientConfig,
    ];
    let before_any_effect = refused_kinds.contains(&error.kind());
    // For memory or a failing disk, Redis refuses a whole script, before its first command.
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
    fn refusals_of_a_cluster_before_a_script_runs_have_no_effect_and_one_within_it_may_have() {
        for kind in [
            ServerErrorKind::Moved,
            ServerErrorKind::Ask,
            ServerErrorKind::TryAgain,
            ServerErrorKind::ClusterDown,
        ] {
            let error = RedisError::from((ErrorKind::Server(kind), "refused"));
            assert_eq!(applied(&error), Applied::No, "{kind:?}");
        }
        for text in [
            "Script attempted to access a non local key in a cluster node script: 1, on @user_script:9.",
            "Error running script (call to f_1): @user_script:9: Lua script attempted to access a non local key in a \
             cluster node",
        ] {
            let within = ::redis::make_extension_error("ERR".to_owned(), Some(text.to_owned()));
            let within = RedisCallError::from(within);
            let RedisCallError::Unavailable { applied, .. } = within else { panic!("{within:?}") };
            assert_eq!(applied, Applied::Maybe, "{text}");
        }
    }

    #[test]
    fn reply_of_another_type_is_malformed_and_broken_connection_is_unavailable() {
        let wrong = ::redis::from_redis_value::<Vec<String>>(Value::Int(7)).unwrap_err();
        let wrong = RedisCallError::from(RedisError::from(wrong));
        assert!(matches!(wrong, RedisCallError::Malformed(_)), "{wrong:?}");
        let closed = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        let closed = RedisCallError::from(closed);
        assert!(
            matches!(closed, RedisCallError::Unavailable { applied: Applied::Maybe, .. }),
            "{closed:?}"
        );
    }
}
