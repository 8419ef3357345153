//! Errors of Postgres, classified by what the caller does next (`docs/ARCHITECTURE.md`, errors of the ledger).

use std::{error::Error as _, fmt};

use deadpool_postgres::{HookError, PoolError};
use tokio_postgres::error::SqlState;

/// Why an operation of the ledger failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field is the source or the SQLSTATE")]
pub enum LedgerError {
    /// No order is the cause, and it ends by itself: wait and try again, without a limit.
    #[error("Postgres cannot do this now")]
    Transient { source: Cause },
    /// A SQLSTATE that `classify` does not know, or none: retried like a transient failure, with an alert. One order
    /// may be the cause, so a batch is halved.
    #[error(
        "Postgres failed with an error that this program does not classify (SQLSTATE {})",
        code_of(*.sqlstate)
    )]
    Unlisted { sqlstate: Option<Sqlstate>, source: Cause },
    /// A wrong schema, role or database: stop and report it; void and release nothing.
    #[error("Postgres is misconfigured")]
    Misconfigured { source: Cause },
    /// Redis and the ledger disagree: the partition must be fenced and rebuilt.
    #[error("Redis and the ledger disagree")]
    Inconsistent { source: Cause },
    /// One of these orders cannot be stored as it is.
    #[error("an order cannot be stored")]
    Rejected { sqlstate: String, source: Cause },
    /// A stored value is invalid: a row was written by something other than this program.
    #[error("the ledger holds an invalid value in {0}: correct the row")]
    InvalidData(&'static str),
    /// The partition has another epoch now: read its row again.
    #[error("the partition has another epoch now")]
    EpochChanged,
}

/// A SQLSTATE: five characters of 0-9 and A-Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sqlstate([u8; 5]);

impl Sqlstate {
    /// From its text, if it is one.
    pub fn new(code: &str) -> Option<Self> {
        let bytes: [u8; 5] = code.as_bytes().try_into().ok()?;
        let known = |c: &u8| c.is_ascii_digit() || c.is_ascii_uppercase();
        bytes.iter().all(known).then_some(Self(bytes))
    }
}

impl fmt::Display for Sqlstate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{}", char::from(*byte)))
    }
}

/// A SQLSTATE for messages and metrics; `none` if there is no code.
pub fn code_of(sqlstate: Option<Sqlstate>) -> String {
    sqlstate.map_or("none".to_owned(), |sqlstate| sqlstate.to_string())
}

/// The source of a failure.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The statement, or its connection.
    #[error("{}", server_message(.0))]
    Postgres(tokio_postgres::Error),
    /// No connection could be had.
    #[error("no connection to Postgres")]
    Pool(#[source] PoolError),
    /// No answer in time.
    #[error("Postgres did not answer within {0:?}")]
    Timeout(std::time::Duration),
}

/// The message of the server without its DETAIL, which repeats the row. For the same reason the error is not
/// a source: printing the chain would print a buyer's ids.
fn server_message(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => match db.constraint() {
            Some(name) => format!("{} ({}, constraint {name})", db.message(), db.code().code()),
            None if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE => format!(
                "{} ({}): give the role of postgres_url its privileges with deploy/postgres/roles.sql and `yoink migrate`",
                db.message(),
                db.code().code()
            ),
            None => format!("{} ({})", db.message(), db.code().code()),
        },
        None => match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}

/// The variant of [`LedgerError`] for an error of Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Transient,
    Unlisted,
    Misconfigured,
    Inconsistent,
    Rejected,
}

/// The class of a SQLSTATE and of the constraint that was violated.
fn classify(sqlstate: &str, constraint: Option<&str>) -> Class {
    match (sqlstate, constraint) {
        ("40001" | "40P01" | "55P03" | "25006", _) => Class::Transient,
        // Every column without a default is written: another NOT NULL column is a fault of the schema.
        ("23502", _) => Class::Misconfigured,
        ("23505", Some("reservations_seq_once"))
        | ("23514", Some("products_sold_within_supply")) => Class::Inconsistent,
        _ => match sqlstate.get(..2).unwrap_or_default() {
            "08" | "53" | "57" | "58" | "XX" => Class::Transient,
            "28" | "42" | "3D" => Class::Misconfigured,
            "22" | "23" => Class::Rejected,
            _ => Class::Unlisted,
        },
    }
}

