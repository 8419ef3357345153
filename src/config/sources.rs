//! Where settings are written: `yoink.toml`, the environment, flags. The last one that names a setting applies.
//!
//! A value of the environment or of a flag is taken as it is written: only its setting decides whether it is a number,
//! and quotation marks, brackets and leading zeros have no meaning.
//!
//! Must never: repeat the value of a secret.

use std::{collections::BTreeMap, ffi::OsString, fmt, fs, path::Path};

use toml::{Spanned, Value};

use super::{
    ConfigError, NAMES,
    format::Format,
    ignored::IgnoredVariables,
    secret_file,
    settings::{SECRETS, Secret},
};

const PREFIX: &str = "YOINK_";
/// Variables that other code reads: the commit of a build, and what tests set for a development build.
const OTHER_VARIABLES: [&str; 3] = ["COMMIT", "CRASH_POINT", "START_LIMIT_MS"];

/// A place where settings are written. A later one overrides an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    SettingsFile,
    Environment,
    Flags,
}

/// A value as written.
#[derive(Clone)]
struct Written {
    text: String,
    /// Whether TOML read it as a number, which may have underscores.
    is_toml_number: bool,
    place: Place,
    /// Where to correct it.
    source: String,
}

/// Without the value, which may be a secret.
impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Every value that is written somewhere.
#[derive(Debug, Default)]
pub(super) struct Sources {
    values: BTreeMap<&'static str, Written>,
    pub(super) problems: Vec<String>,
    pub(super) ignored: IgnoredVariables,
}

