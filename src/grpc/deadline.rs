//! The client's deadline. Commands that were sent to Redis before it are completed after it; the response reports that the
//! outcome is not known.

use std::time::Duration;

use tonic::codegen::http::Request;

/// How long before the deadline the service responds. At the deadline itself tonic responds, with CANCELLED.
const MARGIN: Duration = Duration::from_millis(10);

/// How long a call may take, if its client has set a deadline.
pub(super) fn of<B>(request: &Request<B>) -> Option<Duration> {
    let limit = request.headers().get("grpc-timeout")?.to_str().ok().and_then(parse)?;
    Some(limit.saturating_sub(MARGIN).max(limit / 2))
}

/// `grpc-timeout`: at most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(amount * 3600)),
        'M' => Some(Duration::from_secs(amount * 60)),
        'S' => Some(Duration::from_secs(amount)),
        'm' => Some(Duration::from_millis(amount)),
        'u' => Some(Duration::from_micros(amount)),
        'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        assert_eq!(parse("300m"), Some(Duration::from_millis(300)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        for bad in ["", "m", "5", "5x", "-5S", "123456789S", "5é", "é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
