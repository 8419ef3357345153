//! Every setting: defaults → `yoink.toml` → environment → flags, checked together before anything binds.

use std::{fmt, net::SocketAddr, path::Path};

use figment::{
    Figment,
    providers::{Env, Format as _, Serialized, Toml},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::domain::PartitionCount;

/// Whether something happens by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Automation {
    /// It does.
    Auto,
    /// An operator does it.
    Manual,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The settings as written, not yet checked together.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    grpc_listen: String,
    http_listen: String,
    redis_url: String,
    postgres_url: String,
    partitions: u32,
    key_prefix: String,
    reflection: Option<bool>,
    max_deliveries: u32,
    claim_idle_ms: u64,
    backlog_max_entries: u64,
    claims_window_ms: u64,
    replay: Automation,
    recovery: Automation,
    log: String,
    log_format: LogFormat,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            grpc_listen: "127.0.0.1:50051".into(),
            http_listen: "127.0.0.1:9464".into(),
            redis_url: "redis://127.0.0.1:6379".into(),
            postgres_url: "postgres://postgres@127.0.0.1:5432/yoink".into(),
            partitions: 8,
            key_prefix: "yoink".into(),
            reflection: None,
            max_deliveries: 3,
            claim_idle_ms: 30_000,
            backlog_max_entries: 500_000,
            claims_window_ms: 43_200_000,
            replay: Automation::Auto,
            recovery: Automation::Auto,
            log: "info".into(),
            log_format: LogFormat::Text,
        }
    }
}

impl Raw {
    /// What is wrong with single settings, apart from the addresses.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let scheme =
            |url: &str, schemes: &[&str]| schemes.iter().any(|scheme| url.starts_with(scheme));
        require(
            scheme(&self.redis_url, &["redis://", "rediss://"]),
            "redis_url must start with redis:// or rediss://",
        );
        require(
            scheme(&self.postgres_url, &["postgres://", "postgresql://"]),
            "postgres_url must start with postgres://",
        );
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        require(
            !self.key_prefix.is_empty()
                && self.key_prefix.len() <= 64
                && self.key_prefix.chars().all(plain),
            "key_prefix must match [A-Za-z0-9._:-]{1,64}",
        );
        require((1..=100).contains(&self.max_deliveries), "max_deliveries must be 1 to 100");
        require(
            (100..=86_400_000).contains(&self.claim_idle_ms),
            "claim_idle_ms must be 100 to 86400000 (a day)",
        );
        require(self.backlog_max_entries > 0, "backlog_max_entries must be at least 1");
        require(
            (1_000..=31_536_000_000).contains(&self.claims_window_ms),
            "claims_window_ms must be 1000 to 31536000000 (a year)",
        );
        problems
    }
}

/// Every setting, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where gRPC listens.
    pub grpc_listen: SocketAddr,
    /// Where `/healthz` and `/readyz` listen.
    pub http_listen: SocketAddr,
    /// Redis; may hold a password.
    pub redis_url: SecretString,
    /// Postgres; may hold a password.
    pub postgres_url: SecretString,
    /// Fixed when the database is first initialised.
    pub partitions: PartitionCount,
    /// Every Redis key starts with it.
    pub key_prefix: String,
    /// Whether clients may ask for the contract.
    pub reflection: bool,
    /// Attempts at storing an order before it is given up on.
    pub max_deliveries: u32,
    /// An entry that nobody touched for so long is taken over, in milliseconds.
    pub claim_idle_ms: u64,
    /// Most entries in a partition's orders stream before intake is refused.
    pub backlog_max_entries: u64,
    /// How long a request id is remembered at least, in milliseconds.
    pub claims_window_ms: u64,
    /// Whether dead entries are voided and released by themselves.
    pub replay: Automation,
    /// Whether a fenced partition is rebuilt by itself.
    pub recovery: Automation,
    /// What is logged, as `tracing` filters are written.
    pub log: String,
    /// How.
    pub log_format: LogFormat,
}

/// Everything that is wrong with the settings, each line naming one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// One sentence a problem.
    pub problems: Vec<String>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the settings are wrong:")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

const PREFIX: &str = "YOINK_";
/// Read at other places than here: a build's commit, and a crash that a test asked for.
const NOT_SETTINGS: [&str; 2] = ["COMMIT", "CRASH_POINT"];

