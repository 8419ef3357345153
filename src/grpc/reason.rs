//! The reasons of errors, each declared in one line; `docs/errors.md` describes them to clients.

use tonic::Code;

/// What an error with a reason states about whether its call took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AppliedRule {
    /// The call changed nothing.
    No,
    /// It is unknown whether the call took effect, or a part of it was done.
    Maybe,
    /// Each error of this reason states it: `applied` in the metadata is `no` (also if it is absent) or `maybe`.
    PerError,
}

/// Whether the client should repeat a call that failed for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// The same call fails again.
    No,
    /// With the same request id, after the delay of `RetryInfo`.
    AfterDelay,
    /// With the same request id.
    AtOnce,
    /// With a new request id: this one belongs to something else.
    WithNewId,
}

/// What is declared for a reason.
pub(super) struct ReasonSpec {
    pub(super) code: Code,
    pub(super) http_status: u16,
    pub(super) applied: AppliedRule,
    pub(super) retry: Retry,
    /// The message; `{name}` stands for a value of the metadata.
    pub(super) text: &'static str,
}

macro_rules! reasons {
    ($($reason:ident $name:literal: $code:ident $http:literal $applied:ident $retry:ident $text:literal;)*) => {
        /// Why a call failed, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Reason {
            $(#[doc = $name] $reason,)*
        }

        impl Reason {
            /// Every reason, in the order of its number.
            pub(super) const ALL: &[Self] = &[$(Self::$reason),*];

            /// As it is written in `ErrorInfo`.
            pub(super) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }

            pub(super) fn spec(self) -> ReasonSpec {
                match self {
                    $(Self::$reason => ReasonSpec {
                        code: Code::$code,
                        http_status: $http,
                        applied: AppliedRule::$applied,
                        retry: Retry::$retry,
                        text: $text,
                    },)*
                }
            }
        }
    };
}

reasons! {
    BadField "BAD_FIELD": InvalidArgument 400 No No
        "a field is wrong";
    UnreadableMessage "UNREADABLE_MESSAGE": InvalidArgument 400 No No
        "the message cannot be read as a message of this call";
    MessageTooLarge "MESSAGE_TOO_LARGE": OutOfRange 400 No No
        "the message is too large";
    CredentialsMissing "CREDENTIALS_MISSING": Unauthenticated 401 No No
        "the call has no credentials: send an API key or a JWT";
    CredentialsInvalid "CREDENTIALS_INVALID": Unauthenticated 401 No No
        "the credentials are not accepted";
    RoleNotAllowed "ROLE_NOT_ALLOWED": PermissionDenied 403 No No
        "the role {role} may not make this call";
    SoldOut "SOLD_OUT": FailedPrecondition 409 No No
        "the product is sold out";
    LimitReached "LIMIT_REACHED": FailedPrecondition 409 No No
        "the limit of this product is {limit} units per user, and this user has reached it";
    SaleNotOpen "SALE_NOT_OPEN": FailedPrecondition 409 No No
        "the sale begins at {opens_at}";
    SaleClosed "SALE_CLOSED": FailedPrecondition 409 No No
        "the sale has ended, or the product is no longer offered";
    SaleStopped "SALE_STOPPED": FailedPrecondition 409 No No
        "the sale is stopped";
    ReservationVoided "RESERVATION_VOIDED": FailedPrecondition 409 No No
        "the order could not be stored; its unit is given back";
    TooManyUnits "TOO_MANY_UNITS": FailedPrecondition 409 No No
        "the supply would exceed {limit} units";
    SupplyDiffers "SUPPLY_DIFFERS": AlreadyExists 409 No No
        "{field} was created with {units} units: use Restock for more";
    RequestIdReused "REQUEST_ID_REUSED": AlreadyExists 409 No WithNewId
        "this request id was used for another product or other units";
    ProductNotFound "PRODUCT_NOT_FOUND": NotFound 404 No No
        "no such product";
    ReservationNotFound "RESERVATION_NOT_FOUND": NotFound 404 No No
        "no such reservation";
    LostOrUnknown "LOST_OR_UNKNOWN": NotFound 404 No WithNewId
        "no such reservation; it may have been accepted before a store lost data";
    RateLimited "RATE_LIMITED": ResourceExhausted 429 No AfterDelay
        "this {limited} calls too often: retry in {retry_delay}";
    Overloaded "OVERLOADED": ResourceExhausted 429 PerError AfterDelay
        "too many calls are in progress";
    BacklogFull "BACKLOG_FULL": ResourceExhausted 429 No AfterDelay
        "too many accepted orders wait to be stored: retry in {retry_delay}";
    AuthenticationUnavailable "AUTHENTICATION_UNAVAILABLE": Unavailable 503 No AfterDelay
        "JWTs cannot be verified yet: repeat the call";
    AckUnavailable "ACK_UNAVAILABLE": Unavailable 503 No AfterDelay
        "the stores cannot give ack = {ack} now";
    Recovering "RECOVERING": Unavailable 503 No AfterDelay
        "the product's partition is fenced: nothing is sold from it until it is rebuilt, or until Redis can be used again";
    ShuttingDown "SHUTTING_DOWN": Unavailable 503 PerError AfterDelay
        "this process is shutting down: repeat the call";
    RedisUnavailable "REDIS_UNAVAILABLE": Unavailable 503 PerError AfterDelay
        "Redis did not answer or refused the request";
    LedgerUnavailable "LEDGER_UNAVAILABLE": Unavailable 503 PerError AfterDelay
        "Postgres did not answer or refused the request";
    NotAppliedYet "NOT_APPLIED_YET": Unavailable 503 Maybe AfterDelay
        "the change is recorded in Postgres but not applied to Redis yet; it is applied when the partition is open and \
         Redis answers";
    DeadlineExceeded "DEADLINE_EXCEEDED": DeadlineExceeded 504 Maybe AtOnce
        "the deadline passed before the outcome was known: repeat the call with the same request id";
    Internal "INTERNAL": Internal 500 PerError No
        "internal error: a store gave an unexpected answer; see the log";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::status::code_name;

    #[test]
    fn errors_md_lists_every_reason_as_declared() {
        // Read and not embedded: the image is built without the documents.
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md");
        let document = std::fs::read_to_string(document).unwrap();
        let rows = document.lines().filter(|line| line.starts_with("| `"));
        let rows: Vec<String> =
            rows.map(|row| row.splitn(8, " | ").take(6).collect::<Vec<_>>().join(" | ")).collect();
        let declared = Reason::ALL.iter().map(|reason| {
            let spec = reason.spec();
            let applied = match spec.applied {
                AppliedRule::No => "no",
                AppliedRule::Maybe => "maybe",
                AppliedRule::PerError => "`no` or `maybe`: see the metadata",
            };
            let (retry, request_id) = match spec.retry {
                Retry::No => ("no", "–"),
                Retry::AfterDelay => ("after the delay", "same"),
                Retry::AtOnce => ("at once", "same"),
                Retry::WithNewId => ("at once", "new"),
            };
            let (name, code) = (reason.as_str(), code_name(spec.code));
            let http = spec.http_status;
            format!("| `{name}` | {code} | {http} | {applied} | {retry} | {request_id}")
        });
        assert_eq!(rows, declared.collect::<Vec<_>>());
    }
}
