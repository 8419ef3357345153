//! A throw-away certificate authority, and the certificates that it signs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    SigningKey as _,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use yoink::tls::der_element;

use super::scratch_dir;

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    Now,
    Expired,
    /// For this time from now on.
    For(Duration),
}

/// An authority whose certificates are files in one directory.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

/// The files of a certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Issued {
    /// Its files as the values of settings.
    pub fn texts(&self) -> (&str, &str) {
        (self.certificate.to_str().unwrap(), self.key.to_str().unwrap())
    }

    /// For a client of tonic.
    pub fn identity(&self) -> Identity {
        Identity::from_pem(fs::read(&self.certificate).unwrap(), fs::read(&self.key).unwrap())
    }

    /// Puts the files in the place of others, as a renewal does: each of them at once.
    pub fn replace(&self, others: &Self) {
        for (new, old) in [(&self.certificate, &others.certificate), (&self.key, &others.key)] {
            replace(new, old);
        }
    }
}

/// Puts a file in the place of another one.
pub fn replace(new: &Path, old: &Path) {
    let temporary = old.with_extension("new");
    fs::copy(new, &temporary).unwrap();
    fs::rename(&temporary, old).unwrap();
}

impl Authority {
    /// A new one; its certificate is the file `ca.pem`.
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Authorities of the same name would differ by their signatures only.
        let dir = scratch_dir("tls");
        let name = format!("authority {}", dir.display());
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(dir.join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, dir }
    }

    /// The directory of its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of its certificate.
    pub fn file(&self) -> String {
        self.dir.join("ca.pem").to_str().unwrap().to_owned()
    }

    /// Signs a certificate for these names, addresses and URIs: `name.pem` and `name.key`.
    pub fn issue(&self, name: &str, alternative_names: &[&str], validity: Validity) -> Issued {
        let (uris, names): (Vec<&str>, Vec<&str>) =
            alternative_names.iter().copied().partition(|name| name.contains("://"));
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let uris = uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        params.distinguished_name.push(DnType::CommonName, name);
        match validity {
            Validity::Now => {}
            Validity::Expired => {
                params.not_before = rcgen::date_time_ymd(2020, 1, 1);
                params.not_after = rcgen::date_time_ymd(2020, 1, 2);
            }
            Validity::For(time) => params.not_after = (SystemTime::now() + time).into(),
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.write(name, &certificate.pem(), &key)
    }

    /// A certificate of X.509 version 1, which has no names and no authority: `name.pem` and `name.key`.
    pub fn version_1(&self, name: &str) -> Issued {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        let text = STANDARD.encode(version_1(certificate.der(), &key));
        let lines = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap());
        let text = lines.collect::<Vec<_>>().join("\n");
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        self.write(name, &pem, &key)
    }

    fn write(&self, name: &str, certificate: &str, key: &KeyPair) -> Issued {
        let file = |extension: &str| self.dir.join(format!("{name}.{extension}"));
        let issued = Issued { certificate: file("pem"), key: file("key") };
        fs::write(&issued.certificate, certificate).unwrap();
        fs::write(&issued.key, key.serialize_pem()).unwrap();
        issued
    }

    /// A client of tonic that trusts this authority, and expects this name.
    pub fn trusted_by_client(&self, name: &str) -> ClientTlsConfig {
        let certificate = Certificate::from_pem(self.issuer.pem());
        ClientTlsConfig::new().ca_certificate(certificate).domain_name(name)
    }
}

/// The tags of elements in DER.
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// The same certificate as X.509 version 1, which has neither a version nor extensions, signed with this key.
fn version_1(certificate: &[u8], key: &KeyPair) -> Vec<u8> {
    let (content, _) = der_element(certificate, SEQUENCE).unwrap();
    let (signed, after) = der_element(content, SEQUENCE).unwrap();
    let (algorithm, _signature) = der_element(after, SEQUENCE).unwrap();
    let (_version, fields) = der_element(signed, VERSION).unwrap();
    let (_serial_number, mut after) = der_element(fields, INTEGER).unwrap();
    // The algorithm, the issuer, the validity, the subject and the public key. The extensions follow them.
    for _ in 0..5 {
        (_, after) = der_element(after, SEQUENCE).unwrap();
    }
    let signed = encode(SEQUENCE, &fields[..fields.len() - after.len()]);
    // A bit string begins with the number of bits that are not used.
    let signature = [vec![0], key.sign(&signed).unwrap()].concat();
    let parts = [signed, encode(SEQUENCE, algorithm), encode(BIT_STRING, &signature)];
    encode(SEQUENCE, &parts.concat())
}

/// An element in DER.
fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap();
    let [high, low] = length.to_be_bytes();
    let head = match length {
        0..0x80 => vec![tag, low],
        0x80..0x100 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [head.as_slice(), content].concat()
}