impl From<tokio_postgres::Error> for LedgerError {
    fn from(error: tokio_postgres::Error) -> Self {
        let sqlstate = error.code().map(SqlState::code).map(str::to_owned);
        let constraint = error.as_db_error().and_then(|db| db.constraint()).map(str::to_owned);
        // Without a SQLSTATE, the connection failed or a value has another type than the program expects.
        let io = error.source().is_some_and(|source| source.is::<std::io::Error>());
        let lost = if error.is_closed() || io { Class::Transient } else { Class::Unlisted };
        let class =
            sqlstate.as_deref().map_or(lost, |state| classify(state, constraint.as_deref()));
        let source = Cause::Postgres(error);
        match class {
            Class::Transient => Self::Transient { source },
            Class::Unlisted => {
                Self::Unlisted { sqlstate: sqlstate.as_deref().and_then(Sqlstate::new), source }
            }
            Class::Misconfigured => Self::Misconfigured { source },
            Class::Inconsistent => Self::Inconsistent { source },
            Class::Rejected => Self::Rejected { sqlstate: sqlstate.unwrap_or_default(), source },
        }
    }
}

impl From<PoolError> for LedgerError {
    fn from(error: PoolError) -> Self {
        if let PoolError::Backend(error) = error {
            return Self::connecting(error);
        }
        if let PoolError::PostCreateHook(HookError::Backend(error)) = error {
            return error.into();
        }
        Self::Transient { source: Cause::Pool(error) }
    }
}

impl LedgerError {
    /// The failure of a new connection. Without a SQLSTATE, Postgres was not reached as the settings ask for: it offers no
    /// TLS, or its certificate is refused. No order is the cause.
    pub(super) fn connecting(error: tokio_postgres::Error) -> Self {
        if error.code().is_none() {
            return Self::Transient { source: Cause::Postgres(error) };
        }
        error.into()
    }

    /// What metrics and spans call it.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Transient { .. } => "transient",
            Self::Unlisted { .. } => "unlisted",
            Self::Misconfigured { .. } => "misconfigured",
            Self::Inconsistent { .. } => "inconsistent",
            Self::Rejected { .. } => "rejected",
            Self::InvalidData(_) => "invalid_data",
            Self::EpochChanged => "epoch_changed",
        }
    }

    /// The SQLSTATE as metrics have it, if this program does not classify it.
    pub fn unlisted(&self) -> Option<String> {
        let Self::Unlisted { sqlstate, .. } = self else { return None };
        Some(code_of(*sqlstate))
    }

    /// Whether Postgres runs and refuses connections: it starts, stops or recovers (57P03), or all its
    /// connections are in use (53300).
    pub fn refuses_connections(&self) -> bool {
        let Self::Transient { source: Cause::Postgres(error) } = self else { return false };
        let refusals = [SqlState::CANNOT_CONNECT_NOW, SqlState::TOO_MANY_CONNECTIONS];
        error.code().is_some_and(|code| refusals.contains(code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_listed_state_has_its_class() {
        for state in [
            "08006", "40001", "40P01", "53300", "53100", "55P03", "57P01", "57P02", "57014",
            "58030", "XX000", "25006",
        ] {
            assert_eq!(classify(state, None), Class::Transient, "{state}");
        }
        for state in ["28P01", "28000", "42703", "42P01", "42501", "3D000", "23502"] {
            assert_eq!(classify(state, None), Class::Misconfigured, "{state}");
        }
        for state in ["22021", "22001", "23503", "23505", "23514"] {
            assert_eq!(classify(state, Some("something_else")), Class::Rejected, "{state}");
        }
        assert_eq!(classify("23505", Some("reservations_seq_once")), Class::Inconsistent);
        assert_eq!(classify("23514", Some("products_sold_within_supply")), Class::Inconsistent);
        for state in ["25001", "P0001", "", "0A000", "é"] {
            assert_eq!(classify(state, None), Class::Unlisted, "{state}");
        }
    }

    #[test]
    fn sqlstate_of_another_form_is_none() {
        assert_eq!(code_of(Sqlstate::new("P0001")), "P0001");
        for other in ["", "P000", "P00012", "p0001", "é001", "P 001"] {
            assert_eq!(code_of(Sqlstate::new(other)), "none", "{other:?}");
        }
    }

    #[test]
    fn constraints_that_fence_exist_in_the_schema() {
        let schema = include_str!("../../migrations/0001_ledger.sql");
        for name in ["reservations_seq_once", "products_sold_within_supply"] {
            assert!(schema.contains(name), "{name}");
        }
    }
}
