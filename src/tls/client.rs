//! TLS of connections that this program makes.

use std::{sync::Arc, time::SystemTime};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
};

use super::{
    Contents, PemFile, TlsError,
    der::{algorithm_and_key, not_after, public_key},
    provider, with_versions,
};

/// What is verified of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Nothing: the connection is encrypted, but another program in the network can answer in place of the server.
    Nothing,
    /// That an authority signed it, for whatever name.
    Authority,
    /// That an authority signed it for the name that is connected to.
    Name,
}

/// A certificate with its intermediate certificates, and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    certificate: PemFile,
    key: PemFile,
}

impl Identity {
    /// From two files, which may be the same.
    pub fn new(certificate: PemFile, key: PemFile) -> Self {
        Self { certificate, key }
    }

    /// The file of the certificate.
    pub fn certificate(&self) -> &PemFile {
        &self.certificate
    }

    /// The file of the private key.
    pub fn key(&self) -> &PemFile {
        &self.key
    }

    pub(super) fn files(&self) -> Vec<PemFile> {
        vec![self.certificate.clone(), self.key.clone()]
    }

    pub(super) fn read(
        &self,
        contents: &Contents,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        Ok((self.certificate.certificates(contents)?, self.key.private_key(contents)?))
    }

    /// The sentence about a certificate that has expired.
    pub(super) fn expired(&self, certificate: &CertificateDer<'_>) -> Option<String> {
        let end = not_after(certificate).filter(|end| *end < SystemTime::now())?;
        let days = SystemTime::now().duration_since(end).unwrap_or_default().as_secs() / 86_400;
        let (setting, path) = (self.certificate.setting(), self.certificate.path().display());
        Some(format!(
            "the certificate of {setting} ({path}) expired {days} days ago: clients refuse it; renew the certificate"
        ))
    }

    /// What is wrong with the certificate although it can be used: it has expired.
    pub fn warning(&self) -> Option<String> {
        let contents = Contents::read(&self.files());
        self.expired(self.certificate.certificates(&contents).ok()?.first()?)
    }

    /// The library's refusal of the pair, as a message about its files.
    pub(super) fn refused(&self, error: &Error) -> TlsError {
        if let Error::InvalidCertificate(problem) = error {
            let problem = format!("has a certificate that cannot be read: {problem}");
            return self.certificate.problem(problem);
        }
        if let Error::InconsistentKeys(_) = error {
            let certificate = self.certificate.setting();
            return self.key.problem(format!("is not the key of the certificate in {certificate}"));
        }
        self.key.problem(format!("has a key that cannot be used: {error}"))
    }
}

/// How a connection uses TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// What is verified.
    pub verify: Verify,
    /// The authorities that are trusted; without a file, those of the system.
    pub authorities: Option<PemFile>,
    /// What is presented to the server.
    pub identity: Option<Identity>,
}

impl ClientTls {
    /// The files that it reads.
    pub fn files(&self) -> Vec<PemFile> {
        let identity = self.identity.iter().flat_map(Identity::files);
        self.authorities.iter().cloned().chain(identity).collect()
    }

    /// Reads the files; `protocol`, if there is one, is negotiated by ALPN.
    pub fn config(&self, protocol: Option<&str>) -> Result<ClientConfig, TlsError> {
        self.config_of(&Contents::read(&self.files()), protocol)
    }

    /// As [`ClientTls::config`], from files that were read before.
    pub fn config_of(
        &self,
        contents: &Contents,
        protocol: Option<&str>,
    ) -> Result<ClientConfig, TlsError> {
        let builder = with_versions(ClientConfig::builder_with_provider(provider()))?;
        let builder = match self.verify {
            Verify::Name => builder.with_root_certificates(self.roots(contents)?),
            Verify::Authority | Verify::Nothing => {
                let verifier = Arc::new(self.partial_verifier(contents)?);
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.read(contents)?;
                let built = builder.with_client_auth_cert(chain, key);
                built.map_err(|error| identity.refused(&error))?
            }
        };
        config.alpn_protocols = protocol.into_iter().map(Into::into).collect();
        Ok(config)
    }

    fn roots(&self, contents: &Contents) -> Result<RootCertStore, TlsError> {
        let file = self.authorities.as_ref();
        file.map_or_else(system_authorities, |file| file.authorities(contents))
    }

    fn partial_verifier(&self, contents: &Contents) -> Result<PartialVerifier, TlsError> {
        let authorities = match self.verify {
            Verify::Nothing => None,
            Verify::Authority | Verify::Name => {
                let roots = Arc::new(self.roots(contents)?);
                let built = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
                let refused =
                    |error| TlsError::Library(Error::General(format!("no authority: {error}")));
                Some(built.map_err(refused)?)
            }
        };
        let algorithms = provider().signature_verification_algorithms;
        Ok(PartialVerifier { authorities, algorithms })
    }
}