impl Config {
    /// Reads `file` (if it exists, or if it was `named` it must), the environment, then `flags`.
    ///
    /// # Errors
    ///
    /// Every problem at once.
    pub fn load(
        file: &Path,
        named: bool,
        flags: &[(&'static str, String)],
    ) -> Result<Self, ConfigError> {
        if named && !file.exists() {
            let problems = vec![format!("{} does not exist", file.display())];
            return Err(ConfigError { problems });
        }
        let environment = Env::prefixed(PREFIX).ignore(&NOT_SETTINGS);
        let mut figment = Figment::from(Serialized::defaults(Raw::default()));
        if file.exists() {
            figment = figment.merge(Toml::file_exact(file));
        }
        figment = figment.merge(environment);
        for (name, value) in flags {
            // Read as the environment is: a number is a number.
            let Ok(value) = value.parse::<figment::value::Value>();
            figment = figment.merge((*name, value));
        }
        let raw: Raw = figment.extract().map_err(|errors| ConfigError {
            problems: errors.into_iter().map(|error| error.to_string()).collect(),
        })?;
        Self::check(raw)
    }

    /// The defaults.
    ///
    /// # Errors
    ///
    /// Never in a released build: a test holds them valid.
    pub fn defaults() -> Result<Self, ConfigError> {
        Self::check(Raw::default())
    }

    fn check(raw: Raw) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut address = |name: &str, text: &str| {
            text.parse::<SocketAddr>().map_err(|_| {
                problems
                    .push(format!("{name} is not an address such as 127.0.0.1:50051: {text:?}"));
            })
        };
        let grpc_listen = address("grpc_listen", &raw.grpc_listen);
        let http_listen = address("http_listen", &raw.http_listen);
        let partitions = PartitionCount::try_from(raw.partitions)
            .map_err(|error| problems.push(format!("partitions {error}")));
        problems.extend(raw.problems());
        if let (Ok(grpc), Ok(http)) = (grpc_listen, http_listen)
            && grpc == http
            && grpc.port() != 0
        {
            problems.push("grpc_listen and http_listen must differ".to_owned());
        }
        if let (Ok(grpc_listen), Ok(http_listen), Ok(partitions), true) =
            (grpc_listen, http_listen, partitions, problems.is_empty())
        {
            return Ok(Self {
                grpc_listen,
                http_listen,
                redis_url: raw.redis_url.into(),
                postgres_url: raw.postgres_url.into(),
                partitions,
                key_prefix: raw.key_prefix,
                reflection: raw.reflection.unwrap_or(grpc_listen.ip().is_loopback()),
                max_deliveries: raw.max_deliveries,
                claim_idle_ms: raw.claim_idle_ms,
                backlog_max_entries: raw.backlog_max_entries,
                claims_window_ms: raw.claims_window_ms,
                replay: raw.replay,
                recovery: raw.recovery,
                log: raw.log,
                log_format: raw.log_format,
            });
        }
        Err(ConfigError { problems })
    }
}

/// The settings as they apply, in the form of `yoink.toml`, secrets hidden.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |auto: Automation| {
            if auto == Automation::Auto { "auto" } else { "manual" }
        };
        writeln!(f, "grpc_listen = \"{}\"", self.grpc_listen)?;
        writeln!(f, "http_listen = \"{}\"", self.http_listen)?;
        writeln!(f, "redis_url = \"{}\"", without_password(self.redis_url.expose_secret()))?;
        writeln!(f, "postgres_url = \"{}\"", without_password(self.postgres_url.expose_secret()))?;
        writeln!(f, "partitions = {}", self.partitions.get())?;
        writeln!(f, "key_prefix = \"{}\"", self.key_prefix)?;
        writeln!(f, "reflection = {}", self.reflection)?;
        writeln!(f, "max_deliveries = {}", self.max_deliveries)?;
        writeln!(f, "claim_idle_ms = {}", self.claim_idle_ms)?;
        writeln!(f, "backlog_max_entries = {}", self.backlog_max_entries)?;
        writeln!(f, "claims_window_ms = {}", self.claims_window_ms)?;
        writeln!(f, "replay = \"{}\"", word(self.replay))?;
        writeln!(f, "recovery = \"{}\"", word(self.recovery))?;
        writeln!(f, "log = \"{}\"", self.log)?;
        let format = if self.log_format == LogFormat::Json { "json" } else { "text" };
        write!(f, "log_format = \"{format}\"")
    }
}

/// An address without what stands between the user's name and the host, and without its query.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    match rest.rsplit_once('@') {
        None => format!("{scheme}://{rest}"),
        Some((login, host)) => match login.split_once(':') {
            None => format!("{scheme}://{login}@{host}"),
            Some((user, _)) => format!("{scheme}://{user}:***@{host}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_designs() {
        let config = Config::defaults().unwrap();
        assert_eq!(config.grpc_listen.to_string(), "127.0.0.1:50051");
        assert_eq!(config.http_listen.to_string(), "127.0.0.1:9464");
        assert_eq!(config.partitions.get(), 8);
        assert_eq!((config.max_deliveries, config.claim_idle_ms), (3, 30_000));
        assert_eq!((config.backlog_max_entries, config.claims_window_ms), (500_000, 43_200_000));
        assert!(config.reflection, "on for loopback");
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let raw = Raw {
            grpc_listen: "nonsense".into(),
            partitions: 0,
            key_prefix: "a{b}".into(),
            max_deliveries: 0,
            redis_url: "http://x".into(),
            ..Raw::default()
        };
        let error = Config::check(raw).unwrap_err();
        for name in ["grpc_listen", "partitions", "key_prefix", "max_deliveries", "redis_url"] {
            assert!(error.problems.iter().any(|problem| problem.starts_with(name)), "{name}");
        }
    }

    #[test]
    fn flags_win_and_unknown_names_are_refused() {
        let none = Path::new("does-not-exist.toml");
        let config = Config::load(none, false, &[("key_prefix", "mine".into())]).unwrap();
        assert_eq!(config.key_prefix, "mine");
        assert!(Config::load(none, true, &[]).is_err(), "a file that was named must exist");
        let error = Config::load(none, false, &[("nonsense", "1".into())]).unwrap_err();
        assert!(error.to_string().contains("nonsense"));
    }

    #[test]
    fn no_password_is_shown() {
        let flags = [
            ("redis_url", "redis://:hunter2@cache:6379".to_owned()),
            ("postgres_url", "postgres://ann:hunter2@db/yoink?password=hunter2".to_owned()),
        ];
        let config = Config::load(Path::new("none.toml"), false, &flags).unwrap();
        assert!(!config.to_string().contains("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
