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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinSet,
    };

    use super::*;

    /// What is read of a server that gives this answer.
    async fn read(answer: &str, limits: Limits) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/jwks.json", listener.local_addr().unwrap()).parse().unwrap();
        let answer = answer.to_owned();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            if stream.read(&mut [0; 1024]).await? == 0 {
                return Ok(()); // The client has closed the connection.
            }
            stream.write_all(answer.as_bytes()).await?;
            std::future::pending::<std::io::Result<()>>().await
        });
        let read = get(&uri, None, limits).await;
        read.map(|bytes| String::from_utf8(bytes).unwrap()).map_err(|error| format!("{error:#}"))
    }

    fn limits(time: Duration) -> Limits {
        Limits { time, bytes: 4 }
    }

    #[tokio::test]
    async fn redirect_and_a_larger_answer_are_refused() {
        let minute = Duration::from_secs(60);
        let ok = "HTTP/1.1 200 OK\r\nContent-Length";
        assert_eq!(read(&format!("{ok}: 4\r\n\r\nkeys"), limits(minute)).await.unwrap(), "keys");
        let larger = read(&format!("{ok}: 5\r\n\r\nkeys!"), limits(minute)).await.unwrap_err();
        assert!(larger.contains("length limit exceeded"), "{larger}");
        let moved =
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
        let moved = read(moved, limits(minute)).await.unwrap_err();
        assert!(moved.contains("302"), "{moved}");
    }

    #[tokio::test]
    async fn answer_that_does_not_end_is_given_up() {
        let begun = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nke";
        let late = read(begun, limits(Duration::from_millis(100))).await.unwrap_err();
        assert!(late.contains("no complete answer"), "{late}");
    }
}
