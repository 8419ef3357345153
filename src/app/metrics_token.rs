//! The token that a scrape of `/metrics` must have. Its file is read for each scrape that has a token, so a new one needs
//! no restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use axum::http::HeaderMap;

use crate::auth;

/// The longest file that is read.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Where the token is, if `/metrics` asks for one. Clones share it.
#[derive(Clone)]
pub(super) struct MetricsToken(Option<Arc<TokenFile>>);

struct TokenFile {
    path: PathBuf,
    /// Whether it could be used when it was read last.
    usable: AtomicBool,
}

/// Whether a scrape is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scraper {
    Allowed,
    Refused,
    /// The file cannot be used, which is logged.
    Unknown,
}

impl MetricsToken {
    /// Fails if the file cannot be used.
    pub(super) fn of(file: Option<&PathBuf>) -> anyhow::Result<Self> {
        file.map(PathBuf::as_path).map(read).transpose()?;
        let file = file.cloned().map(|path| TokenFile { path, usable: AtomicBool::new(true) });
        Ok(Self(file.map(Arc::new)))
    }

    /// Whether a request with these headers may read the metrics. A request that cannot have the token costs no read.
    pub(super) async fn check(&self, headers: &HeaderMap) -> Scraper {
        let Some(file) = self.0.clone() else { return Scraper::Allowed };
        let Some(sent) = auth::bearer_of(headers) else { return Scraper::Refused };
        let read = tokio::task::spawn_blocking(move || file.read()).await;
        match read.ok().flatten() {
            None => Scraper::Unknown,
            Some(token) if auth::is_same_secret(sent, token.as_bytes()) => Scraper::Allowed,
            Some(_) => Scraper::Refused,
        }
    }
}

impl TokenFile {
    /// The token. A file that cannot be used is logged, once until it can.
    fn read(&self) -> Option<String> {
        let token = read(&self.path);
        let was_usable = self.usable.swap(token.is_ok(), Ordering::Relaxed);
        if let (Err(error), true) = (&token, was_usable) {
            let error = error.as_ref() as &dyn std::error::Error;
            tracing::error!(error, "scrapes are refused until their token can be read");
        }
        token.ok()
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    let read = || {
        if fs::metadata(file)?.len() > TOKEN_BYTES_MAX {
            return Err(io::Error::other("it is larger than 4 KiB"));
        }
        fs::read_to_string(file)
    };
    let problem = || format!("cannot use {} (metrics_token_file)", file.display());
    let text = read().with_context(problem)?;
    let token = text.trim();
    // Any other character could not be sent in a header.
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(is_token, "{}: it must have one token of printable ASCII characters", problem());
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn file_is_read_only_for_a_request_that_has_one_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc").unwrap();
        let token = MetricsToken::of(Some(&file.path().to_owned())).unwrap();
        let check = async |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("authorization", value.parse().unwrap());
            }
            token.check(&headers).await
        };
        assert_eq!(check(&["Bearer abc"]).await, Scraper::Allowed);
        assert_eq!(check(&["Bearer abd"]).await, Scraper::Refused);
        fs::write(file.path(), "").unwrap();
        for refused in [&[] as &[&'static str], &["Basic abc"], &["Bearer"], &["Bearer abc"; 2]] {
            assert_eq!(check(refused).await, Scraper::Refused, "{refused:?}");
        }
        let file_token = token.0.as_ref().unwrap();
        assert!(file_token.usable.load(Ordering::Relaxed), "the file was read without a token");
        assert_eq!(check(&["Bearer abc"]).await, Scraper::Unknown);
        fs::write(file.path(), "abc").unwrap();
        assert_eq!(check(&["Bearer abc"]).await, Scraper::Allowed);
    }

    #[test]
    fn file_must_have_one_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        for (text, usable) in
            [("abc\n", true), ("", false), ("\n", false), ("a b", false), ("é", false)]
        {
            fs::write(&path, text).unwrap();
            assert_eq!(MetricsToken::of(Some(&path)).is_ok(), usable, "{text:?}");
        }
        fs::write(&path, "a".repeat(4097)).unwrap();
        assert!(MetricsToken::of(Some(&path)).is_err());
        assert!(MetricsToken::of(Some(&path.with_extension("none"))).is_err());
        assert!(MetricsToken::of(None).is_ok());
    }
}
