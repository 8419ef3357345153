//! What the rooms below say, as the error of a call.

use super::error::ApiError;
use crate::{
    ack::AckError,
    catalogue::RefreshError,
    desk::DeskError,
    fence::{Applied, FenceError},
    ledger::{Cause, LedgerError},
    stock::StockError,
};

impl From<StockError> for ApiError {
    fn from(error: StockError) -> Self {
        match error {
            StockError::Overloaded => Self::Overloaded,
            StockError::Stopping => Self::Stopping,
            StockError::Abandoned => Self::RedisUnavailable(Applied::Maybe),
            StockError::Refused(said) => {
                tracing::warn!(said, "Redis refused an order");
                Self::RedisUnavailable(Applied::No)
            }
            StockError::Fence(error) => error.into(),
        }
    }
}

impl From<AckError> for ApiError {
    fn from(error: AckError) -> Self {
        match error {
            AckError::Unavailable(ack) => Self::AckUnavailable(ack),
            AckError::Voided => Self::ReservationVoided,
            AckError::Lost => Self::LostOrUnknown,
            // The unit is taken, and the order on its way.
            AckError::Overloaded | AckError::Stopping => Self::LedgerUnavailable(Applied::Maybe),
        }
    }
}

impl From<FenceError> for ApiError {
    fn from(error: FenceError) -> Self {
        match error {
            FenceError::Fenced(_) => Self::Recovering,
            FenceError::Unavailable { applied, .. } => Self::RedisUnavailable(applied),
            FenceError::Malformed(answer) => {
                tracing::error!(
                    ?answer,
                    "Redis gave an answer that this program does not understand"
                );
                Self::Internal(Applied::Maybe)
            }
        }
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the ledger did not answer a call"
        );
        match error {
            LedgerError::Unlisted { source: Cause::Unreadable(_), .. } => {
                Self::Internal(Applied::Maybe)
            }
            LedgerError::Unavailable { .. } | LedgerError::Unlisted { .. } => {
                Self::LedgerUnavailable(Applied::Maybe)
            }
            LedgerError::Misconfigured { .. }
            | LedgerError::Inconsistent { .. }
            | LedgerError::Rejected { .. } => Self::LedgerUnavailable(Applied::No),
            LedgerError::GateClosed => Self::Recovering,
        }
    }
}

impl From<RefreshError> for ApiError {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::Ledger(error) => error.into(),
            RefreshError::NotInForce(_) => Self::NotInForce,
        }
    }
}

impl From<DeskError> for ApiError {
    fn from(error: DeskError) -> Self {
        match error {
            DeskError::Ledger(error) => error.into(),
            DeskError::Fence(error) => error.into(),
            DeskError::Stock(error) => error.into(),
        }
    }
}
