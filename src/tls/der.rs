//! What this program itself reads of a certificate, in DER. The library reads and verifies everything else.

use std::time::{Duration, SystemTime};

use jiff::civil::Date;

/// The tags of elements.
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version of a certificate, which one of version 1 does not have.
const VERSION: u8 = 0xa0;

/// The content of the first element of this DER, if it has this tag, and what follows it.
pub fn der_element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (head, rest) = der.split_first_chunk::<2>()?;
    if head[0] != tag {
        return None;
    }
    let (length, rest) = match head[1] {
        short @ 0..0x80 => (usize::from(short), rest),
        long => {
            // A certificate has fewer than 2^24 bytes.
            let digits = usize::from(long & 0x7f);
            let (digits, rest) = rest.split_at_checked(digits).filter(|_| digits <= 3)?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
    };
    rest.split_at_checked(length)
}

/// Until when a certificate is valid. None if it has no such time, or one before 1970.
pub(super) fn not_after(certificate: &[u8]) -> Option<SystemTime> {
    let mut fields = fields(certificate)?;
    // The algorithm of the signature, and the issuer.
    for _ in 0..2 {
        (_, fields) = der_element(fields, SEQUENCE)?;
    }
    let (validity, _) = der_element(fields, SEQUENCE)?;
    let (_, after) = time(validity)?;
    let (digits, _) = time(after)?;
    let text = digits.strip_suffix('Z').filter(|digits| digits.len() == 14)?;
    let number = |at: usize| text.get(at..at + 2)?.parse::<u8>().ok();
    let (month, day) = (number(4)?.try_into().ok()?, number(6)?.try_into().ok()?);
    let date = Date::new(text.get(..4)?.parse().ok()?, month, day).ok()?;
    let days = date.since(Date::constant(1970, 1, 1)).ok()?.get_days();
    let (hours, minutes, seconds) = (number(8)?, number(10)?, number(12)?);
    let seconds = u64::from(hours) * 3600 + u64::from(minutes) * 60 + u64::from(seconds);
    let since = u64::try_from(days).ok()? * 86_400 + seconds;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since))
}

/// The first time of this DER as `YYYYMMDDhhmmssZ`, and what follows it.
fn time(der: &[u8]) -> Option<(String, &[u8])> {
    if let Some((text, after)) = der_element(der, GENERALIZED_TIME) {
        return Some((str::from_utf8(text).ok()?.to_owned(), after));
    }
    let (text, after) = der_element(der, UTC_TIME)?;
    let text = str::from_utf8(text).ok()?;
    // Two digits of the year are those of 1950 to 2049.
    let century = if text.get(..2)?.parse::<u8>().ok()? >= 50 { "19" } else { "20" };
    Some((format!("{century}{text}"), after))
}

/// What follows the serial number of a certificate of any X.509 version.
fn fields(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _signature) = der_element(certificate, SEQUENCE)?;
    let (fields, _signature) = der_element(certificate, SEQUENCE)?;
    let fields = der_element(fields, VERSION).map_or(fields, |(_version, after)| after);
    Some(der_element(fields, INTEGER)?.1)
}

/// The public key of a certificate of any X.509 version: its `SubjectPublicKeyInfo`.
pub(super) fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let mut fields = fields(certificate)?;
    // The algorithm of the signature, the issuer, the validity, and the subject.
    for _ in 0..4 {
        (_, fields) = der_element(fields, SEQUENCE)?;
    }
    let (_key, after) = der_element(fields, SEQUENCE)?;
    fields.get(..fields.len() - after.len())
}

/// The algorithm of a public key (`AlgorithmIdentifier`, without its tag and length), and the bytes of the key.
pub(super) fn algorithm_and_key(public_key: &[u8]) -> Option<(&[u8], &[u8])> {
    let (content, _) = der_element(public_key, SEQUENCE)?;
    let (algorithm, rest) = der_element(content, SEQUENCE)?;
    let (bits, _) = der_element(rest, BIT_STRING)?;
    match bits {
        // The number of bits that are not used.
        [0, key @ ..] => Some((algorithm, key)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};

    use super::*;

    #[test]
    fn public_key_of_a_certificate_is_found_and_one_of_a_part_is_not() {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let found = public_key(certificate.der()).unwrap();
        assert_eq!(found, key.subject_public_key_info());
        let (algorithm, bytes) = algorithm_and_key(found).unwrap();
        assert_eq!(bytes, key.der_bytes());
        assert!(!algorithm.is_empty());
        for length in 0..certificate.der().len() {
            assert_eq!(public_key(&certificate.der()[..length]), None);
        }
        for length in 0..found.len() {
            assert_eq!(algorithm_and_key(&found[..length]), None);
        }
    }
    #[test]
    fn end_of_a_certificate_is_found_in_both_forms() {
        let key = KeyPair::generate().unwrap();
        // UTCTime, and from 2050 on GeneralizedTime.
        for (year, seconds) in [(1999, 915_235_200), (2049, 2_493_158_400), (2050, 2_524_694_400)] {
            let mut params = CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(1998, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 2);
            let certificate = params.self_signed(&key).unwrap();
            let found = not_after(certificate.der()).unwrap();
            assert_eq!(found.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(), seconds);
            for length in 0..certificate.der().len() {
                assert_eq!(not_after(&certificate.der()[..length]), None);
            }
        }
    }
}
