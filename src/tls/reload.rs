//! What is made from files, and made again when their content changes.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use super::{Contents, PemFile, TlsError};

/// Between two log lines about the same content.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Something whose files are read again.
pub trait Reload: Send + Sync {
    /// Compares the files with what is in use. If they changed, uses them; if they cannot be used, keeps what is in use,
    /// logs an error for each content and again every minute, and tries again at the next call. Returns whether the files
    /// are in use. Reads files, so it must not run on a thread of the runtime.
    fn reload(&self) -> bool;
}

/// Makes a value from the contents of its files.
type Make<T> = dyn Fn(&Contents) -> Result<T, TlsError> + Send + Sync;

/// A value made from files. Users take the current one for each new connection; connections that exist keep theirs.
pub struct Reloaded<T> {
    files: Vec<PemFile>,
    make: Box<Make<T>>,
    current: ArcSwap<T>,
    seen: Mutex<Seen>,
    hasher: RandomState,
}

/// Hashes of contents.
struct Seen {
    /// What the current value was made from.
    used: u64,
    /// What could not be used since then, and when it was logged.
    refused: Option<(u64, Instant)>,
}

impl<T> Reloaded<T> {
    /// Makes the value for the first time, from the content of `files`.
    pub fn load(
        files: Vec<PemFile>,
        make: impl Fn(&Contents) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let (contents, hasher) = (Contents::read(&files), RandomState::new());
        let seen = Mutex::new(Seen { used: hasher.hash_one(&contents), refused: None });
        let current = ArcSwap::from_pointee(make(&contents)?);
        Ok(Self { files, make: Box::new(make), current, seen, hasher })
    }

    /// The value for a new connection.
    pub fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    fn names(&self) -> String {
        self.files.iter().map(PemFile::setting).collect::<Vec<_>>().join(", ")
    }
}

impl<T: Send + Sync> Reload for Reloaded<T> {
    fn reload(&self) -> bool {
        let contents = Contents::read(&self.files);
        let found = self.hasher.hash_one(&contents);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.used == found {
            seen.refused = None;
            return true;
        }
        match (self.make)(&contents) {
            Ok(value) => {
                self.current.store(Arc::new(value));
                *seen = Seen { used: found, refused: None };
                tracing::info!("the files of {} changed: new connections use them", self.names());
                true
            }
            // The next attempt may succeed: not everything that it needs is in the files.
            Err(error) => {
                let logged = seen.refused.filter(|(content, _)| *content == found);
                if logged.is_some_and(|(_, at)| at.elapsed() < LOG_INTERVAL) {
                    return false;
                }
                seen.refused = Some((found, Instant::now()));
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the files of {} changed and cannot be used: new connections use what was read before; correct the files",
                    self.names()
                );
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn changed_file_is_used_and_one_that_cannot_be_used_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |text: &str| fs::write(file.path(), text).unwrap();
        let pem = PemFile::new("tls_cert_file", file.path());
        let read = pem.clone();
        let number = move |contents: &Contents| {
            let text = String::from_utf8_lossy(contents.of(&read)?).into_owned();
            text.parse::<u32>().map_err(|_| read.problem("is not a number"))
        };
        write("many");
        let refused = Reloaded::load(vec![pem.clone()], number.clone()).err().unwrap();
        let message = format!("tls_cert_file cannot be used: {} is not", file.path().display());
        assert!(refused.to_string().starts_with(&message), "{refused}");
        write("1");
        let value = Reloaded::load(vec![pem], number).unwrap();
        for (text, expected) in [("1", 1), ("2", 2), ("two", 2), ("3", 3)] {
            write(text);
            assert_eq!(value.reload(), text != "two", "{text}");
            assert_eq!(*value.current(), expected, "{text}");
        }
        fs::remove_file(file.path()).unwrap();
        assert!(!value.reload());
        assert_eq!(*value.current(), 3);
    }

    #[test]
    fn content_that_could_not_be_used_is_tried_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let pem = PemFile::new("tls_cert_file", file.path());
        let fails = Arc::new(AtomicBool::new(false));
        let (read, failing) = (pem.clone(), fails.clone());
        let content = move |contents: &Contents| {
            if failing.load(Ordering::Relaxed) {
                return Err(read.problem("cannot be used for a moment"));
            }
            Ok(contents.of(&read)?.to_vec())
        };
        fs::write(file.path(), "old").unwrap();
        let value = Reloaded::load(vec![pem], content).unwrap();
        fs::write(file.path(), "new").unwrap();
        for (failing, expected) in [(true, "old"), (true, "old"), (false, "new")] {
            fails.store(failing, Ordering::Relaxed);
            assert_eq!(value.reload(), !failing);
            assert_eq!(*value.current(), expected.as_bytes());
        }
    }
}
