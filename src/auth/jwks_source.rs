//! Where the public keys of JWTs are read, and when.

use std::{
    fmt, fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http::Uri;

use super::http_get::{self, Limits};
use crate::tls::PemFile;

/// The largest set that is read.
const JWKS_BYTES_MAX: u32 = 1024 * 1024;
/// How long a server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The time between a failed attempt and the next one.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The least time between two attempts because of a key that is not known. Without it, tokens that name invented keys
/// would cause a request to the server each second.
const UNKNOWN_KEY_INTERVAL: Duration = Duration::from_secs(10);

/// Where the set is.
#[derive(Debug, Clone)]
pub enum JwksSource {
    /// A file.
    File(PathBuf),
    /// A URL.
    Url {
        /// With the scheme `https`, or `http` for this machine.
        uri: Uri,
        /// The authorities of its server; without a file, those of the system.
        authorities: Option<PemFile>,
        /// The time between two fetches.
        interval: Duration,
    },
}

/// With the setting that names it.
impl fmt::Display for JwksSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{} (jwt_jwks_file)", path.display()),
            Self::Url { uri, .. } => write!(f, "{uri} (jwt_jwks_url)"),
        }
    }
}

impl JwksSource {
    /// The content at this moment.
    pub(super) async fn read(&self) -> anyhow::Result<Vec<u8>> {
        let read = match self {
            Self::File(path) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || read_file(path)).await?.map_err(Into::into)
            }
            Self::Url { uri, authorities, .. } => {
                let bytes = usize::try_from(JWKS_BYTES_MAX)?;
                let limits = Limits { time: ANSWER_TIMEOUT, bytes };
                http_get::get(uri, authorities.as_ref(), limits).await
            }
        };
        read.with_context(|| format!("cannot read {self}"))
    }
}

fn read_file(path: PathBuf) -> io::Result<Vec<u8>> {
    if fs::metadata(&path)?.len() > u64::from(JWKS_BYTES_MAX) {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    fs::read(path)
}

/// When the set is read again.
pub(super) struct Schedule {
    /// `None`: each time, because reading a file costs next to nothing.
    interval: Option<Duration>,
    read_at: Instant,
    unknown_key_at: Option<Instant>,
}

impl Schedule {
    /// For a set that was read, or tried, just now.
    pub(super) fn new(source: &JwksSource, now: Instant) -> Self {
        let interval = match source {
            JwksSource::File(_) => None,
            JwksSource::Url { interval, .. } => Some(*interval),
        };
        Self { interval, read_at: now, unknown_key_at: None }
    }

    /// Whether to read it now. `healthy`: the last attempt succeeded; `unknown_key`: since then a JWT named a key that is
    /// not in the set.
    pub(super) fn is_due(&mut self, healthy: bool, unknown_key: bool, now: Instant) -> bool {
        let Some(interval) = self.interval else { return true };
        let interval = if healthy { interval } else { RETRY_INTERVAL.min(interval) };
        let limited = |at: Instant| now.duration_since(at) < UNKNOWN_KEY_INTERVAL;
        let for_unknown_key = unknown_key && !self.unknown_key_at.is_some_and(limited);
        if for_unknown_key {
            self.unknown_key_at = Some(now);
        }
        let due = for_unknown_key || now.duration_since(self.read_at) >= interval;
        if due {
            self.read_at = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    fn schedule(start: Instant) -> Schedule {
        let (uri, interval) = (Uri::from_static("https://id.example/"), Duration::from_secs(300));
        Schedule::new(&JwksSource::Url { uri, authorities: None, interval }, start)
    }

    #[test]
    fn set_is_fetched_once_in_an_interval_and_sooner_after_a_failure() {
        let start = Instant::now();
        let mut schedule = schedule(start);
        for (healthy, seconds, due) in [
            (true, 299, false),
            (true, 300, true),
            (true, 301, false),
            (false, 304, false),
            (false, 305, true),
            (false, 309, false),
            (true, 604, false),
            (true, 605, true),
        ] {
            assert_eq!(schedule.is_due(healthy, false, at(start, seconds)), due, "{seconds}");
        }
    }

    #[test]
    fn unknown_keys_cause_one_fetch_in_ten_seconds() {
        let start = Instant::now();
        let mut schedule = schedule(start);
        let fetches = (0..100).filter(|second| schedule.is_due(true, true, at(start, *second)));
        assert_eq!(fetches.collect::<Vec<_>>(), (0..100).step_by(10).collect::<Vec<_>>());
    }

    #[test]
    fn file_is_read_each_time() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&JwksSource::File(PathBuf::new()), start);
        assert!((0..3).all(|_| schedule.is_due(true, false, start)));
    }
}
