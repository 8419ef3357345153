//! The outcome of a call from the status that the service sent.

use http::{HeaderMap, HeaderValue, StatusCode};
use tonic::Status;
use tonic_types::StatusExt as _;

use super::outcome::{Kind, Outcome};
use crate::grpc::code_name;

const GRPC_STATUS: &str = "grpc-status";
const DETAILS: &str = "grpc-status-details-bin";
/// `FAILED_PRECONDITION`, the status of a final decision.
const FAILED_PRECONDITION: i32 = 9;
/// Different details that are remembered. Most errors repeat; those with a time to wait may all differ.
const REMEMBERED_MAX: usize = 64;

/// Reads statuses, and remembers the outcomes of details that it has read.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    remembered: Vec<(HeaderValue, Outcome)>,
}

/// Whether headers carry a status: the trailers, or the only headers of an answer without a message.
pub(super) fn has_status(headers: &HeaderMap) -> bool {
    headers.contains_key(GRPC_STATUS)
}

impl Statuses {
    /// The outcome of an answer that is not OK.
    pub(super) fn error(&mut self, headers: &HeaderMap) -> Option<Outcome> {
        match headers.get(GRPC_STATUS) {
            Some(status) if status == "0" => return None,
            Some(_) => {}
            None => return Some(Outcome::new(Kind::Failed, "no status")),
        }
        let Some(details) = headers.get(DETAILS) else { return Some(outcome(headers)) };
        if let Some(at) = self.remembered.iter().position(|(known, _)| known == details) {
            // The most frequent details move to the front.
            self.remembered.swap(at, at / 2);
            return Some(self.remembered[at / 2].1.clone());
        }
        let outcome = outcome(headers);
        if self.remembered.len() == REMEMBERED_MAX {
            self.remembered.clear();
        }
        self.remembered.push((details.clone(), outcome.clone()));
        Some(outcome)
    }
}

/// The outcome of an answer that is no answer of gRPC, such as that of a proxy.
pub(super) fn http_error(status: StatusCode) -> Outcome {
    Outcome::new(Kind::Failed, &format!("HTTP {}", status.as_u16()))
}

fn outcome(headers: &HeaderMap) -> Outcome {
    let Some(status) = Status::from_header_map(headers) else {
        return Outcome::new(Kind::Failed, "no status");
    };
    let refused = i32::from(status.code()) == FAILED_PRECONDITION;
    let kind = if refused { Kind::Refused } else { Kind::Failed };
    let info = status.get_details_error_info();
    let name = info.map_or_else(|| code_name(status.code()).to_owned(), |info| info.reason);
    Outcome::new(kind, &name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn headers(code: i32, reason: Option<&str>) -> HeaderMap {
        let mut details = ErrorDetails::new();
        if let Some(reason) = reason {
            details.set_error_info(reason, "yoink", HashMap::new());
        }
        let status = Status::with_error_details(code.into(), "why", details);
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers
    }

    fn found(statuses: &mut Statuses, headers: &HeaderMap) -> (Kind, String) {
        let outcome = statuses.error(headers).unwrap();
        (outcome.kind, outcome.name.to_string())
    }

    #[test]
    fn outcome_is_the_reason_or_the_status() {
        let mut statuses = Statuses::default();
        for _ in 0..2 {
            let sold_out = headers(9, Some("SOLD_OUT"));
            assert_eq!(found(&mut statuses, &sold_out), (Kind::Refused, "SOLD_OUT".to_owned()));
            let overloaded = headers(8, Some("OVERLOADED"));
            assert_eq!(found(&mut statuses, &overloaded), (Kind::Failed, "OVERLOADED".to_owned()));
            let unavailable = headers(14, None);
            assert_eq!(
                found(&mut statuses, &unavailable),
                (Kind::Failed, "UNAVAILABLE".to_owned())
            );
        }
        let mut ok = HeaderMap::new();
        assert_eq!(found(&mut statuses, &ok), (Kind::Failed, "no status".to_owned()));
        ok.insert(GRPC_STATUS, HeaderValue::from_static("0"));
        assert_eq!(statuses.error(&ok), None);
        assert!(has_status(&ok));
        assert_eq!(&*http_error(StatusCode::BAD_GATEWAY).name, "HTTP 502");
    }

    #[test]
    fn more_details_than_are_remembered_are_still_read() {
        let mut statuses = Statuses::default();
        for n in 0..3 * REMEMBERED_MAX {
            let name = format!("REASON_{n}");
            let headers = headers(9, Some(&name));
            for _ in 0..2 {
                assert_eq!(found(&mut statuses, &headers).1, name);
            }
            assert!(statuses.remembered.len() <= REMEMBERED_MAX);
        }
    }
}
