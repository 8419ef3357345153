//! TLS of connections to Postgres, for tokio-postgres.

use std::{
    io, iter,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use rustls::{ClientConfig, pki_types::ServerName};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Config, Error, Socket,
    config::Host,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_rustls::{TlsConnector, client};

use crate::tls::der_element;

/// The other machines that a connection leads to while it has no TLS.
#[derive(Default)]
pub(super) struct Attempt(Mutex<Hosts>);

#[derive(Default)]
struct Hosts {
    /// Where the handshake may still follow.
    current: Option<String>,
    /// The first one that the next host was tried after, without a handshake.
    passed: Option<String>,
}

impl Attempt {
    fn begin(&self, other_machine: Option<String>) {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = hosts.current.take();
        hosts.passed = hosts.passed.take().or(before);
        hosts.current = other_machine;
    }

    fn encrypt(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).current = None;
    }

    /// The first host that was connected to over the network without TLS, whether or not it let this program log in. An
    /// error of reading or writing does not show that the last host had answered that it offers no TLS.
    pub(super) fn unencrypted_host(&self, error: Option<&Error>) -> Option<String> {
        let hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let source = error.and_then(std::error::Error::source);
        let answered = source.is_none_or(|source| !source.is::<io::Error>());
        let current = hosts.current.as_ref().filter(|_| answered);
        hosts.passed.as_ref().or(current).cloned()
    }
}

/// The host that the library calls by this name, if a connection to it leaves the machine. A socket has no name.
fn other_machine(config: &Config, name: &str) -> Option<String> {
    let addresses = config.get_hostaddrs();
    if addresses.is_empty() {
        let address = name.parse::<IpAddr>();
        let is_local = name == "localhost" || address.is_ok_and(|address| address.is_loopback());
        return (!is_local && !name.is_empty()).then(|| name.to_owned());
    }
    // The library connects to the address, and uses the host for the handshake only.
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.as_str(),
        Host::Unix(_) => "",
    });
    let mut pairs = hosts.chain(iter::repeat("")).zip(addresses);
    let (_, address) = pairs.find(|(host, address)| *host == name && !address.is_loopback())?;
    Some(if name.is_empty() { address.to_string() } else { name.to_owned() })
}

/// Makes the handshakes of one connection.
pub(super) struct Handshakes {
    pub(super) config: Arc<ClientConfig>,
    /// What is connected to.
    pub(super) postgres: Config,
    pub(super) attempt: Arc<Attempt>,
}

/// A handshake with one host, which begins if Postgres offers TLS.
pub(super) struct Handshake {
    config: Arc<ClientConfig>,
    attempt: Arc<Attempt>,
    host: String,
}

impl MakeTlsConnect<Socket> for Handshakes {
    type Stream = Encrypted;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        self.attempt.begin(other_machine(&self.postgres, host));
        let (config, attempt) = (self.config.clone(), self.attempt.clone());
        Ok(Handshake { config, attempt, host: host.to_owned() })
    }
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Encrypted>>;

    fn connect(self, stream: Socket) -> Self::Future {
        let Self { config, attempt, host } = self;
        attempt.encrypt();
        async move {
            let name = ServerName::try_from(host)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            Ok(Encrypted(TlsConnector::from(config).connect(name, stream).await?))
        }
        .boxed()
    }
}

