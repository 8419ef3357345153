//! TLS of a listener.

use std::{io, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{
    Contents, Identity, PemFile, Reload, Reloaded, Stream, TlsError, provider, with_versions,
};

/// How long a client may take from its connection to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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
    config: Arc<Reloaded<ServerConfig>>,
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
        let mut files = identity.files();
        files.extend(authorities.clone());
        let make = move |contents: &Contents| {
            let mut config = server_config(&identity, client_auth, authorities.as_ref(), contents)?;
            config.alpn_protocols = vec![protocol.into()];
            Ok(config)
        };
        Ok(Self { config: Arc::new(Reloaded::load(files, make)?) })
    }

    /// For the task that reads the files again.
    pub fn files(&self) -> Arc<dyn Reload> {
        self.config.clone()
    }

    /// The handshake with a client, with the certificate of this moment.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<Stream> {
        let accept = TlsAcceptor::from(self.config.current()).accept(stream);
        let accepted = timeout(HANDSHAKE_TIMEOUT, accept).await;
        let stream = accepted.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(Stream::Tls(Box::new(stream.into())))
    }
}

fn server_config(
    identity: &Identity,
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
    let (chain, key) = identity.read(contents)?;
    let built = builder.with_single_cert(chain, key);
    let mut config = built.map_err(|error| identity.refused(&error))?;
    if client_auth != ClientAuth::None {
        // A client that resumes a session presents no certificate, so one that has expired since then would be accepted.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
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
}
