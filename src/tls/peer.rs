//! Who is at the other end of a connection.

use std::{net::SocketAddr, sync::Arc};

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// The client of a connection. Each of its calls has it as an extension of the request; clones are cheap.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// The names of the certificate that it presented and that was verified; `None` without one.
    pub certificate_names: Option<Arc<[String]>>,
}

/// The subject alternative names of a certificate: its DNS names, then its URIs.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Arc<[String]> {
    // The handshake has read the certificate with the same library. One that it could not read would have no name.
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Arc::default() };
    // An authority that may sign only some DNS names may sign every URI. So what has no scheme is not taken for a URI: it
    // could be equal to a DNS name that the authority may not sign.
    let uris = certificate.valid_uri_names().filter(|uri| uri.contains(':'));
    certificate.valid_dns_names().chain(uris).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn names_of(dns_and_addresses: &[&str], uris: &[&str]) -> Arc<[String]> {
        let named: Vec<String> = dns_and_addresses.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(named).unwrap();
        let uris = uris.iter().map(|&uri| SanType::URI(uri.try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        names(certificate.der())
    }

    #[test]
    fn names_are_the_dns_names_and_then_the_uris_and_not_the_addresses() {
        let found = names_of(&["127.0.0.1", "b.example", "a.example"], &["spiffe://shop/backend"]);
        assert_eq!(*found, ["b.example", "a.example", "spiffe://shop/backend"]);
        assert!(names_of(&[], &[]).is_empty());
    }

    #[test]
    fn uri_without_a_scheme_is_no_name() {
        let found = names_of(&["a.example"], &["ops.shop.example", "spiffe://shop/ops"]);
        assert_eq!(*found, ["a.example", "spiffe://shop/ops"]);
    }

    #[test]
    fn unreadable_certificate_has_no_name() {
        assert!(names(&CertificateDer::from(&b"no certificate"[..])).is_empty());
    }
}
