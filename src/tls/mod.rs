//! TLS, by rustls: certificates and keys from their files, for the listeners of this program and for its connections to
//! the stores and to a service.
//!
//! Must never: write a private key into a message or a log; accept a certificate that the settings ask to verify.

mod client;
mod der;
mod files;
#[cfg(test)]
mod fuzz;
mod peer;
mod reload;
mod server;
mod stream;

use std::sync::Arc;

use rustls::{
    ConfigBuilder, ConfigSide, WantsVerifier, WantsVersions,
    crypto::{CryptoProvider, ring},
};

pub use self::{
    client::{ClientTls, Identity, Verify, check_system_authorities, system_authorities},
    der::der_element,
    files::{Contents, PemFile, TlsError},
    peer::Peer,
    reload::{Reload, Reloaded},
    server::{ClientAuth, ServerTls},
    stream::Stream,
};

/// The cryptography of every connection.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// TLS 1.2 and 1.3.
fn with_versions<S: ConfigSide>(
    builder: ConfigBuilder<S, WantsVersions>,
) -> Result<ConfigBuilder<S, WantsVerifier>, TlsError> {
    builder.with_safe_default_protocol_versions().map_err(TlsError::Library)
}

/// A certificate and its key in files of this directory, for tests.
#[cfg(test)]
pub(crate) fn self_signed(dir: &std::path::Path) -> Identity {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["shop.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let file = |setting, name: &str, text: String| {
        std::fs::write(dir.join(name), text).unwrap();
        PemFile::new(setting, dir.join(name))
    };
    Identity::new(
        file("tls_cert_file", "cert.pem", certificate.pem()),
        file("tls_key_file", "key.pem", key.serialize_pem()),
    )
}
