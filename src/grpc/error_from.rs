//! Errors of the modules below as errors of a call.

use super::error::ApiError;
use crate::{
    ack::AckError,
    catalogue::RefreshError,
    dead_letters::DeadLetterError,
    ledger::{Cause, LedgerError},
    redis::{Applied, FenceError},
    stock::StockError,
};

impl From<StockError> for ApiError {
    fn from(error: StockError) -> Self {
        match error {
            StockError::Overloaded => Self::Overloaded,
            StockError::Stopping => Self::Stopping,
            StockError::Abandoned => Self::RedisUnavailable(Applied::Maybe),
            StockError::Refused(message) => {
                tracing::warn!(message, "Redis refused a reservation");
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
            // The unit is taken, and the order will be stored.
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
                    "Redis sent a reply that this version does not understand"
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
            "Postgres failed a call of a client"
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
            RefreshError::NotAppliedYet(_) => Self::NotInForce,
        }
    }
}

impl From<DeadLetterError> for ApiError {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Ledger(error) => error.into(),
            DeadLetterError::Fence(error) => error.into(),
            DeadLetterError::Stock(error) => error.into(),
        }
    }
}

impl ApiError {
    /// The error for a message that could not be decoded. The decoder's text names the path to the wrong field, each step as
    /// `Message.field: `.
    pub(super) fn unreadable(decoder: &str) -> Self {
        let path = decoder.trim_start_matches("failed to decode Protobuf message: ").split(": ");
        let fields = path.map_while(|part| part.split_once('.').map(|(_, field)| field));
        let named = |field: &&str| {
            !field.is_empty() && field.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        };
        let fields: Vec<_> = fields.take_while(named).collect();
        match fields.as_slice() {
            [] => Self::UnreadableMessage,
            fields => Self::bad_field(&fields.join("."), "cannot be read: it has another type"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undecodable_message_names_the_field_that_the_decoder_names() {
        let unreadable = |text: &str| {
            let error = ApiError::unreadable(text);
            let reason = error.reason().as_str().to_owned();
            if let ApiError::BadFields(fields) = error { fields[0].0.clone() } else { reason }
        };
        let decoder = "failed to decode Protobuf message: ";
        let text = format!("{decoder}ReserveUnitRequest.user_id: invalid wire type: Varint");
        assert_eq!(unreadable(&text), "user_id");
        let text = format!("{decoder}CreateProductsRequest.products: NewProduct.name: invalid");
        assert_eq!(unreadable(&text), "products.name");
        for text in ["failed to decode Protobuf message: invalid tag value: 0", "Missing request."]
        {
            assert_eq!(unreadable(text), "UNREADABLE_MESSAGE");
        }
    }
}
