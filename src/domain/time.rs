//! Times that callers give: RFC 3339 text or seconds and nanoseconds, from 1970 to the end of 9999.
//!
//! Both forms follow one rule. Digits below a millisecond are dropped; nothing else is altered, and a time outside of
//! these years is refused.

use jiff::fmt::temporal::{Pieces, PiecesOffset};

/// The last second of the year 9999, since 1970.
const TIME_MAX_SECONDS: i64 = 253_402_300_799;
const NANOS_PER_SECOND: i32 = 1_000_000_000;

/// Why a value is not a valid time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Not in the format.
    #[error("is not a time such as 2026-11-27T18:00:00Z or 2026-11-27T19:00:00.5+01:00")]
    NotATime,
    /// In the format, before 1970 or after 9999.
    #[error("must be a time from 1970 to 9999")]
    OutOfRange,
}

/// Milliseconds since 1970 of a time as RFC 3339 writes it. A leap second is refused, because milliseconds since 1970
/// do not count it.
///
/// ```
/// use yoink::domain::{TimeError, parse_rfc3339_ms};
///
/// assert_eq!(parse_rfc3339_ms("1970-01-01T01:00:00.25+01:00"), Ok(250));
/// assert_eq!(parse_rfc3339_ms("1969-12-31T23:59:59Z"), Err(TimeError::OutOfRange));
/// ```
pub fn parse_rfc3339_ms(text: &str) -> Result<i64, TimeError> {
    if !has_shape(text.as_bytes()) {
        return Err(TimeError::NotATime);
    }
    let pieces = Pieces::parse(text).map_err(|_| TimeError::NotATime)?;
    let time = pieces.time().ok_or(TimeError::NotATime)?;
    let offset_s = match pieces.offset().ok_or(TimeError::NotATime)? {
        PiecesOffset::Zulu => 0,
        PiecesOffset::Numeric(numeric) => i64::from(numeric.offset().seconds()),
        _ => return Err(TimeError::NotATime),
    };
    let epoch = jiff::civil::date(1970, 1, 1);
    let days = pieces.date().since(epoch).map_err(|_| TimeError::OutOfRange)?.get_days();
    let second_of_day =
        i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
    ms_from_unix(i64::from(days) * 86_400 + second_of_day - offset_s, time.subsec_nanosecond())
}

/// Milliseconds since 1970 of seconds and nanoseconds, as `google.protobuf.Timestamp` has them.
pub fn ms_from_unix(seconds: i64, nanos: i32) -> Result<i64, TimeError> {
    if !(0..=TIME_MAX_SECONDS).contains(&seconds) || !(0..NANOS_PER_SECOND).contains(&nanos) {
        return Err(TimeError::OutOfRange);
    }
    Ok(seconds * 1000 + i64::from(nanos / 1_000_000))
}

/// `YYYY-MM-DDTHH:MM:SS`, a fraction or none, `Z` or `±HH:MM`; no leap second. The parser takes more than that.
fn has_shape(text: &[u8]) -> bool {
    let (Some(start), Some(rest)) = (text.get(..19), text.get(19..)) else { return false };
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let pattern = b"dddd-dd-ddTdd:dd:dd";
    let is_date_time = start.iter().zip(pattern).all(|(byte, wanted)| match wanted {
        b'd' => byte.is_ascii_digit(),
        b'T' => b"Tt ".contains(byte),
        _ => byte == wanted,
    });
    let zone = match rest.split_first() {
        Some((b'.', rest)) => {
            let decimals = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=9).contains(&decimals) {
                return false;
            }
            &rest[decimals..]
        }
        _ => rest,
    };
    let is_zone = match zone {
        b"Z" | b"z" => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => digits(&[*h1, *h2, *m1, *m2]),
        _ => false,
    };
    is_date_time && is_zone && &start[17..] != b"60"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_from_1970_to_9999_are_accepted_in_both_forms() {
        for (text, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2026-11-27T18:00:00Z", 1_795_802_400, 0),
            ("2026-11-27t19:30:00.5+01:30", 1_795_802_400, 500_000_000),
            ("2026-11-27 18:00:00.123456789z", 1_795_802_400, 123_456_789),
            ("9999-12-31T23:59:59Z", TIME_MAX_SECONDS, 0),
            ("9999-12-31T23:59:59.999999999Z", TIME_MAX_SECONDS, 999_999_999),
            ("2024-02-29T00:00:00-00:00", 1_709_164_800, 0),
        ] {
            let from_text = parse_rfc3339_ms(text);
            assert_eq!(from_text, ms_from_unix(seconds, nanos), "{text}");
            assert_eq!(from_text, Ok(seconds * 1000 + i64::from(nanos / 1_000_000)), "{text}");
        }
    }

    #[test]
    fn times_outside_these_years_are_refused_and_never_clamped() {
        for text in [
            "0001-01-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "1969-12-31T23:59:59.999Z",
            "1970-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
        ] {
            assert_eq!(parse_rfc3339_ms(text), Err(TimeError::OutOfRange), "{text}");
        }
        // The first is 0001-01-01T00:00:00Z.
        for (seconds, nanos) in [
            (-62_135_596_800, 0),
            (-1, 999_999_999),
            (TIME_MAX_SECONDS + 1, 0),
            (i64::MIN, 0),
            (i64::MAX, 0),
            (0, -1),
            (0, NANOS_PER_SECOND),
        ] {
            assert_eq!(ms_from_unix(seconds, nanos), Err(TimeError::OutOfRange));
        }
    }

    #[test]
    fn text_that_is_not_rfc_3339_is_refused() {
        for text in [
            "",
            "noon",
            "2026-11-27",
            "2026-11-27T18:00:00",
            "2026-11-27T18:00Z",
            "2026-11-27T18:00:60Z",
            "2026-11-27T24:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-11-27T18:00:00.Z",
            "2026-11-27T18:00:00.1234567890Z",
            "2026-11-27T18:00:00+0100",
            "2026-11-27T18:00:00+01:00[Europe/Berlin]",
            "20261127T180000Z",
            "+002026-11-27T18:00:00Z",
            "12026-11-27T18:00:00Z",
            "2026-11-27T18:00:00Z ",
            "2026-11-27T18:00:00\u{661}",
        ] {
            assert_eq!(parse_rfc3339_ms(text), Err(TimeError::NotATime), "{text}");
        }
    }
}
