//! Reads the backlog of the service from its metrics.

use std::time::Duration;

use http::Uri;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::plan::LoadError;

/// Accepted orders that wait to be stored, for each partition.
const METRIC: &str = "yoink_orders_depth";
const TIMEOUT: Duration = Duration::from_secs(1);
/// A page of metrics has some hundred kilobytes.
const PAGE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The address of a page of metrics.
#[derive(Debug, Clone)]
pub(super) struct MetricsUrl(Uri);

impl MetricsUrl {
    /// Checks an address; returns it with the backlog now.
    pub(super) async fn connect(url: &str) -> Result<(Self, u64), LoadError> {
        let wrong =
            |problem: &str| LoadError::Metrics { url: url.to_owned(), problem: problem.to_owned() };
        let uri: Uri = url.parse().map_err(|_invalid| wrong("this is not a URL"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            return Err(wrong("the URL must be http://host:port/path"));
        }
        let found = Self(uri);
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
        let host = self.0.host().unwrap_or_default();
        let path = self.0.path_and_query().map_or("/", |path| path.as_str());
        let name = host.trim_matches(['[', ']']);
        let mut stream = TcpStream::connect((name, self.0.port_u16().unwrap_or(80))).await?;
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
