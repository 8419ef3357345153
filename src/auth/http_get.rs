//! One GET by HTTP/1.1, with a limit of time and size. It follows no redirect and uses no proxy, so a request goes only
//! where the settings say.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{
    Request, StatusCode, Uri,
    header::{ACCEPT, HOST},
    uri::Scheme,
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::tls::{ClientTls, PemFile, Verify};

/// What ALPN calls the protocol.
const HTTP_1: &str = "http/1.1";

/// The limits of a GET.
pub(super) struct Limits {
    pub(super) time: Duration,
    pub(super) bytes: usize,
}

/// The body of an answer with status 200. With `https` the server must have a certificate for its name, by one of these
/// authorities or else by one that the system trusts.
pub(super) async fn get(
    uri: &Uri,
    authorities: Option<&PemFile>,
    limits: Limits,
) -> anyhow::Result<Vec<u8>> {
    let exchange = async {
        let tls = if uri.scheme() == Some(&Scheme::HTTPS) {
            Some(tls_config(authorities.cloned()).await?)
        } else {
            None
        };
        let host = uri.host().context("the URL names no host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await.context("cannot connect")?;
        let Some(config) = tls else { return send(uri, stream, limits.bytes).await };
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        send(uri, stream.context("the TLS handshake failed")?, limits.bytes).await
    };
    timeout(limits.time, exchange)
        .await
        .with_context(|| format!("no complete answer within {} s", limits.time.as_secs()))?
}

/// Reads the authorities anew, so a renewed file needs no restart.
async fn tls_config(authorities: Option<PemFile>) -> anyhow::Result<Arc<ClientConfig>> {
    let tls = ClientTls { verify: Verify::Name, authorities, identity: None };
    let config = tokio::task::spawn_blocking(move || tls.config(Some(HTTP_1))).await??;
    Ok(Arc::new(config))
}

async fn send<S>(uri: &Uri, stream: S, bytes_max: usize) -> anyhow::Result<Vec<u8>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let authority = uri.authority().context("the URL names no host")?.as_str();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header(HOST, authority).header(ACCEPT, "application/json");
    let request = request.body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        ensure!(status == StatusCode::OK, "the server answered with status {status}");
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        // The error of the limit is a boxed error, which is not one of anyhow's.
        let body = body.map_err(|error| anyhow::anyhow!("cannot read the answer: {error}"))?;
        Ok(body.to_bytes().to_vec())
    };
    tokio::pin!(exchange);
    tokio::select! {
        answered = &mut exchange => return answered,
        // A connection that has ended may have left an answer behind.
        _ended = connection => {}
    }
    exchange.await
}
