//! TLS of a listener.

use std::{fmt, io, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio::{
    io::{self as tokio_io, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Contents, Identity, PemFile, Reload, Reloaded, Stream, TlsError, provider, with_versions,
};

/// How long a client may take from its connection to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client whose handshake has failed may take to end its connection, and how much of it is read meanwhile.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(1);
const REFUSED_BYTES_MAX: u64 = 64 * 1024;

/// Whether clients present a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked for one.
    None,
    /// They may; one that is presented must be valid.
    Optional,
    /// They must.
    Required,
}

/// TLS of one listener; clones share it.
#[derive(Clone)]
pub struct ServerTls {
    /// Without its certificate, so that a new certificate authority is used also while the pair of files is broken.
    config: Arc<Reloaded<ServerConfig>>,
    identity: Arc<Reloaded<CertifiedKey>>,
}

impl ServerTls {
    /// Reads the files. `authorities` sign the certificates of clients; `protocol` is negotiated by ALPN.
    pub fn load(
        identity: Identity,
        client_auth: ClientAuth,
        authorities: Option<PemFile>,
        protocol: &'static str,
    ) -> Result<Self, TlsError> {
        let authorities = authorities.filter(|_| client_auth != ClientAuth::None);
        if client_auth == ClientAuth::Required && authorities.is_none() {
            return Err(TlsError::NoClientAuthorities);
        }
        let files = identity.files();
        let make = move |contents: &Contents| certified_key(&identity, contents);
        let identity = Arc::new(Reloaded::load(files, make)?);
        let current = Arc::new(CurrentIdentity(identity.clone()));
        let files = authorities.iter().cloned().collect();
        let make = move |contents: &Contents| {
            let verified = authorities.as_ref();
            let mut config = server_config(current.clone(), client_auth, verified, contents)?;
            config.alpn_protocols = vec![protocol.into()];
            Ok(config)
        };
        Ok(Self { config: Arc::new(Reloaded::load(files, make)?), identity })
    }

    /// For the task that reads the files again.
    pub fn files(&self) -> [Arc<dyn Reload>; 2] {
        [self.identity.clone(), self.config.clone()]
    }

    /// The handshake with a client, with the certificate of this moment.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        let accept = TlsAcceptor::from(self.config.current()).accept(stream).into_fallible();
        let accepted = timeout(HANDSHAKE_TIMEOUT, accept).await;
        match accepted.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))? {
            Ok(stream) => Ok(Stream::Tls(Box::new(stream.into()))),
            Err((error, stream)) => {
                end_refused(stream).await;
                Err(error)
            }
        }
    }
}

/// Ends the connection of a client that was sent an alert. With TLS 1.3 the client may have sent more before that. If this is
/// not read, the system resets the connection, and the client may find the reset and not the alert.
async fn end_refused(mut stream: TcpStream) {
    let ended = async {
        stream.shutdown().await?;
        tokio_io::copy(&mut stream.take(REFUSED_BYTES_MAX), &mut tokio_io::sink()).await
    };
    // It is closed now, whether or not its client has ended it.
    drop(timeout(REFUSED_TIMEOUT, ended).await);
}

/// The certificate of this moment, for each handshake.
struct CurrentIdentity(Arc<Reloaded<CertifiedKey>>);

impl ResolvesServerCert for CurrentIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.current())
    }
}

impl fmt::Debug for CurrentIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentIdentity")
    }
}

fn certified_key(identity: &Identity, contents: &Contents) -> Result<CertifiedKey, TlsError> {
    let (chain, key) = identity.read(contents)?;
    let expired = chain.first().and_then(|certificate| identity.expired(certificate));
    let read = CertifiedKey::from_der(chain, key, &provider());
    let read = read.map_err(|error| identity.refused(&error))?;
    if let Some(warning) = expired {
        tracing::warn!("{warning}");
    }
    Ok(read)
}

fn server_config(
    identity: Arc<CurrentIdentity>,
    client_auth: ClientAuth,
    authorities: Option<&PemFile>,
    contents: &Contents,
) -> Result<ServerConfig, TlsError> {
    let builder = with_versions(ServerConfig::builder_with_provider(provider()))?;
    let builder = match authorities {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let authorities = Arc::new(file.authorities(contents)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities, provider());
            let verifier = match client_auth {
                ClientAuth::None | ClientAuth::Optional => verifier.allow_unauthenticated(),
                ClientAuth::Required => verifier,
            };
            let verifier = verifier.build().map_err(|error| file.problem(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(identity);
    if client_auth != ClientAuth::None {
        // A client that resumes a session presents no certificate, so one that has expired since then would be accepted.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::{super::self_signed, *};

    #[test]
    fn sessions_are_kept_only_where_clients_are_not_asked_for_a_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let identity = self_signed(dir.path());
        let authorities = identity.certificate().clone();
        for (client_auth, kept) in
            [(ClientAuth::None, true), (ClientAuth::Optional, false), (ClientAuth::Required, false)]
        {
            let tls =
                ServerTls::load(identity.clone(), client_auth, Some(authorities.clone()), "h2");
            let config = tls.unwrap().config.current();
            assert_eq!(config.session_storage.can_cache(), kept, "{client_auth:?}");
            assert_eq!(config.send_tls13_tickets > 0, kept, "{client_auth:?}");
            assert!(!config.ticketer.enabled(), "{client_auth:?}");
        }
    }

    #[test]
    fn certificates_of_clients_are_not_required_without_authorities() {
        let dir = tempfile::tempdir().unwrap();
        let identity = self_signed(dir.path());
        let refused = ServerTls::load(identity, ClientAuth::Required, None, "h2").err().unwrap();
        assert!(matches!(refused, TlsError::NoClientAuthorities), "{refused}");
    }

    #[tokio::test]
    async fn refused_client_gets_the_alert_and_the_end_of_its_connection() {
        let dir = tempfile::tempdir().unwrap();
        let identity = self_signed(dir.path());
        let tls = ServerTls::load(identity, ClientAuth::None, None, "h2").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = async || {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            // More than the handshake reads.
            client.write_all(&[0; 32 * 1024]).await.unwrap();
            (client, tls.accept(listener.accept().await.unwrap().0))
        };
        let (mut client, accepting) = connect().await;
        let reads = async move {
            let mut alert = Vec::new();
            // It fails if the connection is reset.
            client.read_to_end(&mut alert).await.unwrap();
            alert
        };
        let (accepted, alert) = tokio::join!(accepting, reads);
        let alert_of_tls = 21;
        assert_eq!((accepted.is_err(), alert.first()), (true, Some(&alert_of_tls)), "{alert:?}");

        let (_stays, accepting) = connect().await;
        let accepted = timeout(Duration::from_secs(60), accepting).await;
        assert!(accepted.expect("its client is waited for without an end").is_err());
    }

    #[test]
    fn broken_key_does_not_keep_an_authority_in_use() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let identity = self_signed(dir.path());
        let authorities = self_signed(other.path()).certificate().clone();
        let key = identity.key().path().to_owned();
        let read = Some(authorities.clone());
        let tls = ServerTls::load(identity, ClientAuth::Required, read, "h2").unwrap();
        let before = tls.config.current();
        std::fs::write(key, "broken").unwrap();
        self_signed(other.path());
        assert_eq!(tls.files().map(|files| files.reload()), [false, true]);
        assert!(!Arc::ptr_eq(&before, &tls.config.current()));
    }
}
