//! Every way a call can fail.

use std::time::Duration;

use tonic::Code;

use super::reason::{Effect, Reason, Repeat};
use crate::{
    domain::{Ack, Outcome, ReservationId, UNITS_MAX},
    redis::Applied,
};

/// The delay of `RetryInfo` where the time until a call can succeed is not known.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The text of `RequestLost`, whose reason has another text for look-ups.
const REQUEST_LOST: &str = "this request id had reservation {reservation_id}, which was lost: use a new request id to buy again";

/// Why a call fails.
#[derive(Debug)]
pub enum ApiError {
    /// Fields that are wrong, each with its problem.
    BadFields(Vec<(String, String)>),
    /// No unit is left.
    SoldOut,
    /// The user has bought as many units as a user may buy.
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
    /// An operator stopped the sale.
    SaleStopped,
    /// No product has this id.
    ProductNotFound,
    /// No reservation has this id.
    ReservationNotFound,
    /// No reservation has this id now; it may have been accepted before a store lost data.
    LostOrUnknown,
    /// The request id was accepted before, and its reservation was lost.
    RequestLost(ReservationId),
    /// A product with this id was created with other units.
    OtherUnits {
        /// Its index in the request.
        at: usize,
        /// The units it was created with.
        units: i64,
    },
    /// The request id was used for something else.
    RequestReused,
    /// The supply would pass 2^53.
    TooManyUnits,
    /// Too many accepted orders wait to be stored.
    BacklogFull {
        /// The estimated time until orders are accepted again.
        wait: Duration,
    },
    /// Too many calls are under way.
    Overloaded,
    /// An address or a user calls too often.
    RateLimited {
        /// `address` or `user`.
        limited: &'static str,
        /// The time until the next call is accepted.
        wait: Duration,
    },
    /// The message is larger than the limit.
    MessageTooLarge,
    /// The bytes of the call are not a message of its type.
    UnreadableMessage,
    /// The service is shutting down.
    Stopping,
    /// The deadline passed. Commands that were sent before are completed.
    DeadlineExceeded,
    /// Redis is unavailable or refuses.
    RedisUnavailable(Applied),
    /// A store sent a reply that this program does not understand: a bug, or data of another program.
    Internal(Applied),
    /// The partition is fenced.
    Recovering,
    /// Postgres is unavailable or refuses.
    LedgerUnavailable(Applied),
    /// The stores cannot give the requested `ack` now.
    AckUnavailable(Ack),
    /// The order could not be stored.
    ReservationVoided,
    /// Recorded in the ledger; Redis has not been updated yet.
    NotInForce,
    /// The call failed after a part of it was done.
    PartlyDone {
        /// Why it failed.
        error: Box<ApiError>,
        /// What was done before, with its count.
        done: Vec<(&'static str, u64)>,
    },
}

impl ApiError {
    /// One bad field.
    pub fn bad_field(field: &str, error: impl ToString) -> Self {
        Self::BadFields(vec![(field.to_owned(), error.to_string())])
    }

    /// The error for a number that is out of its range although its source limits it.
    pub(super) fn bug(error: std::num::TryFromIntError) -> Self {
        tracing::error!(%error, "internal error: a number is out of its range");
        Self::Internal(Applied::Maybe)
    }