/// A connection to Postgres with TLS.
pub(super) struct Encrypted(client::TlsStream<Socket>);

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = self.0.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(<[_]>::first);
        match certificate.and_then(|certificate| end_point(certificate)) {
            Some(hash) => ChannelBinding::tls_server_end_point(hash),
            None => ChannelBinding::none(),
        }
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// The channel binding `tls-server-end-point` (RFC 5929): the hash of the certificate by the hash function of its
/// signature, SHA-256 in place of MD5 and SHA-1. None for signatures without one of these hash functions, as libpq.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // 1.2.840.113549.1.1 (RSA) and 1.2.840.10045.4 (ECDSA), in DER.
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    let algorithm = signature_algorithm(certificate)?;
    let kind = algorithm.strip_prefix(RSA).or_else(|| algorithm.strip_prefix(ECDSA))?;
    match (algorithm.starts_with(RSA), kind) {
        (true, [4 | 5 | 11]) | (false, [1] | [3, 2]) => Some(Sha256::digest(certificate).to_vec()),
        (true, [12]) | (false, [3, 3]) => Some(Sha384::digest(certificate).to_vec()),
        (true, [13]) | (false, [3, 4]) => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// The object identifier of a certificate's signature: `SEQUENCE { tbsCertificate, SEQUENCE { OBJECT IDENTIFIER, … }, … }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (certificate, _) = der_element(certificate, SEQUENCE)?;
    let (_, after) = der_element(certificate, SEQUENCE)?;
    let (algorithm, _) = der_element(after, SEQUENCE)?;
    Some(der_element(algorithm, OBJECT_IDENTIFIER)?.0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    /// The length of the hash, and whether it is that of the whole certificate.
    fn binding(certificate: &[u8]) -> Option<(usize, bool)> {
        let hash = end_point(certificate)?;
        let whole = match hash.len() {
            32 => Sha256::digest(certificate).to_vec(),
            48 => Sha384::digest(certificate).to_vec(),
            _ => Sha512::digest(certificate).to_vec(),
        };
        Some((hash.len(), hash == whole))
    }

    fn made(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let names = ["db.example.com".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        certificate.der().to_vec()
    }

    /// A certificate by openssl, for the algorithms that rcgen does not have.
    fn made_by_openssl(options: &str) -> Vec<u8> {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-nodes", "-subj", "/CN=db", "-outform", "DER"]);
        openssl.args(["-keyout", "/dev/null"]).args(options.split(' '));
        let done = openssl.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        done.stdout
    }

    #[test]
    fn channel_binding_is_the_hash_of_the_certificate_by_the_hash_of_its_signature() {
        assert_eq!(binding(&made(&PKCS_ECDSA_P256_SHA256)), Some((32, true)));
        assert_eq!(binding(&made(&PKCS_ECDSA_P384_SHA384)), Some((48, true)));
        assert_eq!(binding(&made(&PKCS_ED25519)), None);
        for (options, expected) in [
            ("-newkey rsa:2048 -sha256", Some((32, true))),
            ("-newkey rsa:2048 -sha384", Some((48, true))),
            ("-newkey rsa:2048 -sha512", Some((64, true))),
            ("-newkey ec -pkeyopt ec_paramgen_curve:P-256 -sha512", Some((64, true))),
            // With RSA-PSS, the hash function is among the parameters: libpq binds nothing either.
            ("-newkey rsa:2048 -sha256 -sigopt rsa_padding_mode:pss", None),
        ] {
            assert_eq!(binding(&made_by_openssl(options)), expected, "{options}");
        }
    }

    #[test]
    fn certificate_that_ends_early_has_no_channel_binding() {
        let key = KeyPair::generate().unwrap();
        let names = ["db".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        for length in 0..certificate.der().len() {
            assert_eq!(signature_algorithm(&certificate.der()[..length]), None);
        }
    }

    #[test]
    fn connection_without_tls_is_reported_if_it_leaves_the_machine() {
        for (pairs, name, reported) in [
            ("host=db", "db", Some("db")),
            ("host=10.0.0.1", "10.0.0.1", Some("10.0.0.1")),
            ("host=localhost", "localhost", None),
            ("host=127.0.0.2", "127.0.0.2", None),
            ("host=::1", "::1", None),
            ("host=/run/postgresql", "", None),
            ("host=db hostaddr=127.0.0.1", "db", None),
            ("host=localhost hostaddr=10.0.0.1", "localhost", Some("localhost")),
            ("host=db,db hostaddr=127.0.0.1,10.0.0.1", "db", Some("db")),
            ("host=a,b hostaddr=127.0.0.1,10.0.0.1", "a", None),
            ("host=a,b hostaddr=127.0.0.1,10.0.0.1", "b", Some("b")),
            ("host=/run/postgresql hostaddr=10.0.0.1", "", Some("10.0.0.1")),
            ("hostaddr=10.0.0.1", "", Some("10.0.0.1")),
        ] {
            let attempt = Attempt::default();
            attempt.begin(other_machine(&pairs.parse().unwrap(), name));
            assert_eq!(attempt.unencrypted_host(None).as_deref(), reported, "{pairs}");
            attempt.encrypt();
            assert_eq!(attempt.unencrypted_host(None), None);
        }
    }

    #[test]
    fn first_host_without_tls_is_reported_also_if_a_later_one_has_it() {
        let attempt = Attempt::default();
        let postgres: Config = "host=a,b,c,d".parse().unwrap();
        for (host, encrypted) in [("a", true), ("b", false), ("c", false), ("d", true)] {
            attempt.begin(other_machine(&postgres, host));
            if encrypted {
                attempt.encrypt();
            }
        }
        assert_eq!(attempt.unencrypted_host(None).as_deref(), Some("b"));
    }
}
