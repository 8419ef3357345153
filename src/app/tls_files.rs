//! The files of TLS: read at the start, and read again while the service runs, so that a renewed certificate needs no
//! restart.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use redis::{ClientTlsConfig, TlsCertificates};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    ledger::Address,
    redis::NodeTls,
    tasks::tick,
    telemetry::Metrics,
    tls::{
        ClientTls, Contents, PemFile, Reload, Reloaded, ServerTls, TlsError,
        check_system_authorities,
    },
};

/// How often the files are compared with what was read.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);
/// What ALPN calls the protocols of the listeners.
const HTTP_2: &str = "h2";
const HTTP_1: &str = "http/1.1";

/// TLS of the listeners that use it.
#[derive(Clone, Default)]
pub(super) struct ListenerTls {
    pub(super) grpc: Option<ServerTls>,
    pub(super) http: Option<ServerTls>,
}

impl ListenerTls {
    /// Reads the files of the settings.
    pub(super) fn load(config: &Config) -> Result<Self, TlsError> {
        let Some(identity) = config.tls_identity() else { return Ok(Self::default()) };
        let load = |client_auth, protocol| {
            let authorities = config.tls_client_ca_file.clone();
            ServerTls::load(identity.clone(), client_auth, authorities, protocol)
        };
        let http = config.http_tls.then(|| load(config.http_client_auth, HTTP_1));
        Ok(Self { grpc: Some(load(config.grpc_client_auth, HTTP_2)?), http: http.transpose()? })
    }

    pub(super) fn files(&self) -> Vec<Arc<dyn Reload>> {
        [&self.grpc, &self.http].into_iter().flatten().flat_map(ServerTls::files).collect()
    }
}

/// Reads the files again, until it is stopped. The metrics count those that cannot be used.
pub(super) async fn watch(files: Vec<Arc<dyn Reload>>, metrics: Metrics, stop: CancellationToken) {
    let files: Arc<[Arc<dyn Reload>]> = files.into();
    while tick(RELOAD_INTERVAL, &stop).await {
        let files = files.clone();
        let read = move || files.iter().filter(|files| !files.reload()).count();
        // Fails only if it panics, which the runtime reports.
        if let Ok(refused) = tokio::task::spawn_blocking(read).await {
            metrics.record_tls_files_refused(refused);
        }
    }
}

/// The Postgres of the settings.
pub(crate) fn postgres_address(config: &Config) -> anyhow::Result<Address> {
    let url = config.postgres_url.clone();
    Address::new(url.config, url.tls).context("cannot use TLS for Postgres (postgres_url)")
}

/// TLS of connections to Redis, if they use it.
pub(super) fn redis_tls(config: &Config) -> anyhow::Result<Arc<Reloaded<NodeTls>>> {
    let login = config.redis_url.login().clone();
    let loaded = match config.redis_tls() {
        None => Reloaded::load(Vec::new(), |_| Ok(NodeTls(None))),
        Some(tls) => Reloaded::load(tls.files(), move |contents| {
            // The library reports less about files that are wrong.
            tls.config_of(contents, None)?;
            // It reads all of these for each connection, also where the settings name other authorities.
            check_system_authorities()?;
            let tls = NodeTls(Some(redis_certificates(&tls, contents)?));
            // The library may refuse more.
            let client = tls.client(login.clone());
            client
                .map_err(|error| TlsError::Library(rustls::Error::General(error.to_string())))
                .map(|_client| tls)
        }),
    };
    Ok(Arc::new(loaded.context("cannot use TLS for Redis (redis_url)")?))
}

fn redis_certificates(tls: &ClientTls, contents: &Contents) -> Result<TlsCertificates, TlsError> {
    let read = |file: &PemFile| contents.of(file).map(<[u8]>::to_vec);
    let client_tls = tls.identity.as_ref().map(|identity| {
        let (client_cert, client_key) = (read(identity.certificate())?, read(identity.key())?);
        Ok(ClientTlsConfig { client_cert, client_key })
    });
    let root_cert = tls.authorities.as_ref().map(read);
    Ok(TlsCertificates { client_tls: client_tls.transpose()?, root_cert: root_cert.transpose()? })
}

/// Reads every file of TLS that the settings name, as a start would; returns what cannot be used.
pub(crate) fn tls_problems(config: &Config) -> Vec<String> {
    let listeners = ListenerTls::load(config).context("cannot use TLS for the listeners").map(drop);
    let stores = [postgres_address(config).map(drop), redis_tls(config).map(drop)];
    let all = std::iter::once(listeners).chain(stores);
    all.filter_map(|read| read.err().map(|error| format!("{error:#}"))).collect()
}

/// What will fail although the files can be read: certificates that have expired.
pub(crate) fn tls_warnings(config: &Config) -> Vec<String> {
    let redis = config.redis_tls().and_then(|tls| tls.identity);
    let postgres = config.postgres_url.tls.identity.clone();
    let all = [config.tls_identity(), redis, postgres].into_iter().flatten();
    all.filter_map(|identity| identity.warning()).collect()
}