    /// The reason, for programs.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::BadFields(_) => Reason::BadField,
            Self::SoldOut => Reason::SoldOut,
            Self::LimitReached { .. } => Reason::LimitReached,
            Self::SaleNotOpen { .. } => Reason::SaleNotOpen,
            Self::SaleClosed => Reason::SaleClosed,
            Self::SaleStopped => Reason::SaleStopped,
            Self::ProductNotFound => Reason::ProductNotFound,
            Self::ReservationNotFound => Reason::ReservationNotFound,
            Self::LostOrUnknown | Self::RequestLost(_) => Reason::LostOrUnknown,
            Self::OtherUnits { .. } => Reason::OtherUnits,
            Self::RequestReused => Reason::RequestIdReused,
            Self::TooManyUnits => Reason::TooManyUnits,
            Self::BacklogFull { .. } => Reason::BacklogFull,
            Self::Overloaded => Reason::Overloaded,
            Self::RateLimited { .. } => Reason::RateLimited,
            Self::MessageTooLarge => Reason::MessageTooLarge,
            Self::UnreadableMessage => Reason::UnreadableMessage,
            Self::Stopping => Reason::Stopping,
            Self::DeadlineExceeded => Reason::DeadlineExceeded,
            Self::RedisUnavailable(_) => Reason::RedisUnavailable,
            Self::Internal(_) => Reason::Internal,
            Self::Recovering => Reason::Recovering,
            Self::LedgerUnavailable(_) => Reason::LedgerUnavailable,
            Self::AckUnavailable(_) => Reason::AckUnavailable,
            Self::ReservationVoided => Reason::ReservationVoided,
            Self::NotInForce => Reason::NotInForce,
            Self::PartlyDone { error, .. } => error.reason(),
        }
    }

    /// Whether a limit or the requested `ack` refused the call before anything was decided.
    pub(super) fn is_shed(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Overloaded | Self::AckUnavailable(_))
    }

    /// The values that the message mentions, by their names in the metadata.
    pub(super) fn metadata(&self) -> Vec<(&'static str, String)> {
        let mut metadata = match self {
            Self::LimitReached { limit } => vec![("limit", limit.to_string())],
            Self::SaleNotOpen { opens_at_ms } => {
                let opens_at = jiff::Timestamp::from_millisecond(*opens_at_ms);
                let opens_at =
                    opens_at.map_or_else(|_| opens_at_ms.to_string(), |at| at.to_string());
                vec![("opens_at", opens_at)]
            }
            Self::OtherUnits { at, units } => {
                vec![("field", format!("products[{at}]")), ("units", units.to_string())]
            }
            Self::TooManyUnits => vec![("limit", UNITS_MAX.to_string())],
            Self::RequestLost(id) => vec![("reservation_id", id.to_string())],
            Self::RateLimited { limited, .. } => vec![("limited", (*limited).to_owned())],
            Self::AckUnavailable(ack) => vec![("ack", ack.as_str().to_owned())],
            Self::PartlyDone { error, done } => {
                let done = done.iter().map(|(what, count)| (*what, count.to_string()));
                error.metadata().into_iter().chain(done).collect()
            }
            Self::BadFields(_)
            | Self::SoldOut
            | Self::SaleClosed
            | Self::SaleStopped
            | Self::ProductNotFound
            | Self::ReservationNotFound
            | Self::LostOrUnknown
            | Self::RequestReused
            | Self::BacklogFull { .. }
            | Self::Overloaded
            | Self::MessageTooLarge
            | Self::UnreadableMessage
            | Self::Stopping
            | Self::DeadlineExceeded
            | Self::RedisUnavailable(_)
            | Self::Internal(_)
            | Self::Recovering
            | Self::LedgerUnavailable(_)
            | Self::ReservationVoided
            | Self::NotInForce => Vec::new(),
        };
        if let Some(delay) = self.retry_delay() {
            metadata.push(("retry_delay", seconds(delay)));
        }
        metadata
    }

    /// The message for people: the text of the reason with these values.
    pub(super) fn message(&self, metadata: &[(&'static str, String)]) -> String {
        if let Self::BadFields(fields) = self {
            let problems = fields.iter().map(|(field, problem)| format!("{field} {problem}"));
            return problems.collect::<Vec<_>>().join("; ");
        }
        if let Self::PartlyDone { error, done } = self {
            let done = done.iter().map(|(what, count)| format!("{count} {what}"));
            let done = done.collect::<Vec<_>>().join(", ");
            return format!("{}; before that: {done}", error.message(metadata));
        }
        let lost = matches!(self, Self::RequestLost(_));
        let text = if lost { REQUEST_LOST } else { self.reason().rule().text };
        let with_value = |text: String, (name, value): &(&str, String)| {
            text.replace(&format!("{{{name}}}"), value)
        };
        metadata.iter().fold(text.to_owned(), with_value)
    }

    /// How long to wait before the call is repeated, if that may help.
    pub(super) fn retry_delay(&self) -> Option<Duration> {
        if let Self::RateLimited { wait, .. } | Self::BacklogFull { wait } = self {
            return Some(*wait);
        }
        (self.reason().rule().repeat == Repeat::AfterDelay).then_some(RETRY_DELAY)
    }

    /// Whether the call may have taken effect, where that is not plain from the reason.
    pub(super) fn applied(&self) -> Option<Applied> {
        let rule = self.reason().rule();
        match (self, rule.effect) {
            (
                Self::RedisUnavailable(applied)
                | Self::LedgerUnavailable(applied)
                | Self::Internal(applied),
                _,
            ) => Some(*applied),
            (Self::PartlyDone { .. }, _) | (_, Effect::Maybe) => Some(Applied::Maybe),
            (Self::RequestLost(_), _) => Some(Applied::No),
            (_, Effect::No | Effect::Stated) => {
                (rule.code == Code::Unavailable).then_some(Applied::No)
            }
        }
    }
}

/// A duration as protobuf's JSON has it.
fn seconds(duration: Duration) -> String {
    let digits = format!("{}.{:09}", duration.as_secs(), duration.subsec_nanos());
    format!("{}s", digits.trim_end_matches('0').trim_end_matches('.'))
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
    fn durations_are_written_as_in_json() {
        for (millis, text) in [(5000, "5s"), (1500, "1.5s"), (1, "0.001s"), (0, "0s")] {
            assert_eq!(seconds(Duration::from_millis(millis)), text);
        }
    }
}
