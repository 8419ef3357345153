//! Errors of the modules below as errors of a call.

use std::sync::Arc;

use super::{error::ApiError, reason::Reason};
use crate::{
    ack::AckError,
    catalogue::ChangeError,
    dead_letters::DeadLetterError,
    ledger::LedgerError,
    redis::{Applied, RedisCallError},
    stock::StockError,
};

impl From<StockError> for ApiError {
    fn from(error: StockError) -> Self {
        match error {
            StockError::Overloaded => Reason::Overloaded.into(),
            StockError::ShuttingDown => Reason::ShuttingDown.into(),
            StockError::Abandoned => Self::with_applied(Reason::RedisUnavailable, Applied::Maybe),
            StockError::Refused(_) => Self {
                cause: Some(Arc::new(error)),
                ..Self::with_applied(Reason::RedisUnavailable, Applied::No)
            },
            StockError::Redis(error) => error.into(),
        }
    }
}

impl From<AckError> for ApiError {
    fn from(error: AckError) -> Self {
        let reason = match error {
            AckError::Unavailable(ack) => {
                return Self::with(Reason::AckUnavailable, [("ack", ack.as_str().to_owned())]);
            }
            // It does not state `applied`: Envoy would repeat the call, which took a unit and whose request id is free again.
            AckError::Lost(id) => return Self::reservation_lost(id),
            AckError::Voided => return Reason::ReservationVoided.into(),
            AckError::Overloaded => Reason::Overloaded,
            AckError::ShuttingDown => Reason::ShuttingDown,
        };
        let text = "the unit is taken and the order waits to be stored; the call ended before the requested ack: repeat it \
                    with the same request id";
        Self { text: text.into(), ..Self::with_applied(reason, Applied::Maybe) }
    }
}

impl From<RedisCallError> for ApiError {
    fn from(error: RedisCallError) -> Self {
        match error {
            RedisCallError::Fenced(_) => Reason::Recovering.into(),
            RedisCallError::Unavailable { applied, .. } => {
                Self::with_applied(Reason::RedisUnavailable, applied)
            }
            RedisCallError::Malformed(_) => Self {
                cause: Some(Arc::new(error)),
                ..Self::with_applied(Reason::Internal, Applied::Maybe)
            },
        }
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> Self {
        let (reason, applied) = match error {
            LedgerError::InvalidData(_) => (Reason::Internal, Some(Applied::Maybe)),
            LedgerError::Transient { .. } | LedgerError::Unlisted { .. } => {
                (Reason::LedgerUnavailable, Some(Applied::Maybe))
            }
            LedgerError::Misconfigured { .. }
            | LedgerError::Inconsistent { .. }
            | LedgerError::Rejected { .. } => (Reason::LedgerUnavailable, Some(Applied::No)),
            LedgerError::EpochChanged => (Reason::Recovering, None),
        };
        Self { applied, cause: Some(Arc::new(error)), ..reason.into() }
    }
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Ledger(error) => error.into(),
            ChangeError::NotAppliedYet(_) => Reason::NotAppliedYet.into(),
        }
    }
}

impl From<DeadLetterError> for ApiError {
    fn from(error: DeadLetterError) -> Self {
        match error {
            DeadLetterError::Ledger(error) => error.into(),
            DeadLetterError::Redis(error) => error.into(),
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
            [] => Reason::UnreadableMessage.into(),
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
            let field = error.fields.first().map(|(field, _)| field.as_str());
            field.unwrap_or(error.reason.as_str()).to_owned()
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
