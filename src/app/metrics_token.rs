//! The token that a scrape of `/metrics` must have. Its file is read for each scrape, so a new token needs no restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use axum::http::HeaderMap;

use crate::auth;

/// The longest file that is read.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Where the token is, if `/metrics` asks for one.
#[derive(Clone)]
pub(super) struct MetricsToken(Option<Arc<PathBuf>>);

impl MetricsToken {
    /// Fails if the file cannot be used.
    pub(super) fn of(file: Option<&PathBuf>) -> anyhow::Result<Self> {
        file.map(PathBuf::as_path).map(read).transpose()?;
        Ok(Self(file.cloned().map(Arc::new)))
    }

    /// Whether a request with these headers may read the metrics.
    pub(super) async fn allows(&self, headers: &HeaderMap) -> anyhow::Result<bool> {
        let Some(file) = self.0.clone() else { return Ok(true) };
        let token = tokio::task::spawn_blocking(move || read(&file)).await??;
        Ok(auth::has_bearer(headers, token.as_bytes()))
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
