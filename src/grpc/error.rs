//! Every way a call can fail, and its status, in one place.

use std::{collections::HashMap, time::Duration};

use tonic::{
    Code, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    domain::{Ack, Outcome, ReservationId},
    fence::Applied,
};

/// Tells the sidecar an HTTP status that no gRPC status maps to; it allows 202 and 409.
pub(super) const HTTP_STATUS: &str = "x-yoink-http-status";

/// The domain of every reason.
const DOMAIN: &str = "yoink";

/// A status as the field spells it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Whether a status tells a failure of any kind.
pub(super) fn is_error(status: &Status) -> bool {
    status.code() != Code::Ok
}

/// The error behind a status that tonic gives by itself, without details: ours have a reason.
pub(super) fn said_by_tonic(status: &Status) -> Option<ApiError> {
    if !status.details().is_empty() {
        return None;
    }
    // A message over the limit, and one that is over it once it is decompressed.
    let too_large = [Code::OutOfRange, Code::ResourceExhausted].contains(&status.code());
    // A message that is missing, not framed, not gzip or not of its type.
    let unreadable = status.code() == Code::Internal;
    let unreadable = unreadable.then(|| ApiError::unreadable(status.message()));
    too_large.then_some(ApiError::MessageTooLarge).or(unreadable)
}

/// Why a call fails.
#[derive(Debug)]
pub enum ApiError {
    /// These fields are wrong: name and what is wrong with it.
    BadFields(Vec<(String, String)>),
    /// No unit is left.
    SoldOut,
    /// The user has bought as many as a user may.
    LimitReached {
        /// Units a user may buy.
        limit: u32,
    },
    /// The sale has not begun.
    SaleNotOpen {
        /// When it begins, in milliseconds since 1970.
        opens_at_ms: i64,
    },
    /// The sale has ended.
    SaleClosed,
    /// An administrator stopped the sale.
    SaleStopped,
    /// No such product.
    ProductNotFound,
    /// No such reservation.
    ReservationNotFound,
    /// It may have been accepted before a loss.
    LostOrUnknown,
    /// The request id was accepted before, and its reservation was lost.
    RequestLost(ReservationId),
    /// Another product of this id was created with other units.
    OtherUnits {
        /// Its place in the request.
        at: usize,
        /// The units it was created with.
        units: i64,
    },
    /// The request id had been used for something else.
    RequestReused,
    /// The supply would pass 2^53.
    TooManyUnits,
    /// Too many accepted orders wait to be stored.
    BacklogFull {
        /// Until there is room again, as the stream drains now.
        wait: Duration,
    },
    /// Too many requests wait.
    Overloaded,
    /// An address or a user calls too often.
    RateLimited {
        /// `address` or `user`.
        whose: &'static str,
        /// How long until the next call is taken.
        wait: Duration,
    },
    /// The message is longer than a buyer's may be.
    MessageTooLarge,
    /// The bytes of the call are no message of its type.
    UnreadableMessage,
    /// The service is shutting down.
    Stopping,
    /// The caller's deadline passed; what was sent by then is finished behind it.
    DeadlineExceeded,
    /// Redis is away or refuses.
    RedisUnavailable(Applied),
    /// A store gave an answer that this program does not understand: a bug, or somebody else's data.
    Internal(Applied),
    /// The partition is fenced.
    Recovering,
    /// Postgres is away or refuses.
    LedgerUnavailable(Applied),
    /// The stores cannot give the answer that was asked for.
    AckUnavailable(Ack),
    /// The order could not be stored.
    ReservationVoided,
    /// Recorded in the ledger, and told to Redis as soon as that can be.
    NotInForce,
    /// It failed after a part of it was done.
    Halfway {
        /// How.
        error: Box<ApiError>,
        /// What was done before, and how often.
        done: Vec<(&'static str, u64)>,
    },
}

impl ApiError {
    /// One bad field.
    pub fn bad_field(field: &str, error: impl ToString) -> Self {
        Self::BadFields(vec![(field.to_owned(), error.to_string())])
    }

    /// What programs go by.
    pub(super) fn reason(&self) -> &'static str {
        self.code().1
    }

