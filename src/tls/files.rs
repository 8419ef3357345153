//! Certificates and private keys in files.

use std::{
    fs,
    hash::{Hash, Hasher},
    io,
    path::{Path, PathBuf},
};

use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error as PemError, PemObject as _},
    },
};

/// Why TLS cannot be used as the settings ask for.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be used.
    #[error("{setting} cannot be used: {} {problem}", path.display())]
    File {
        /// The setting that names the file.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never a part of its content.
        problem: String,
    },
    /// Certificates of clients are required, and no authority signs them.
    #[error(
        "certificates of clients are required, and no certificate authority is set: set tls_client_ca_file"
    )]
    NoClientAuthorities,
    /// The system trusts no certificate authority.
    #[error(
        "no certificate authority of the system can be read: install the package ca-certificates, or name a file of \
         authorities{0}"
    )]
    NoSystemAuthorities(String),
    /// One of the authorities that the system trusts cannot be read.
    #[error("a certificate authority of the system cannot be read: {0}; correct or remove it")]
    SystemAuthority(String),
    /// The library refuses the settings.
    #[error("TLS cannot be set up")]
    Library(#[source] rustls::Error),
}

/// A file in PEM format, and the setting that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemFile {
    setting: &'static str,
    path: PathBuf,
}

impl PemFile {
    /// The file of a setting.
    pub fn new(setting: &'static str, path: impl Into<PathBuf>) -> Self {
        Self { setting, path: path.into() }
    }

    /// The setting that names it.
    pub fn setting(&self) -> &'static str {
        self.setting
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn problem(&self, problem: impl Into<String>) -> TlsError {
        let (setting, path, problem) = (self.setting, self.path.clone(), problem.into());
        TlsError::File { setting, path, problem }
    }

    /// The certificates in it, at least one.
    pub(super) fn certificates(
        &self,
        contents: &Contents,
    ) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let content = contents.of(self)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(content).collect();
        match found {
            Ok(found) if found.is_empty() => {
                Err(self.problem("has no certificate in PEM format (BEGIN CERTIFICATE)"))
            }
            Ok(found) => Ok(found),
            Err(_) => Err(self.problem("is not a file in PEM format")),
        }
    }

    /// The first private key in it.
    pub(super) fn private_key(
        &self,
        contents: &Contents,
    ) -> Result<PrivateKeyDer<'static>, TlsError> {
        let found = PrivateKeyDer::from_pem_slice(contents.of(self)?);
        found.map_err(|error| {
            if !matches!(error, PemError::NoItemsFound) {
                return self.problem("is not a file in PEM format");
            }
            self.problem(
                "has no private key in PEM format (BEGIN PRIVATE KEY); a key with a passphrase is not supported",
            )
        })
    }

    /// The certificate authorities in it.
    pub(super) fn authorities(&self, contents: &Contents) -> Result<RootCertStore, TlsError> {
        let mut store = RootCertStore::empty();
        for certificate in self.certificates(contents)? {
            let added = store.add(certificate);
            added.map_err(|error| {
                self.problem(format!("has a certificate that cannot be read: {error}"))
            })?;
        }
        Ok(store)
    }
}

/// What files contained when each of them was read once: what is verified of them is what is used.
pub struct Contents(Vec<(PemFile, io::Result<Vec<u8>>)>);

impl Contents {
    /// Reads these files.
    pub fn read(files: &[PemFile]) -> Self {
        Self(files.iter().map(|file| (file.clone(), fs::read(&file.path))).collect())
    }

    /// What this file contained. Fails if it could not be read.
    pub fn of(&self, file: &PemFile) -> Result<&[u8], TlsError> {
        match self.0.iter().find(|(known, _)| known == file) {
            Some((_, Ok(content))) => Ok(content),
            Some((_, Err(error))) => Err(file.problem(format!("cannot be read: {error}"))),
            None => Err(file.problem("was not read, which is a bug of this program")),
        }
    }
}

/// By content, because neither times nor names of files show every change: Kubernetes replaces a link to their directory.
impl Hash for Contents {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (_, content) in &self.0 {
            content.as_ref().map_err(io::Error::kind).hash(state);
        }
    }
}