/// The authorities that the system trusts.
pub fn system_authorities() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let (added, _ignored) = store.add_parsable_certificates(found.certs);
    if added == 0 {
        let problems: Vec<String> =
            found.errors.iter().map(|error| format!(" ({error})")).collect();
        return Err(TlsError::NoSystemAuthorities(problems.concat()));
    }
    Ok(store)
}

/// Fails if one of the authorities that the system trusts cannot be read, for a library that then fails to connect.
pub fn check_system_authorities() -> Result<(), TlsError> {
    let found = rustls_native_certs::load_native_certs();
    if let Some(error) = found.errors.first() {
        return Err(TlsError::SystemAuthority(error.to_string()));
    }
    let mut store = RootCertStore::empty();
    for certificate in found.certs {
        let added = store.add(certificate);
        added.map_err(|error| TlsError::SystemAuthority(error.to_string()))?;
    }
    Ok(())
}

/// Verifies less than a name and its authority. In every case the server must prove that it has the key of its
/// certificate.
#[derive(Debug)]
struct PartialVerifier {
    /// Without it, every certificate is accepted.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PartialVerifier {
    /// The public key of a certificate that is not verified. The functions of the library read certificates of X.509
    /// version 3 only.
    fn public_key<'a>(certificate: &'a CertificateDer<'_>) -> Result<&'a [u8], Error> {
        public_key(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
    }

    /// As [`verify_tls12_signature`], which the library has for certificates only.
    fn verify_tls12_signature_with_raw_key(
        &self,
        message: &[u8],
        public_key: &[u8],
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let (algorithm, key) = algorithm_and_key(public_key)
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let of_scheme =
            self.algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signed.scheme);
        let mut of_key = of_scheme
            .flat_map(|(_, verifiers)| verifiers.iter())
            .filter(|verifier| verifier.public_key_alg_id().as_ref() == algorithm);
        if of_key
            .any(|verifier| verifier.verify_signature(key, message, signed.signature()).is_ok())
        {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::BadSignature))
        }
    }
}

impl ServerCertVerifier for PartialVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let accepted = Ok(ServerCertVerified::assertion());
        let Some(authorities) = &self.authorities else { return accepted };
        let verified = authorities.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // The name is compared last, after everything else was found valid.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => accepted,
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.authorities.is_some() {
            return verify_tls12_signature(message, certificate, signed, &self.algorithms);
        }
        let key = Self::public_key(certificate)?;
        self.verify_tls12_signature_with_raw_key(message, key, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.authorities.is_some() {
            return verify_tls13_signature(message, certificate, signed, &self.algorithms);
        }
        let key = SubjectPublicKeyInfoDer::from(Self::public_key(certificate)?);
        verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        Certificate, CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
        PKCS_ED25519,
    };
    use rustls::{
        ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion,
        crypto::ring::sign::any_supported_type,
        sign::{CertifiedKey, SingleCertAndKey},
        version::{TLS12, TLS13},
    };

    use super::*;

    /// The end of a handshake for a client that verifies nothing. The server presents this certificate and signs with this
    /// key.
    fn handshake(
        version: &'static SupportedProtocolVersion,
        certificate: &Certificate,
        key: &KeyPair,
    ) -> Result<(), Error> {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let chain = vec![certificate.der().clone()];
        let certified = CertifiedKey::new(chain, any_supported_type(&key).unwrap());
        let builder = ServerConfig::builder_with_provider(provider());
        let builder = builder.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
        let config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        let mut server = ServerConnection::new(Arc::new(config)).unwrap();
        let tls = ClientTls { verify: Verify::Nothing, authorities: None, identity: None };
        let name = ServerName::try_from("db.example").unwrap();
        let mut client = ClientConnection::new(Arc::new(tls.config(None).unwrap()), name).unwrap();
        while client.is_handshaking() {
            let mut sent = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut sent).unwrap();
            }
            let mut received = sent.as_slice();
            while !received.is_empty() {
                server.read_tls(&mut received).unwrap();
                server.process_new_packets().unwrap();
            }
            let mut sent = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut sent).unwrap();
            }
            let mut received = sent.as_slice();
            while !received.is_empty() {
                client.read_tls(&mut received).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(())
    }

    #[test]
    fn server_must_have_the_key_of_its_certificate_although_nothing_is_verified() {
        let refused: Result<(), Error> =
            Err(Error::InvalidCertificate(CertificateError::BadSignature));
        for version in [&TLS12, &TLS13] {
            for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
                let key = KeyPair::generate_for(algorithm).unwrap();
                let params = CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
                let certificate = params.self_signed(&key).unwrap();
                assert_eq!(handshake(version, &certificate, &key), Ok(()));
                let other = KeyPair::generate_for(algorithm).unwrap();
                assert_eq!(handshake(version, &certificate, &other), refused);
            }
        }
    }
}
