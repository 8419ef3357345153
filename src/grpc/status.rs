//! The status that a client gets for an error: code, details, and headers.

use std::{collections::HashMap, error::Error as _, sync::LazyLock};

use tonic::{
    Code, Status,
    metadata::{Ascii, MetadataMap, MetadataValue},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{error::ApiError, reason::Reason};

/// The header that names the HTTP status of a transcoded response, where the gRPC status does not determine it.
pub(super) const HTTP_STATUS: &str = "x-yoink-http-status";

/// The domain of every reason.
const DOMAIN: &str = "yoink";

/// The name of a status code, as gRPC spells it.
pub(crate) fn code_name(code: Code) -> &'static str {
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

/// Logs what failed below a call, if its error has that; a client gets no internal text. A status without details is
/// tonic's; its source is the client's fault, for example an upload that was aborted.
pub(super) fn log_cause(method: &str, status: &Status) {
    let Some(error) = status.source().filter(|_| !status.details().is_empty()) else { return };
    if status.code() == Code::Internal {
        tracing::error!(method, error, "a call failed");
    } else {
        tracing::warn!(method, error, "a call failed");
    }
}

/// The error to answer in place of a status that tonic made, and that has no reason.
pub(super) fn error_of_tonic(status: &Status) -> Option<ApiError> {
    if !status.details().is_empty() {
        return None;
    }
    // The message is over the limit as it was sent, or once it is decompressed.
    let too_large = [Code::OutOfRange, Code::ResourceExhausted].contains(&status.code());
    // The message is missing, not framed, not gzip or not of its type.
    let unreadable = status.code() == Code::Internal;
    let unreadable = unreadable.then(|| ApiError::unreadable(status.message()));
    too_large.then(|| Reason::MessageTooLarge.into()).or(unreadable)
}

/// A number as the value of a header.
fn number(number: u128) -> MetadataValue<Ascii> {
    u64::try_from(number).unwrap_or(u64::MAX).into()
}

/// The status of each reason, for errors of which nothing else is known. In a sale these are most of the answers, so they
/// are encoded once.
static BARE: LazyLock<Vec<Status>> =
    LazyLock::new(|| Reason::ALL.iter().map(|reason| encode((*reason).into())).collect());

/// How to authenticate (RFC 6750). Without credentials it names no error.
fn challenge(reason: Reason) -> MetadataValue<Ascii> {
    MetadataValue::from_static(if reason == Reason::CredentialsInvalid {
        r#"Bearer realm="yoink", error="invalid_token""#
    } else {
        r#"Bearer realm="yoink""#
    })
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        if error.is_bare() { BARE[error.reason as usize].clone() } else { encode(error) }
    }
}

