//! Files that hold the value of one secret setting, as Docker and Kubernetes mount them.
//!
//! Must never: repeat a part of the content.

use std::{
    fs::File,
    io::{self, Read as _},
};

/// A larger file is not a secret. A path such as `/dev/zero` must not fill the memory.
const SIZE_MAX: u64 = 64 * 1024;

/// The value in a file: its text without one line break at its end, which editors and `echo` write. The text of an error
/// continues a sentence that begins with the name of the setting.
pub(super) fn read(path: &str) -> Result<String, String> {
    if path.is_empty() {
        return Err("names no file".to_owned());
    }
    let bytes = content(path).map_err(|error| {
        if may_be_secret(path) {
            // The error of the system does not repeat it.
            format!(
                "names a file that cannot be read (write its path, and the secret into it): {error}"
            )
        } else {
            format!("names {path}, which cannot be read: {error}")
        }
    })?;
    if bytes.len() as u64 > SIZE_MAX {
        return Err(format!("names {path}, which has more than {SIZE_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("names {path}, which is not UTF-8"))?;
    let value = text
        .strip_suffix('\n')
        .map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if value.is_empty() {
        return Err(format!("names {path}, which is empty"));
    }
    Ok(value.to_owned())
}

/// Whether a text may be the secret itself, written in place of a path: every secret that may be in a file is a URL, or
/// has pairs of a name and a value.
fn may_be_secret(path: &str) -> bool {
    path.contains("://") || path.contains(['=', '@'])
}

fn content(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SIZE_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config::{Config, ConfigError, sources::Sources};

    /// The settings of a file, the environment and flags.
    fn load(
        toml: &str,
        environment: &[(&str, &str)],
        flags: &[(&'static str, &str)],
    ) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), toml).unwrap();
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        let flags: Vec<_> =
            flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Config::of(Sources::gather(file.path(), environment, &flags)?)
    }

    fn secret(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn one_line_break_at_the_end_is_not_part_of_the_value() {
        let dir = tempfile::tempdir().unwrap();
        for (content, value) in [
            ("a", "a"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
            (" a ", " a "),
            ("a\r", "a\r"),
        ] {
            assert_eq!(read(&secret(dir.path(), "secret", content)).unwrap(), value, "{content:?}");
        }
    }

    #[test]
    fn file_that_has_no_value_is_refused_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let large = "hunter2".repeat(10_000);
        for (content, why) in [
            (&b""[..], "is empty"),
            (b"\n", "is empty"),
            (b"hunter2\xff", "is not UTF-8"),
            (large.as_bytes(), "more than 65536 bytes"),
        ] {
            let problem = read(&secret(dir.path(), "secret", content)).unwrap_err();
            assert!(problem.contains(why) && !problem.contains("hunter2"), "{problem}");
        }
        for (path, why) in [
            ("", "names no file"),
            ("/no/such/file", "cannot be read: No such file"),
            ("/", "cannot be read"),
        ] {
            let problem = read(path).unwrap_err();
            assert!(problem.contains(why), "{problem}");
        }
    }

    #[test]
    fn secret_in_place_of_a_file_is_not_repeated() {
        for secret in [
            "redis://cache?password=hunter2",
            "postgres://ann:hunter2@db",
            "unix:///hunter2",
            "host=db password=hunter2",
            "authorization=Bearer hunter2",
            "ann:hunter2@cache",
        ] {
            let problem = read(secret).unwrap_err();
            assert!(problem.contains("names a file that cannot be read"), "{problem}");
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn every_secret_may_be_in_a_file_that_any_place_names() {
        let dir = tempfile::tempdir().unwrap();
        let redis = secret(dir.path(), "redis", "redis://:hunter2@cache\n");
        let postgres = secret(dir.path(), "postgres", "host=db user=ann password=hunter2\r\n");
        let otlp = secret(dir.path(), "otlp", "authorization=Bearer hunter2\n");
        let config = load(
            &format!("redis_url_file = '{redis}'"),
            &[("YOINK_POSTGRES_URL_FILE", &postgres)],
            &[("otlp_headers_file", &otlp)],
        )
        .unwrap();
        assert_eq!(config.redis_url.login().redis_settings().password(), Some("hunter2"));
        assert_eq!(config.postgres_url.config.get_password(), Some(&b"hunter2"[..]));
        assert_eq!(config.otlp_headers.get("authorization").unwrap(), "Bearer hunter2");
        assert!(!format!("{config} {config:?}").contains("hunter2"));
        for line in ["redis_url = \"redis://:***@cache", "postgres_url = \"postgres://ann:***@db"] {
            assert!(config.to_string().contains(line), "{config}");
        }
    }

    #[test]
    fn secret_and_its_file_in_one_place_are_refused_and_a_later_place_overrides_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = secret(dir.path(), "redis", "redis://:hunter2@from-file");
        let host = |toml: &str, environment: &[(&str, &str)], flags: &[(&'static str, &str)]| {
            load(toml, environment, flags).map(|config| config.redis_url.login().addr().to_string())
        };
        let (url, file) =
            (("redis_url", "redis://:hunter2@flag"), ("redis_url_file", path.as_str()));
        let variables =
            [("YOINK_REDIS_URL", "redis://:hunter2@variable"), ("YOINK_REDIS_URL_FILE", &path)];
        let toml = [
            "redis_url = 'redis://:hunter2@toml'".to_owned(),
            format!("redis_url_file = '{path}'"),
        ];
        for both in [
            host(&toml.join("\n"), &[], &[]),
            host("", &variables, &[]),
            host("", &[variables[1], variables[0]], &[]),
            host("", &[], &[url, file]),
        ] {
            let problem = both.unwrap_err().to_string();
            assert!(problem.contains("are both set: remove one of them"), "{problem}");
            assert!(
                problem.contains("redis_url_file") && !problem.contains("hunter2"),
                "{problem}"
            );
        }
        for (found, expected) in [
            (host(&toml[0], &variables[1..], &[]), "from-file:6379"),
            (host(&toml[1], &variables[..1], &[]), "variable:6379"),
            (host(&toml[1], &variables[1..], &[url]), "flag:6379"),
            (host(&toml[0], &variables[..1], &[file]), "from-file:6379"),
        ] {
            assert_eq!(found.unwrap(), expected);
        }
    }

    #[test]
    fn problem_of_a_secret_in_a_file_names_the_file_and_not_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = secret(dir.path(), "redis", "redis://:hun ter2@cache");
        let environment = [
            ("YOINK_REDIS_URL_FILE", path.as_str()),
            ("YOINK_POSTGRES_URL_FILE", "/no/such/file"),
            ("YOINK_OTLP_HEADERS_FIL", "x"),
        ];
        let problems = load("", &environment, &[]).unwrap_err().problems;
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("redis_url has a space or a line break"), "{problems:?}");
        assert!(problems[0].contains(&path) && !problems[0].contains("ter2"), "{problems:?}");
        let missing = "postgres_url_file names /no/such/file, which cannot be read: No such file or directory \
                       (os error 2) (in YOINK_POSTGRES_URL_FILE)";
        assert_eq!(problems[1], missing);
    }
}