impl Sources {
    /// The file (if it exists; then it must be valid TOML), then the environment, then the flags.
    pub(super) fn gather(
        file: &Path,
        environment: impl Iterator<Item = (OsString, OsString)>,
        flags: &[(&'static str, String)],
    ) -> Result<Self, ConfigError> {
        let mut this = Self::default();
        if file.exists() {
            let failed = |problem: String| ConfigError {
                problems: vec![format!("{}: {problem}", file.display())],
            };
            let text = fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
            this.file(file, &text).map_err(failed)?;
        }
        for (name, value) in environment {
            this.variable(&name, value);
        }
        this.ignored.unknown.sort();
        this.ignored.kubernetes.sort();
        for (name, value) in flags {
            this.set(name, value.clone(), Place::Flags, "in --set");
        }
        Ok(this)
    }

    /// The value of a setting, or its default where it is not written. If the value is wrong, this notes the problem
    /// and returns the default, so that one run finds every problem.
    pub(super) fn read<T>(
        &mut self,
        name: &'static str,
        default: &str,
        format: &Format<T>,
    ) -> Option<T> {
        match self.written(name) {
            Ok(None) => {}
            Ok(Some(Written { text, is_toml_number, source, .. })) => {
                let digits = text.replace('_', "");
                let text = if format.is_number && is_toml_number { &digits } else { &text };
                match (format.parse)(text) {
                    Ok(value) => return Some(value),
                    Err(problem) => self.problems.push(format!("{name} {problem} ({source})")),
                }
            }
            Err(problem) => self.problems.push(problem),
        }
        let value = (format.parse)(default);
        value.map_err(|problem| self.problems.push(format!("{name} {problem} (default)"))).ok()
    }

    /// What is written for a setting, or in the file that is named for it.
    fn written(&self, name: &str) -> Result<Option<Written>, String> {
        let file = Secret::named(name)
            .and_then(|secret| Some((secret.file_name, self.values.get(secret.file_name)?)));
        let Some((file_name, Written { text: path, source, .. })) = file else {
            return Ok(self.values.get(name).cloned());
        };
        let written = secret_file::read(path).map(|text| Written {
            text,
            source: format!("in {path}, which {file_name} names {source}"),
            is_toml_number: false,
            place: Place::SettingsFile,
        });
        written.map(Some).map_err(|problem| format!("{file_name} {problem} ({source})"))
    }

    fn set(&mut self, name: &str, text: String, place: Place, source: &str) {
        let name = match setting_name(name) {
            Ok(name) => name,
            Err(problem) => return self.problems.push(format!("{problem} ({source})")),
        };
        // Of a secret and its file, the one that is written last applies, as everywhere. In one place, none is the last.
        let of_file = Secret::of_file(name).map(|secret| secret.name);
        let other = of_file.or_else(|| Secret::named(name).map(|secret| secret.file_name));
        if let Some(other) = other
            && let Some(written) = self.values.remove(other)
            && written.place == place
        {
            self.problems.push(format!(
                "{other} and {name} are both set: remove one of them ({}, {source})",
                written.source
            ));
        }
        let source = source.to_owned();
        self.values.insert(name, Written { text, is_toml_number: false, place, source });
    }

    fn file(&mut self, file: &Path, text: &str) -> Result<(), String> {
        let table: BTreeMap<String, Spanned<Value>> = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            format!("line {line}: {}", error.message().lines().next().unwrap_or("not valid TOML"))
        })?;
        let source = format!("in {}", file.display());
        for (name, value) in table {
            let written = text.get(value.span()).unwrap_or_default().to_owned();
            let value = value.into_inner();
            let is_toml_number = matches!(value, Value::Integer(_) | Value::Float(_));
            let text = match value {
                Value::String(text) => text,
                // As it is written: 8.0, 1e1 and 0x10 are not whole numbers in the environment either.
                Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
                    written
                }
                Value::Array(_) | Value::Table(_) => {
                    let problem = setting_name(&name).map_or_else(
                        |problem| problem,
                        |name| format!("{name} must be text, a number or a boolean"),
                    );
                    self.problems.push(format!("{problem} ({source})"));
                    continue;
                }
            };
            self.set(&name, text, Place::SettingsFile, &source);
            if let Some(written) = self.values.get_mut(name.as_str()) {
                written.is_toml_number = is_toml_number;
            }
        }
        Ok(())
    }

    fn variable(&mut self, name: &OsString, value: OsString) {
        let shown = name.to_string_lossy();
        let begins = shown.get(..PREFIX.len());
        if !begins.is_some_and(|begins| begins.eq_ignore_ascii_case(PREFIX)) {
            return;
        }
        let rest = shown.strip_prefix(PREFIX).unwrap_or_default();
        let is_upper = !rest.contains(|c: char| c.is_ascii_lowercase());
        if let Ok(setting) = setting_name(&rest.to_ascii_lowercase())
            && is_upper
        {
            match value.into_string() {
                Ok(text) => self.set(setting, text, Place::Environment, &format!("in {shown}")),
                Err(_) => self.problems.push(format!("{shown} is not UTF-8")),
            }
        } else if is_from_kubernetes(rest, &value.to_string_lossy()) {
            self.ignored.kubernetes.push(escaped(&shown));
        } else if !OTHER_VARIABLES.contains(&rest) {
            let near = near(&shown[PREFIX.len()..].to_ascii_lowercase());
            let hint = near.map_or(String::new(), |near| {
                format!(" (did you mean {PREFIX}{}?)", near.to_ascii_uppercase())
            });
            self.ignored.unknown.push(format!("{}{hint}", escaped(&shown)));
        }
    }
}

/// Every name that a setting may be written with.
fn names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().copied().chain(SECRETS.iter().map(|secret| secret.file_name))
}

/// The setting that was probably meant.
fn near(name: &str) -> Option<&'static str> {
    if name.len() > 64 {
        return None;
    }
    let close = |known: &&str| strsim::damerau_levenshtein(known, name) <= 1 + known.len() / 6;
    let candidates = names().filter(close);
    candidates.min_by_key(|known| strsim::damerau_levenshtein(known, name))
}

/// A name from outside, short and escaped for a message.
fn escaped(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_debug).collect()
}