    /// Whether a call was refused before anything was decided, for lack of room or of what it asks for.
    pub(super) fn is_shed(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Overloaded | Self::AckUnavailable(_))
    }

    /// The status code, and the reason.
    fn code(&self) -> (Code, &'static str) {
        match self {
            Self::BadFields(_) => (Code::InvalidArgument, "BAD_FIELD"),
            Self::SoldOut => (Code::FailedPrecondition, "SOLD_OUT"),
            Self::LimitReached { .. } => (Code::FailedPrecondition, "LIMIT_REACHED"),
            Self::SaleNotOpen { .. } => (Code::FailedPrecondition, "SALE_NOT_OPEN"),
            Self::SaleClosed => (Code::FailedPrecondition, "SALE_CLOSED"),
            Self::SaleStopped => (Code::FailedPrecondition, "SALE_STOPPED"),
            Self::ProductNotFound => (Code::NotFound, "PRODUCT_NOT_FOUND"),
            Self::ReservationNotFound => (Code::NotFound, "RESERVATION_NOT_FOUND"),
            Self::LostOrUnknown | Self::RequestLost(_) => (Code::NotFound, "LOST_OR_UNKNOWN"),
            Self::OtherUnits { .. } => (Code::AlreadyExists, "OTHER_UNITS"),
            Self::RequestReused => (Code::AlreadyExists, "REQUEST_ID_REUSED"),
            Self::TooManyUnits => (Code::FailedPrecondition, "TOO_MANY_UNITS"),
            Self::BacklogFull { .. } => (Code::ResourceExhausted, "BACKLOG_FULL"),
            Self::Overloaded => (Code::ResourceExhausted, "OVERLOADED"),
            Self::RateLimited { .. } => (Code::ResourceExhausted, "RATE_LIMITED"),
            Self::MessageTooLarge => (Code::OutOfRange, "MESSAGE_TOO_LARGE"),
            Self::UnreadableMessage => (Code::InvalidArgument, "UNREADABLE_MESSAGE"),
            Self::Stopping => (Code::Unavailable, "STOPPING"),
            Self::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            Self::RedisUnavailable(_) => (Code::Unavailable, "REDIS_UNAVAILABLE"),
            Self::Internal(_) => (Code::Internal, "INTERNAL"),
            Self::Recovering => (Code::Unavailable, "RECOVERING"),
            Self::LedgerUnavailable(_) => (Code::Unavailable, "LEDGER_UNAVAILABLE"),
            Self::AckUnavailable(_) => (Code::Unavailable, "ACK_UNAVAILABLE"),
            Self::ReservationVoided => (Code::FailedPrecondition, "RESERVATION_VOIDED"),
            Self::NotInForce => (Code::Unavailable, "NOT_IN_FORCE"),
            Self::Halfway { error, .. } => error.code(),
        }
    }

    /// For people.
    fn message(&self) -> String {
        let text = match self {
            Self::BadFields(fields) => {
                let told = fields.iter().map(|(field, problem)| format!("{field} {problem}"));
                return told.collect::<Vec<_>>().join("; ");
            }
            Self::LimitReached { limit } => {
                return format!("a user may buy {limit} of this product");
            }
            Self::OtherUnits { at, units } => {
                return format!(
                    "products[{at}] was created with {units} units: use Restock for more"
                );
            }
            Self::Halfway { error, done } => {
                let done = done.iter().map(|(what, count)| format!("{count} {what}"));
                let done = done.collect::<Vec<_>>().join(", ");
                return format!("{}; before that: {done}", error.message());
            }
            Self::SoldOut => "sold out",
            Self::SaleNotOpen { .. } => "the sale has not begun",
            Self::SaleClosed => "the sale has ended",
            Self::SaleStopped => "the sale is stopped",
            Self::ProductNotFound => "no such product",
            Self::ReservationNotFound => "no such reservation",
            Self::LostOrUnknown => {
                "no such reservation; it may have been accepted before a store lost data"
            }
            Self::RequestLost(id) => {
                return format!(
                    "this request id had reservation {id}, which was lost: use a new request id to buy again"
                );
            }
            Self::RequestReused => "this request id was used for another product or other units",
            Self::TooManyUnits => "the supply would pass 2^53 units",
            Self::BacklogFull { .. } => "too many accepted orders wait to be stored",
            Self::Overloaded => "too many requests wait",
            Self::RateLimited { whose, .. } => return format!("this {whose} calls too often"),
            Self::MessageTooLarge => "the message is too large",
            Self::UnreadableMessage => "the message cannot be read as a message of this call",
            Self::Stopping => "the service is shutting down",
            Self::DeadlineExceeded => "the deadline passed; ask again with the same request id",
            Self::RedisUnavailable(_) => "Redis is unavailable",
            Self::Internal(_) => "internal error: a store gave an unexpected answer; see the log",
            Self::Recovering => "this product's partition recovers",
            Self::LedgerUnavailable(_) => "Postgres is unavailable",
            Self::AckUnavailable(ack) => {
                return format!("ack = {} cannot be given now", ack.as_str());
            }
            Self::ReservationVoided => "the order could not be stored; its unit goes back",
            Self::NotInForce => "recorded; it comes into force as soon as Redis can be told",
        };
        text.to_owned()
    }

    /// When it is worth asking again; a decision stands.
    fn retry_after(&self) -> Option<Duration> {
        if let Self::RateLimited { wait, .. } | Self::BacklogFull { wait } = self {
            return Some(*wait);
        }
        let waiting_helps = [Code::Unavailable, Code::ResourceExhausted].contains(&self.code().0);
        waiting_helps.then(|| Duration::from_secs(1))
    }

    /// Whether something may have happened, where the caller must wonder.
    fn applied(&self) -> Option<Applied> {
        match self {
            Self::RedisUnavailable(applied)
            | Self::LedgerUnavailable(applied)
            | Self::Internal(applied) => Some(*applied),
            Self::NotInForce | Self::DeadlineExceeded | Self::Halfway { .. } => {
                Some(Applied::Maybe)
            }
            Self::Recovering | Self::Stopping | Self::AckUnavailable(_) | Self::RequestLost(_) => {
                Some(Applied::No)
            }
            Self::BadFields(_)
            | Self::SoldOut
            | Self::LimitReached { .. }
            | Self::SaleNotOpen { .. }
            | Self::SaleClosed
            | Self::SaleStopped
            | Self::ProductNotFound
            | Self::ReservationNotFound
            | Self::LostOrUnknown
            | Self::OtherUnits { .. }
            | Self::RequestReused
            | Self::TooManyUnits
            | Self::BacklogFull { .. }
            | Self::RateLimited { .. }
            | Self::MessageTooLarge
            | Self::UnreadableMessage
            | Self::ReservationVoided
            | Self::Overloaded => None,
        }
    }
}

