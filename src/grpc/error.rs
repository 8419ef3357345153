//! Every way a call can fail.

use std::{borrow::Cow, error::Error, num::TryFromIntError, sync::Arc, time::Duration};

use tonic::Code;

use super::reason::{AppliedRule, Reason, Retry};
use crate::{
    domain::{Outcome, Receipt, ReservationId, UNITS_MAX},
    redis::Applied,
};

/// The delay of `RetryInfo` where the time until a call can succeed is not known.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why a call fails: the reason, for programs, and what is known of this call.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) reason: Reason,
    /// The message for people; `{name}` stands for a value.
    pub(super) text: Cow<'static, str>,
    /// The values that the message mentions, by their names in the metadata.
    pub(super) values: Vec<(&'static str, String)>,
    /// Fields that are wrong, each with its problem.
    pub(super) fields: Vec<(String, String)>,
    /// How long to wait before the call is repeated, if that is known.
    pub(super) delay: Option<Duration>,
    /// Whether the call may have taken effect, if the reason alone does not state it.
    pub(super) applied: Option<Applied>,
    /// What failed, for the log.
    pub(super) cause: Option<Arc<dyn Error + Send + Sync>>,
}

impl From<Reason> for ApiError {
    fn from(reason: Reason) -> Self {
        let (values, fields) = (Vec::new(), Vec::new());
        let text = reason.spec().text.into();
        Self { reason, text, values, fields, delay: None, applied: None, cause: None }
    }
}

impl ApiError {
    pub(super) fn bad_fields(fields: Vec<(String, String)>) -> Self {
        let problems = fields.iter().map(|(field, problem)| format!("{field} {problem}"));
        let text = problems.collect::<Vec<_>>().join("; ").into();
        Self { text, fields, ..Reason::BadField.into() }
    }

    pub(super) fn bad_field(field: &str, error: impl ToString) -> Self {
        Self::bad_fields(vec![(field.to_owned(), error.to_string())])
    }

