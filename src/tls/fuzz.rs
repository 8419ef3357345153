//! Properties of certificate files: no content panics, and no message has a part of it.

use std::{fs, sync::LazyLock};

use proptest::{prelude::*, sample::Index};
use rcgen::{CertificateParams, KeyPair};

use super::{ClientTls, Contents, Identity, PemFile, Verify, der};

/// A certificate in DER, its file in PEM, and the file of its key.
static CERTIFICATE: LazyLock<(Vec<u8>, String, String)> = LazyLock::new(|| {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.der().to_vec(), certificate.pem(), key.serialize_pem())
});

/// Random bytes in some places.
fn changes() -> impl Strategy<Value = Vec<(Index, u8)>> {
    prop::collection::vec(any::<(Index, u8)>(), 0..6)
}

fn changed(bytes: &[u8], changes: &[(Index, u8)], length: Index) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, byte) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *byte;
    }
    // Half of them are cut off.
    let length = length.index(2 * bytes.len());
    bytes.truncate(length);
    bytes
}

proptest! {
    #[test]
    fn public_key_of_any_certificate_is_a_part_of_it(
        changes in changes(), length in any::<Index>(),
    ) {
        let der = changed(&CERTIFICATE.0, &changes, length);
        if let Some(key) = der::public_key(&der) {
            prop_assert!(der.windows(key.len()).any(|part| part == key));
            let _parts = der::algorithm_and_key(key);
        }
        let _parts = der::algorithm_and_key(&der);
        let _element = der::der_element(&der, 0x30);
    }

    #[test]
    fn files_of_any_content_are_used_or_refused_without_it(
        of_certificate in changes(), of_key in changes(), lengths in any::<(Index, Index)>(),
        verify in 0..3_u8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            PemFile::new("postgres_url", path)
        };
        let certificate = changed(CERTIFICATE.1.as_bytes(), &of_certificate, lengths.0);
        let key = changed(CERTIFICATE.2.as_bytes(), &of_key, lengths.1);
        let certificate = file("certificate.pem", &certificate);
        let key = file("key.pem", &key);
        let tls = ClientTls {
            verify: [Verify::Nothing, Verify::Authority, Verify::Name][usize::from(verify)],
            authorities: Some(certificate.clone()),
            identity: Some(Identity::new(certificate, key)),
        };
        if let Err(error) = tls.config_of(&Contents::read(&tls.files()), None) {
            let message = error.to_string();
            let lines = CERTIFICATE.2.lines();
            for line in lines.filter(|line| line.len() >= 16 && !line.starts_with('-')) {
                prop_assert!(!message.contains(&line[..16]), "{}", message);
            }
            prop_assert!(message.starts_with("postgres_url cannot be used: "), "{}", message);
        }
    }
}
