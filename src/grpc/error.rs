//! Every way a call can fail.

use std::time::Duration;

use tonic::Code;

use super::reason::{Effect, Reason, Repeat};
use crate::{
    domain::{Ack, MAX_UNITS, Outcome, ReservationId},
    redis::Applied,
};

/// The delay of `RetryInfo` where the time until a call can succeed is not known.
const RETRY_DELAY: Duration = Duration::from_secs(1);

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
            Self::Halfway { error, .. } => error.reason(),
        }
    }

    /// Whether a limit or the requested `ack` refused the call before anything was decided.
    pub(super) fn is_shed(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Overloaded | Self::AckUnavailable(_))
    }

    /// The message for people, and each value that it mentions by its name in the metadata.
    pub(super) fn message(&self) -> (String, Vec<(&'static str, String)>) {
        let text = match self {
            Self::BadFields(fields) => {
                let problems = fields.iter().map(|(field, problem)| format!("{field} {problem}"));
                return (problems.collect::<Vec<_>>().join("; "), Vec::new());
            }
            Self::LimitReached { limit } => {
                let text = format!("a user may buy {limit} of this product");
                return (text, vec![("limit", limit.to_string())]);
            }
            Self::SaleNotOpen { opens_at_ms } => {
                let opens_at = jiff::Timestamp::from_millisecond(*opens_at_ms);
                let opens_at =
                    opens_at.map_or_else(|_| opens_at_ms.to_string(), |at| at.to_string());
                return (format!("the sale begins at {opens_at}"), vec![("opens_at", opens_at)]);
            }
            Self::OtherUnits { at, units } => {
                let field = format!("products[{at}]");
                let text = format!("{field} was created with {units} units: use Restock for more");
                return (text, vec![("field", field), ("units", units.to_string())]);
            }
            Self::TooManyUnits => {
                let text = format!("the supply would exceed {MAX_UNITS} units");
                return (text, vec![("limit", MAX_UNITS.to_string())]);
            }
            Self::RequestLost(id) => {
                let text = format!(
                    "this request id had reservation {id}, which was lost: use a new request id to buy again"
                );
                return (text, vec![("reservation_id", id.to_string())]);
            }
            Self::RateLimited { whose, wait } => {
                let text = format!("this {whose} calls too often: retry in {}", seconds(*wait));
                return (text, vec![("limited", (*whose).to_owned())]);
            }
            Self::BacklogFull { wait } => {
                let wait = seconds(*wait);
                let text = format!("too many accepted orders wait to be stored: retry in {wait}");
                return (text, Vec::new());
            }
            Self::AckUnavailable(ack) => {
                let ack = ack.as_str();
                let text = format!("the stores cannot give ack = {ack} now");
                return (text, vec![("ack", ack.to_owned())]);
            }
            Self::Halfway { error, done } => {
                let (text, mut metadata) = error.message();
                metadata.extend(done.iter().map(|(what, count)| (*what, count.to_string())));
                let done = done.iter().map(|(what, count)| format!("{count} {what}"));
                let done = done.collect::<Vec<_>>().join(", ");
                return (format!("{text}; before that: {done}"), metadata);
            }
            Self::SoldOut => "the product is sold out",
            Self::SaleClosed => "the sale has ended",
            Self::SaleStopped => "the sale is stopped",
            Self::ProductNotFound => "no such product",
            Self::ReservationNotFound => "no such reservation",
            Self::LostOrUnknown => {
                "no such reservation; it may have been accepted before a store lost data"
            }
            Self::RequestReused => "this request id was used for another product or other units",
            Self::Overloaded => "too many calls are under way",
            Self::MessageTooLarge => "the message is too large",
            Self::UnreadableMessage => "the message cannot be read as a message of this call",
            Self::Stopping => "the service is shutting down",
            Self::DeadlineExceeded => {
                "the deadline passed before the outcome was known: repeat the call with the same request id"
            }
            Self::RedisUnavailable(_) => "Redis is unavailable",
            Self::Internal(_) => "internal error: a store gave an unexpected answer; see the log",
            Self::Recovering => "the product's partition is being rebuilt",
            Self::LedgerUnavailable(_) => "Postgres is unavailable",
            Self::ReservationVoided => "the order could not be stored; its unit goes back",
            Self::NotInForce => "recorded; it takes effect as soon as Redis can be reached",
        };
        (text.to_owned(), Vec::new())
    }

    /// How long to wait before the call is repeated, if that may help.
    pub(super) fn retry_delay(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { wait, .. } | Self::BacklogFull { wait } => Some(*wait),
            error => (error.reason().rule().repeat == Repeat::AfterDelay).then_some(RETRY_DELAY),
        }
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
            (Self::Halfway { .. }, _) | (_, Effect::Maybe) => Some(Applied::Maybe),
            (Self::RequestLost(_), _) => Some(Applied::No),
            (_, Effect::No | Effect::Stated) => {
                (rule.code == Code::Unavailable).then_some(Applied::No)
            }
        }
    }
}

/// A duration as protobuf's JSON has it.
pub(super) fn seconds(duration: Duration) -> String {
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
