//! How to reach a Postgres: its address, and the TLS of each connection to it.

use std::{
    str::FromStr,
    sync::{Arc, OnceLock},
};

use deadpool_postgres::Connect;
use futures_util::{FutureExt as _, future::BoxFuture};
use rustls::ClientConfig;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Connection, Error, Socket, config::SslMode};

use super::{
    LedgerError,
    pool::with_timeouts,
    tls::{Attempt, Encrypted, Handshakes},
};
use crate::tls::{ClientTls, Contents, Reload, Reloaded, TlsError, Verify};

/// What Postgres calls its protocol in TLS (ALPN), since version 17.
const PROTOCOL: &str = "postgresql";

/// A Postgres; clones share the files of TLS.
#[derive(Clone)]
pub struct Address {
    config: Config,
    tls: Arc<Reloaded<ClientConfig>>,
    /// The first host that was connected to without TLS, over a network.
    unencrypted: Arc<OnceLock<String>>,
}

impl Address {
    /// Reads the files of TLS. Fails if one cannot be used.
    pub fn new(config: Config, tls: ClientTls) -> Result<Self, TlsError> {
        let files = tls.files();
        let make = move |contents: &Contents| tls.config_of(contents, Some(PROTOCOL));
        let tls = Arc::new(Reloaded::load(files, make)?);
        Ok(Self { config: with_timeouts(config), tls, unencrypted: Arc::default() })
    }

    /// For the task that reads the files again.
    pub fn files(&self) -> Arc<dyn Reload> {
        self.tls.clone()
    }

    /// What to tell the operator if a connection was made without TLS, because Postgres offered none.
    pub fn downgrade(&self) -> Option<String> {
        let host = self.unencrypted.get()?;
        Some(format!(
            "connections to Postgres at {host} are not encrypted: it offers no TLS, and sslmode is prefer; switch TLS on \
             there and write sslmode=verify-full in postgres_url (or sslmode=disable, if the network may be trusted)"
        ))
    }

    /// The settings, for the pool.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Opens a connection. The caller polls it.
    pub(super) async fn open(
        &self,
    ) -> Result<(Client, Connection<Socket, Encrypted>), LedgerError> {
        self.connection().await.map_err(LedgerError::connecting)
    }

    async fn connection(&self) -> Result<(Client, Connection<Socket, Encrypted>), Error> {
        let attempt = Arc::new(Attempt::default());
        let (config, postgres) = (self.tls.current(), self.config.clone());
        let handshakes = Handshakes { config, postgres, attempt: attempt.clone() };
        let opened = self.config.connect(handshakes).await;
        if self.config.get_ssl_mode() == SslMode::Prefer
            && let Some(host) = attempt.unencrypted_host(opened.as_ref().err())
            && self.unencrypted.set(host).is_ok()
            && let Some(warning) = self.downgrade()
        {
            tracing::warn!("{warning}");
        }
        opened
    }
}

/// A private Postgres, which has no files of TLS. The setting `postgres_url` is read by `config`.
impl FromStr for Address {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let tls = ClientTls { verify: Verify::Nothing, authorities: None, identity: None };
        Ok(Self::new(text.parse()?, tls)?)
    }
}

impl Connect for Address {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        async {
            let (client, connection) = self.connection().await?;
            let run = async move {
                if let Err(error) = connection.await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "a connection to Postgres failed");
                }
            };
            #[expect(clippy::disallowed_methods, reason = "the pool ends the task with its client")]
            Ok((client, tokio::spawn(run)))
        }
        .boxed()
    }
}