fn encode(error: ApiError) -> Status {
    let (spec, metadata) = (error.reason.spec(), error.metadata());
    let message = error.message(&metadata);
    let metadata = metadata.into_iter().map(|(name, value)| (name.to_owned(), value));
    let mut metadata: HashMap<String, String> = metadata.collect();
    let mut headers = MetadataMap::new();
    if let Some(applied) = error.applied() {
        metadata.insert("applied".to_owned(), applied.as_str().to_owned());
        headers.insert("x-yoink-applied", MetadataValue::from_static(applied.as_str()));
    }
    if spec.http_status == 409 {
        headers.insert(HTTP_STATUS, MetadataValue::from_static("409"));
    }
    if spec.code == Code::Unauthenticated {
        headers.insert("www-authenticate", challenge(error.reason));
    }
    let mut details = ErrorDetails::new();
    if let Some(delay) = error.retry_delay() {
        details.set_retry_info(Some(delay));
        headers.insert("retry-after", number(delay.as_nanos().div_ceil(1_000_000_000)));
        headers.insert("grpc-retry-pushback-ms", number(delay.as_nanos().div_ceil(1_000_000)));
    }
    details.set_error_info(error.reason.as_str(), DOMAIN, metadata);
    for (field, problem) in error.fields {
        details.add_bad_request_violation(field, problem);
    }
    let mut status = Status::with_error_details_and_metadata(spec.code, message, details, headers);
    if let Some(cause) = error.cause {
        status.set_source(cause);
    }
    status
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        ack::AckError,
        domain::{Ack, Epoch, Outcome, ReservationId},
        grpc::reason::{AppliedRule, Retry},
        redis::Applied,
    };

    /// An error of each reason, with the names of the metadata that its message mentions.
    fn errors() -> Vec<(ApiError, &'static [&'static str])> {
        let wait = Duration::from_millis(1500);
        let id = ReservationId::new(3, Epoch(2), 77, 1).unwrap();
        let refusal = |outcome| ApiError::accepted_or_refused(outcome).unwrap_err();
        let (opens_at_ms, closes_at_ms) = (1_800_000_000_000, Some(1_800_000_000_000));
        let mut errors: Vec<(ApiError, &'static [&'static str])> = vec![
            (ApiError::bad_field("user_id", "must not be empty"), &[]),
            (refusal(Outcome::LimitReached { limit: 2 }), &["limit"]),
            (refusal(Outcome::SaleNotOpen { opens_at_ms }), &["opens_at"]),
            (refusal(Outcome::SaleClosed { closes_at_ms }), &[]),
            (refusal(Outcome::BacklogFull { retry_after: wait }), &["retry_delay"]),
            (ApiError::too_many_units(), &["limit"]),
            (ApiError::with(Reason::RoleNotAllowed, [("role", "customer".to_owned())]), &["role"]),
            (ApiError::supply_differs(5, 9), &["field", "units"]),
            (ApiError::rate_limited("user", wait), &["limited", "retry_delay"]),
            (AckError::Unavailable(Ack::Replica).into(), &["ack"]),
            (AckError::Overloaded.into(), &[]),
            (AckError::Lost(id).into(), &["reservation_id"]),
            (ApiError::with_applied(Reason::RedisUnavailable, Applied::Maybe), &[]),
            (ApiError::with_applied(Reason::Internal, Applied::No), &[]),
            (
                ApiError::from(Reason::Recovering).after(&[("released", 3), ("decided", 4)]),
                &["released", "decided"],
            ),
        ];
        let mentions = |reason: &Reason| reason.spec().text.contains('{');
        // The others are always made with more than the reason.
        let plain = Reason::ALL.iter().copied().filter(|reason| {
            !mentions(reason) && ![Reason::BadField, Reason::Internal].contains(reason)
        });
        errors.extend(plain.map(|reason| (ApiError::from(reason), [].as_slice())));
        errors
    }

    #[test]
    fn every_value_of_a_message_is_in_the_metadata() {
        let covered: Vec<_> = errors().iter().map(|(error, _)| error.reason).collect();
        for reason in Reason::ALL {
            assert!(covered.contains(reason), "{reason:?} is not tested");
        }
        for (error, mentioned) in errors() {
            let status = Status::from(error);
            let info = status.get_details_error_info().unwrap();
            let mut rest = status.message().to_owned();
            for name in mentioned {
                let value = &info.metadata[*name];
                assert!(rest.contains(value), "{rest}: {name} = {value}");
                rest = rest.replace(value, "");
            }
            let number = rest.chars().any(|character| character.is_ascii_digit());
            assert!(!number, "a value without metadata: {}", status.message());
            assert!(!status.message().contains(['{', '}']), "{}", status.message());
        }
    }

    #[test]
    fn a_status_is_what_its_reason_declares() {
        for (error, _) in errors() {
            let (reason, spec) = (error.reason, error.reason.spec());
            let partly_done = error.text.contains("before that");
            let status = Status::from(error);
            let info = status.get_details_error_info().unwrap();
            assert_eq!((info.domain.as_str(), info.reason.as_str()), ("yoink", reason.as_str()));
            assert_eq!(status.code(), spec.code, "{reason:?}");
            let http_status = status.metadata().get(HTTP_STATUS).is_some();
            assert_eq!(http_status, spec.http_status == 409, "{reason:?}");
            let challenged = status.metadata().get("www-authenticate").is_some();
            assert_eq!(challenged, spec.code == Code::Unauthenticated, "{reason:?}");
            let delayed = status.get_details_retry_info().is_some();
            assert_eq!(delayed, spec.retry == Retry::AfterDelay, "{reason:?}");
            assert_eq!(delayed, info.metadata.contains_key("retry_delay"), "{reason:?}");
            let applied = info.metadata.get("applied").map(String::as_str);
            match spec.applied {
                // Envoy repeats the calls that state `no`.
                AppliedRule::PerError if reason == Reason::Overloaded => {
                    assert_ne!(applied, Some("no"));
                }
                AppliedRule::PerError => assert!(applied.is_some(), "{reason:?}"),
                AppliedRule::Maybe => assert_eq!(applied, Some("maybe"), "{reason:?}"),
                AppliedRule::No if partly_done => assert_eq!(applied, Some("maybe")),
                AppliedRule::No if reason == Reason::AuthenticationUnavailable => {
                    assert_eq!(applied, None);
                }
                AppliedRule::No => assert_ne!(applied, Some("maybe"), "{reason:?}"),
            }
        }
    }

    #[test]
    fn unauthenticated_call_gets_a_challenge_and_its_status_is_encoded_once() {
        for (reason, challenge) in [
            (Reason::CredentialsMissing, r#"Bearer realm="yoink""#),
            (Reason::CredentialsInvalid, r#"Bearer realm="yoink", error="invalid_token""#),
        ] {
            assert!(ApiError::from(reason).is_bare(), "{reason:?}");
            for status in [encode(reason.into()), Status::from(ApiError::from(reason))] {
                assert_eq!(status.metadata().get("www-authenticate").unwrap(), challenge);
                let response: http::Response<()> = status.into_http();
                assert_eq!(response.headers()["www-authenticate"], challenge);
            }
        }
    }

    #[test]
    fn stated_applied_is_in_the_metadata_and_in_the_header_that_envoy_reads() {
        for (applied, text) in [(Applied::No, "no"), (Applied::Maybe, "maybe")] {
            let status = Status::from(ApiError::with_applied(Reason::RedisUnavailable, applied));
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.metadata["applied"], text);
            assert_eq!(status.metadata().get("x-yoink-applied").unwrap(), text);
        }
    }

    #[test]
    fn call_that_cannot_wait_for_its_ack_states_that_its_unit_may_be_taken() {
        for error in [AckError::Overloaded, AckError::ShuttingDown] {
            let status = Status::from(ApiError::from(error));
            assert_eq!(status.get_details_error_info().unwrap().metadata["applied"], "maybe");
        }
    }

    #[test]
    fn lost_reservation_states_no_effect_only_if_the_call_did_not_make_it() {
        let id = ReservationId::new(3, Epoch(2), 77, 1).unwrap();
        for (error, applied) in [
            (ApiError::accepted_or_refused(Outcome::LostOrUnknown(id)).unwrap_err(), Some("no")),
            // Envoy repeats the calls that state `no`. This one took a unit, and its request id is free again.
            (AckError::Lost(id).into(), None),
        ] {
            let status = Status::from(error);
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.metadata["reservation_id"], id.to_string());
            assert_eq!(info.metadata.get("applied").map(String::as_str), applied);
            let header = status.metadata().get("x-yoink-applied");
            assert_eq!(header.map(|value| value.to_str().unwrap()), applied);
        }
    }

    #[test]
    fn bad_fields_are_named_in_bad_request() {
        let status = Status::from(ApiError::bad_field("user_id", "must not be empty"));
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "user_id");
    }
}