    /// An error whose message mentions these values.
    pub(super) fn with<const N: usize>(
        reason: Reason,
        values: [(&'static str, String); N],
    ) -> Self {
        Self { values: values.into(), ..reason.into() }
    }

    /// A call of an `address`, a `principal` or a `user` that calls too often.
    pub(super) fn rate_limited(limited: &str, wait: Duration) -> Self {
        let error = Self::with(Reason::RateLimited, [("limited", limited.to_owned())]);
        Self { delay: Some(wait), ..error }
    }

    /// The reservation of this call, or of an earlier one with the same request id, was lost.
    pub(super) fn reservation_lost(id: ReservationId) -> Self {
        let text =
            "reservation {reservation_id} was lost with a store: buy again, with a new request id";
        let error = Self::with(Reason::LostOrUnknown, [("reservation_id", id.to_string())]);
        Self { text: text.into(), ..error }
    }

    /// The error for a number that is out of its range although its source limits it.
    pub(super) fn bug(error: TryFromIntError) -> Self {
        Self {
            cause: Some(Arc::new(error)),
            ..Self::with_applied(Reason::Internal, Applied::Maybe)
        }
    }

    /// An error that states whether the call may have taken effect.
    pub(super) fn with_applied(reason: Reason, applied: Applied) -> Self {
        Self { applied: Some(applied), ..reason.into() }
    }

    /// This error, after a part of the call was done: what, with its count.
    pub(super) fn after(mut self, done: &[(&'static str, u64)]) -> Self {
        let counts: Vec<_> = done.iter().map(|(what, count)| format!("{count} {what}")).collect();
        self.text = format!("{}; before that: {}", self.text, counts.join(", ")).into();
        self.values.extend(done.iter().map(|(what, count)| (*what, count.to_string())));
        Self { applied: Some(Applied::Maybe), ..self }
    }

    /// Whether nothing is known of this call but the reason.
    pub(super) fn is_bare(&self) -> bool {
        self.values.is_empty()
            && self.fields.is_empty()
            && (self.delay, self.applied) == (None, None)
            && self.cause.is_none()
            && self.text == self.reason.spec().text
    }

    /// Whether a limit or the requested `ack` refused the call before anything was decided.
    pub(super) fn is_shed(&self) -> bool {
        let shed = [Reason::RateLimited, Reason::Overloaded, Reason::AckUnavailable];
        shed.contains(&self.reason) && self.applied != Some(Applied::Maybe)
    }

    /// The values that the message mentions, by their names in the metadata.
    pub(super) fn metadata(&self) -> Vec<(&'static str, String)> {
        let delay = self.retry_delay().map(|delay| ("retry_delay", seconds(delay)));
        self.values.iter().cloned().chain(delay).collect()
    }

    /// The message for people, with these values.
    pub(super) fn message(&self, metadata: &[(&'static str, String)]) -> String {
        metadata.iter().fold(self.text.to_string(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), value)
        })
    }

    /// How long to wait before the call is repeated, if that may help.
    pub(super) fn retry_delay(&self) -> Option<Duration> {
        let may_help = self.reason.spec().retry == Retry::AfterDelay;
        may_help.then_some(self.delay.unwrap_or(RETRY_DELAY))
    }

    /// Whether the call may have taken effect, where the reason alone does not state it.
    pub(super) fn applied(&self) -> Option<Applied> {
        let spec = self.reason.spec();
        self.applied.or(match spec.applied {
            AppliedRule::Maybe => Some(Applied::Maybe),
            // Envoy repeats the calls that state `no`. That does not help while there are too many, or while the keys of
            // JWTs are not read.
            AppliedRule::No | AppliedRule::PerError => {
                let may_help = self.reason != Reason::AuthenticationUnavailable;
                (spec.code == Code::Unavailable && may_help).then_some(Applied::No)
            }
        })
    }

    /// `Ok`: the accepted reservation of an outcome, and whether it is a duplicate. `Err`: the error for any other
    /// outcome.
    pub(super) fn accepted_or_refused(outcome: Outcome) -> Result<(Receipt, bool), Self> {
        Err(match outcome {
            Outcome::Accepted(receipt) => return Ok((receipt, false)),
            Outcome::Duplicate(receipt) => return Ok((receipt, true)),
            Outcome::LostOrUnknown(id) => {
                Self { applied: Some(Applied::No), ..Self::reservation_lost(id) }
            }
            Outcome::SoldOut => Reason::SoldOut.into(),
            Outcome::LimitReached { limit } => {
                Self::with(Reason::LimitReached, [("limit", limit.to_string())])
            }
            Outcome::SaleNotOpen { opens_at_ms } => {
                Self::with(Reason::SaleNotOpen, [("opens_at", time(opens_at_ms))])
            }
            Outcome::SaleClosed { closes_at_ms: None } => Reason::SaleClosed.into(),
            Outcome::SaleClosed { closes_at_ms: Some(at) } => {
                Self::with(Reason::SaleClosed, [("closes_at", time(at))])
            }
            Outcome::SaleStopped => Reason::SaleStopped.into(),
            Outcome::ProductNotFound => Reason::ProductNotFound.into(),
            Outcome::BacklogFull { retry_after } => {
                Self { delay: Some(retry_after), ..Reason::BacklogFull.into() }
            }
        })
    }

    /// The supply would pass the largest number of units.
    pub(super) fn too_many_units() -> Self {
        Self::with(Reason::TooManyUnits, [("limit", UNITS_MAX.to_string())])
    }

    /// A product of the request, by its index, was created with other units.
    pub(super) fn supply_differs(at: usize, units: i64) -> Self {
        let values = [("field", format!("products[{at}]")), ("units", units.to_string())];
        Self::with(Reason::SupplyDiffers, values)
    }
}

/// A duration as protobuf's JSON has it.
fn seconds(duration: Duration) -> String {
    let digits = format!("{}.{:09}", duration.as_secs(), duration.subsec_nanos());
    format!("{}s", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// A time in milliseconds since 1970 as protobuf's JSON has it.
fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |at| at.to_string())
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
