//! Why a connection is replaced, decided by the result of one request. Pure.

use ::redis::{ErrorKind, RedisError, ServerErrorKind, Value};

/// Why a connection is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum DropReason {
    #[error("cannot connect to Redis")]
    Unreachable,
    #[error("the connection to Redis was closed")]
    Closed,
    /// A request timed out, and no other request was answered meanwhile.
    #[error("Redis does not answer on this connection")]
    NoAnswer,
    /// After a failover, the former master is a replica.
    #[error("this connection is to a replica of Redis, which cannot be written")]
    Replica,
    #[error("the partition is on another master of Redis now")]
    Moved,
}

impl DropReason {
    /// The label of a metric.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Closed => "closed",
            Self::NoAnswer => "no_answer",
            Self::Replica => "replica",
            Self::Moved => "moved",
        }
    }
}

/// What the error of a request shows; `no_other_answer`: no request was answered while it waited.
pub(super) fn in_error(error: &RedisError, no_other_answer: bool) -> Option<DropReason> {
    if let ErrorKind::Server(kind) = error.kind() {
        of_replica(kind).then_some(DropReason::Replica)
    } else if error.is_timeout() {
        no_other_answer.then_some(DropReason::NoAnswer)
    } else {
        error.is_unrecoverable_error().then_some(DropReason::Closed)
    }
}

/// What an answer shows: an error, or a script that reports a replica.
pub(super) fn in_answer(answer: &Value) -> Option<DropReason> {
    let replica = if let Value::ServerError(error) = answer {
        error.kind().is_some_and(of_replica)
    } else if let Value::Array(elements) = answer {
        match elements.as_slice() {
            [status, reason] if is(status, b"fenced") => is(reason, b"replica"),
            // Once an order of a batch is refused, so is the last one.
            [.., Value::BulkString(last)] => last.starts_with(b"not_applied READONLY"),
            [] | [..] => false,
        }
    } else {
        false
    };
    replica.then_some(DropReason::Replica)
}

/// Whether only a replica gives this error.
fn of_replica(kind: ServerErrorKind) -> bool {
    matches!(kind, ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
}

fn is(value: &Value, expected: &[u8]) -> bool {
    matches!(value, Value::BulkString(bytes) if bytes == expected)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn answer(elements: &[&str]) -> Value {
        Value::Array(
            elements.iter().map(|element| Value::BulkString(element.as_bytes().to_vec())).collect(),
        )
    }

    #[test]
    fn answer_of_a_replica_drops_its_connection_and_no_other_answer_does() {
        for replica in [
            answer(&["fenced", "replica"]),
            answer(&["ok", "accepted 1 9 1000", "not_applied READONLY You can't write"]),
        ] {
            assert_eq!(in_answer(&replica), Some(DropReason::Replica), "{replica:?}");
        }
        for other in [
            answer(&[]),
            answer(&["ok"]),
            answer(&["fenced", "replid"]),
            answer(&["ok", "replica"]),
            answer(&["ok", "not_applied OOM command not allowed"]),
            Value::Nil,
            Value::Okay,
        ] {
            assert_eq!(in_answer(&other), None, "{other:?}");
        }
    }

    #[test]
    fn timeout_drops_a_connection_only_if_nothing_else_was_answered() {
        let late = RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
        assert_eq!(in_error(&late, true), Some(DropReason::NoAnswer));
        assert_eq!(in_error(&late, false), None);
    }

    #[test]
    fn errors_of_replicas_and_closed_connections_drop_a_connection_and_refusals_do_not() {
        let server = |kind| RedisError::from((ErrorKind::Server(kind), "refused"));
        for kind in [ServerErrorKind::ReadOnly, ServerErrorKind::MasterDown] {
            assert_eq!(in_error(&server(kind), false), Some(DropReason::Replica));
        }
        for kind in
            [ServerErrorKind::BusyLoading, ServerErrorKind::NoScript, ServerErrorKind::NoPerm]
        {
            assert_eq!(in_error(&server(kind), true), None, "{kind:?}");
        }
        for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof] {
            let error = RedisError::from(io::Error::from(kind));
            assert_eq!(in_error(&error, true), Some(DropReason::Closed), "{kind:?}");
        }
    }
}
