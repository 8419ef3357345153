//! Reads the backlog of the service from its metrics.

use std::{sync::Arc, time::Duration};

use http::Uri;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::plan::LoadError;
use crate::tls::{ClientTls, Stream, Verify};

/// Accepted orders that wait to be stored, for each partition.
const METRIC: &str = "yoink_orders_depth";
const TIMEOUT: Duration = Duration::from_secs(1);
/// A page of metrics has some hundred kilobytes.
const PAGE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The address of a page of metrics.
#[derive(Debug, Clone)]
pub(super) struct MetricsUrl {
    uri: Uri,
    /// With https.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl MetricsUrl {
    /// Checks an address; returns it with the backlog now. With https, the files are those of the calls.
    pub(super) async fn connect(
        url: &str,
        tls: Option<&ClientTls>,
    ) -> Result<(Self, u64), LoadError> {
        let wrong =
            |problem: &str| LoadError::Metrics { url: url.to_owned(), problem: problem.to_owned() };
        let uri: Uri = url.parse().map_err(|_invalid| wrong("this is not a URL"))?;
        let host = uri.host().ok_or_else(|| wrong("the URL must have a host"))?;
        let tls = match uri.scheme_str() {
            Some("http") => None,
            Some("https") => {
                let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
                let name = name.map_err(|_invalid| wrong("no certificate can be for its host"))?;
                let of_system =
                    ClientTls { verify: Verify::Name, authorities: None, identity: None };
                Some((Arc::new(tls.unwrap_or(&of_system).config(None)?), name))
            }
            _ => return Err(wrong("the URL must begin with http:// or https://")),
        };
        let found = Self { uri, tls };
        let Some(page) = found.read().await else {
            return Err(wrong("no page was returned within a second"));
        };
        let backlog =
            backlog_of(&page).ok_or_else(|| wrong(&format!("the page has no {METRIC}")))?;
        Ok((found, backlog))
    }

    /// The backlog now, over all partitions; nothing if the page cannot be read.
    pub(super) async fn backlog(&self) -> Option<u64> {
        backlog_of(&self.read().await?)
    }

    async fn read(&self) -> Option<String> {
        timeout(TIMEOUT, self.get()).await.ok()?.ok()
    }

    async fn get(&self) -> std::io::Result<String> {
        let host = self.uri.host().unwrap_or_default();
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let name = host.trim_matches(['[', ']']);
        let port = self.uri.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = TcpStream::connect((name, port)).await?;
        let mut stream = match &self.tls {
            None => Stream::Plain(stream),
            Some((config, name)) => {
                let connector = TlsConnector::from(config.clone());
                Stream::Tls(Box::new(connector.connect(name.clone(), stream).await?.into()))
            }
        };
        // In HTTP/1.0 the page ends with the connection.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: text/plain\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut page = String::new();
        stream.take(PAGE_MAX_BYTES).read_to_string(&mut page).await?;
        Ok(page)
    }
}

/// The sum over all partitions, if the page has one.
#[expect(clippy::cast_possible_truncation, reason = "a depth is a whole number")]
fn backlog_of(page: &str) -> Option<u64> {
    let samples = page.lines().filter_map(|line| line.strip_prefix(METRIC));
    let samples = samples.filter(|rest| rest.starts_with(['{', ' ']));
    let values = samples.map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok());
    let values: Vec<f64> = values.collect::<Option<_>>()?;
    (!values.is_empty()).then(|| values.iter().sum::<f64>() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backlog_is_the_sum_of_all_partitions() {
        let page = "# TYPE yoink_orders_depth gauge\n\
                    yoink_orders_depth{partition=\"0\"} 3\n\
                    yoink_orders_depth{partition=\"1\"} 4\n\
                    yoink_orders_depth_other{partition=\"1\"} 100\n";
        assert_eq!(backlog_of(page), Some(7));
        assert_eq!(backlog_of("yoink_orders_depth 5"), Some(5));
        assert_eq!(backlog_of("yoink_orders_depth many"), None);
        assert_eq!(backlog_of("HTTP/1.0 404 Not Found\n"), None);
    }
}
