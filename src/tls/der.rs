//! What this program itself reads of a certificate, in DER. The library reads and verifies everything else.

/// The tags of elements.
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
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

/// The public key of a certificate of any X.509 version: its `SubjectPublicKeyInfo`.
pub(super) fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _signature) = der_element(certificate, SEQUENCE)?;
    let (fields, _signature) = der_element(certificate, SEQUENCE)?;
    let fields = der_element(fields, VERSION).map_or(fields, |(_version, after)| after);
    let (_serial_number, mut fields) = der_element(fields, INTEGER)?;
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
}