/// The setting with this name; an error names a similar one.
pub(crate) fn setting_name(name: &str) -> Result<&'static str, String> {
    names().find(|known| *known == name).ok_or_else(|| {
        // A URL in the place of a name may have a password.
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            return "a name is not that of a setting: it has characters that no setting has"
                .to_owned();
        }
        let hint = near(name).map_or(String::new(), |near| format!("; did you mean {near}?"));
        format!("there is no setting \"{}\"{hint}", escaped(name))
    })
}

/// Whether Kubernetes sets such a variable, with such a value, for a Service `yoink` or `yoink-…`: `rest` is what
/// follows `YOINK_`. No setting has such a name, for any name of the Service.
fn is_from_kubernetes(rest: &str, value: &str) -> bool {
    let is_number = value.parse::<u16>().is_ok();
    let is_port = |word: &str| word.parse::<u16>().is_ok();
    let is_protocol = |word: &str| ["TCP", "UDP", "SCTP"].contains(&word);
    let scheme = value.split_once("://").map(|(scheme, _)| scheme.to_ascii_uppercase());
    let words: Vec<&str> = rest.split('_').collect();
    match words.as_slice() {
        [.., "SERVICE", "HOST"] => true,
        [.., "SERVICE", "PORT"] => is_number,
        [.., "PORT", port, protocol] | [.., "PORT", port, protocol, "PROTO" | "PORT" | "ADDR"]
            if is_port(port) && is_protocol(protocol) =>
        {
            true
        }
        [.., "PORT"] => scheme.is_some_and(|scheme| is_protocol(&scheme)),
        // A port of a Service may have a name: …_SERVICE_PORT_GRPC.
        words => is_number && words.windows(2).any(|pair| pair == ["SERVICE", "PORT"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::format::whole;

    fn gathered(environment: &[(&str, &str)]) -> Sources {
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        Sources::gather(Path::new("no-such-file.toml"), environment, &[]).unwrap()
    }

    /// What Kubernetes sets for a Service with one named and one unnamed port.
    fn injected(service: &str) -> Vec<(String, String)> {
        let service = service.to_ascii_uppercase().replace(['-', '.'], "_");
        let mut all = vec![
            ("SERVICE_HOST".to_owned(), "10.96.0.7".to_owned()),
            ("SERVICE_PORT".to_owned(), "6379".to_owned()),
            ("SERVICE_PORT_GRPC".to_owned(), "50051".to_owned()),
            ("SERVICE_PORT_REDIS_URL".to_owned(), "50051".to_owned()),
            ("PORT".to_owned(), "tcp://10.96.0.7:6379".to_owned()),
        ];
        for (number, protocol) in [(6379, "tcp"), (53, "udp"), (50051, "sctp")] {
            let port = format!("PORT_{number}_{}", protocol.to_ascii_uppercase());
            all.push((port.clone(), format!("{protocol}://10.96.0.7:{number}")));
            all.push((format!("{port}_PROTO"), protocol.to_owned()));
            all.push((format!("{port}_PORT"), number.to_string()));
            all.push((format!("{port}_ADDR"), "10.96.0.7".to_owned()));
        }
        all.into_iter().map(|(form, value)| (format!("{service}_{form}"), value)).collect()
    }

    #[test]
    fn variables_of_kubernetes_are_ignored_whatever_the_name_of_the_service() {
        // A Service may have the name of a setting, or of the first words of one.
        let mut services = vec!["yoink".to_owned(), "yoink-redis".to_owned()];
        for name in names() {
            let words: Vec<&str> = name.split('_').collect();
            let beginnings = (1..=words.len()).map(|length| words[..length].join("-"));
            services.extend(beginnings.map(|words| format!("yoink-{words}")));
        }
        for service in services {
            let injected = injected(&service);
            let pairs: Vec<_> = injected.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let found = gathered(&pairs);
            assert!(found.values.is_empty(), "{service}: {:?}", found.values);
            assert!(found.problems.is_empty() && found.ignored.unknown.is_empty(), "{found:?}");
            assert_eq!(found.ignored.kubernetes.len(), injected.len(), "{service}");
        }
        for name in names().map(str::to_ascii_uppercase) {
            for value in ["10.96.0.7", "6379", "tcp://10.96.0.7:6379"] {
                assert!(!is_from_kubernetes(&name, value), "{name}");
            }
        }
    }

    #[test]
    fn unknown_variables_are_listed_with_a_similar_setting_and_without_values() {
        let found = gathered(&[
            ("YOINK_POSTGRE_URL", "postgres://ann:hunter2@db/yoink"),
            ("YOINK_HTTP_PORT", "9464"),
            ("yoink_log_filter", "debug"),
            ("YOINK_\u{1b}[31m", "x"),
            ("YOINK_COMMIT", "abc"),
            ("PATH", "/bin"),
        ]);
        let warning = found.ignored.warning().unwrap();
        for name in ["YOINK_POSTGRE_URL (did you mean YOINK_POSTGRES_URL?)", "YOINK_HTTP_PORT"] {
            assert!(warning.contains(name), "{warning}");
        }
        assert!(warning.contains("yoink_log_filter (did you mean YOINK_LOG_FILTER?)"), "{warning}");
        for absent in ["hunter2", "9464", "COMMIT", "PATH", "\u{1b}"] {
            assert!(!warning.contains(absent), "{warning}");
        }
        assert_eq!(gathered(&[]).ignored.warning(), None);
        let many: Vec<String> = (0..30).map(|n| format!("YOINK_NO_SUCH_{n}")).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), "")).collect();
        assert!(gathered(&many).ignored.warning().unwrap().ends_with(" and 10 more"));
    }

    #[test]
    fn values_of_environment_and_flags_apply_as_written() {
        for value in ["1e3", "007", "123", "true", "[a]", "{a}", "\"a\"", "'a'", " a", "", "0x10"] {
            let found = gathered(&[("YOINK_KEY_PREFIX", value)]);
            assert_eq!(found.values["key_prefix"].text, value);
            let flags = [("key_prefix", value.to_owned())];
            let found = Sources::gather(Path::new("none"), std::iter::empty(), &flags).unwrap();
            assert_eq!(found.values["key_prefix"].text, value);
        }
    }

    #[test]
    fn number_in_the_file_for_a_text_setting_applies_as_written() {
        let mut found = Sources::default();
        let text = "key_prefix = 1e3\nlog_filter = true\npartitions = 1_0\nack = 'disk'\n                    redis_url = ['a']\nredis_ur = ''\n[grpc]\nlisten = 1";
        found.file(Path::new("yoink.toml"), text).unwrap();
        assert_eq!(found.values["key_prefix"].text, "1e3");
        assert_eq!(found.values["log_filter"].text, "true");
        let partitions = found.read("partitions", "8", &whole::<u32>("", 1..=100));
        assert_eq!(partitions, Some(10));
        assert_eq!(found.values["ack"].text, "disk");
        let problems = found.problems.join("\n");
        for problem in ["redis_url must be text", "\"grpc\"", "did you mean redis_url?"] {
            assert!(problems.contains(problem), "{problems}");
        }
        let wrong = found.file(Path::new("yoink.toml"), "a = 1\nb = hunter2\n").unwrap_err();
        assert!(wrong.starts_with("line 2: ") && !wrong.contains("hunter2"), "{wrong}");
    }

    #[test]
    fn variable_that_is_not_utf_8_is_reported_by_name() {
        use std::os::unix::ffi::OsStringExt as _;
        let value = OsString::from_vec(vec![0xff]);
        let environment = [("YOINK_LOG_FILTER".into(), value)].into_iter();
        let found = Sources::gather(Path::new("none"), environment, &[]).unwrap();
        assert_eq!(found.problems, ["YOINK_LOG_FILTER is not UTF-8"]);
    }
}