/// A number as the value of a header.
fn number(number: u128) -> MetadataValue<Ascii> {
    u64::try_from(number).unwrap_or(u64::MAX).into()
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let ((code, reason), message) = (error.code(), error.message());
        let mut metadata = HashMap::new();
        if let Some(applied) = error.applied() {
            metadata.insert("applied".to_owned(), applied.as_str().to_owned());
        }
        if let ApiError::RateLimited { whose, .. } = &error {
            metadata.insert("limited".to_owned(), (*whose).to_owned());
        }
        if let ApiError::Halfway { done, .. } = &error {
            metadata.extend(done.iter().map(|(what, count)| ((*what).into(), count.to_string())));
        }
        if let ApiError::LimitReached { limit } = &error {
            metadata.insert("limit".to_owned(), limit.to_string());
        }
        if let ApiError::SaleNotOpen { opens_at_ms } = &error
            && let Ok(opens_at) = jiff::Timestamp::from_millisecond(*opens_at_ms)
        {
            metadata.insert("opens_at".to_owned(), opens_at.to_string());
        }
        let mut headers = MetadataMap::new();
        if code == Code::FailedPrecondition {
            headers.insert(HTTP_STATUS, MetadataValue::from_static("409"));
        }
        if let Some(applied) = error.applied() {
            headers.insert("x-yoink-applied", MetadataValue::from_static(applied.as_str()));
        }
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, DOMAIN, metadata);
        if let Some(retry) = error.retry_after() {
            details.set_retry_info(Some(retry));
            let seconds = retry.as_nanos().div_ceil(1_000_000_000);
            headers.insert("retry-after", number(seconds));
            headers.insert("grpc-retry-pushback-ms", number(retry.as_nanos().div_ceil(1_000_000)));
        }
        if let ApiError::BadFields(fields) = error {
            for (field, problem) in fields {
                details.add_bad_request_violation(field, problem);
            }
        }
        Status::with_error_details_and_metadata(code, message, details, headers)
    }
}

impl ApiError {
    /// The refusal in an outcome; `Ok` holds an accepted one.
    pub(super) fn refusal(outcome: Outcome) -> Result<(crate::domain::Receipt, bool), Self> {
        match outcome {
            Outcome::Accepted(receipt) => Ok((receipt, false)),
            Outcome::Duplicate(receipt) => Ok((receipt, true)),
            Outcome::Lost(id) => Err(Self::RequestLost(id)),
            Outcome::SoldOut => Err(Self::SoldOut),
            Outcome::LimitReached { limit } => Err(Self::LimitReached { limit }),
            Outcome::NotOpen { opens_at_ms } => Err(Self::SaleNotOpen { opens_at_ms }),
            Outcome::Closed => Err(Self::SaleClosed),
            Outcome::Stopped => Err(Self::SaleStopped),
            Outcome::UnknownProduct => Err(Self::ProductNotFound),
            Outcome::BacklogFull { retry_after } => Err(Self::BacklogFull { wait: retry_after }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_its_reason_its_fields_and_when_to_come_back() {
        let status = Status::from(ApiError::LimitReached { limit: 2 });
        assert_eq!(status.code(), Code::FailedPrecondition);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.domain.as_str(), info.reason.as_str()), ("yoink", "LIMIT_REACHED"));
        assert_eq!(info.metadata["limit"], "2");

        let status = Status::from(ApiError::bad_field("user_id", "must not be empty"));
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "user_id");

        let status = Status::from(ApiError::RedisUnavailable(Applied::Maybe));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "maybe");
        assert!(status.get_details_retry_info().is_some());
    }
}
