//! Every setting: defaults → `yoink.toml` → environment → flags, checked together before anything binds. The settings
//! themselves are declared in `settings.rs`.

mod format;
#[cfg(test)]
mod fuzz;
mod ignored;
mod listen;
mod postgres_tls;
mod postgres_url;
mod redis_url;
mod secret_file;
mod settings;
mod sources;
mod tls;
mod url_text;

use std::path::Path;

use self::sources::Sources;
pub(crate) use self::sources::setting_name;
pub use self::{
    ignored::IgnoredVariables,
    postgres_url::PostgresUrl,
    redis_url::RedisUrl,
    settings::{Config, NAMES, sample, table},
};

/// Whether the workers do something, or operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Automation {
    /// The workers do it.
    Auto,
    /// Operators do it.
    Manual,
}

/// Whether callers must authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    /// Off if gRPC listens on a loopback address and no proxy is trusted; a checked [`Config`] has `Required` or `Off`
    /// instead.
    Auto,
    /// A call without valid credentials is refused.
    Required,
    /// Every caller may make every call.
    Off,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Everything that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[error("the settings are wrong:\n  {}", .problems.join("\n  "))]
pub struct ConfigError {
    /// One sentence for each problem.
    pub problems: Vec<String>,
}

impl Config {
    /// Reads `file` (if it exists; it must exist if it was `named`), the environment, then `flags`. An error has every
    /// problem.
    pub fn load(
        file: &Path,
        named: bool,
        flags: &[(&'static str, String)],
    ) -> Result<Self, ConfigError> {
        if named && !file.exists() {
            let problems = vec![format!("{} does not exist", file.display())];
            return Err(ConfigError { problems });
        }
        Self::of(Sources::gather(file, std::env::vars_os(), flags)?)
    }

    /// The defaults. They are valid, which a test checks.
    pub fn defaults() -> Result<Self, ConfigError> {
        Self::of(Sources::default())
    }

    fn of(mut sources: Sources) -> Result<Self, ConfigError> {
        let config = Self::read(&mut sources);
        let mut problems = sources.problems;
        if let Some(mut config) = config {
            // An address that is wrong was replaced by its default, which is not compared.
            let names_listener = |problem: &String| {
                problem.starts_with("grpc_listen ") || problem.starts_with("http_listen ")
            };
            let both_valid = !problems.iter().any(names_listener);
            if both_valid && listen::conflict(config.grpc_listen, config.http_listen) {
                let problem = "grpc_listen and http_listen must differ: both take the same port";
                problems.push(problem.to_owned());
            }
            problems.extend(tls::problems(&config));
            if config.authentication == Authentication::Auto {
                let reachable = config.is_reachable_from_the_network();
                config.authentication =
                    if reachable { Authentication::Required } else { Authentication::Off };
            }
            problems.extend(config.jwt_problems());
            if problems.is_empty() {
                return Ok(config);
            }
        }
        Err(ConfigError { problems })
    }

    /// What is wrong with the settings of JWTs together. Without an issuer and an audience, a token that was issued for
    /// another program would be accepted.
    fn jwt_problems(&self) -> Vec<String> {
        let (file, url) = (self.jwt_jwks_file.is_some(), self.jwt_jwks_url.is_some());
        let needed = [
            ("jwt_issuer", self.jwt_issuer.is_empty()),
            ("jwt_audience", self.jwt_audience.is_empty()),
            ("jwt_user_claim", self.jwt_user_claim.is_empty()),
            ("jwt_algorithms", self.jwt_algorithms.is_empty()),
        ];
        let missing = needed.into_iter().filter(|(_, empty)| *empty && (file || url));
        let source = if file { "jwt_jwks_file" } else { "jwt_jwks_url" };
        let missing = missing.map(|(name, _)| format!("{name} must be set, because {source} is"));
        let both = (file && url).then(|| "set jwt_jwks_file or jwt_jwks_url, not both".to_owned());
        let is_https =
            self.jwt_jwks_url.as_ref().is_some_and(|uri| uri.scheme_str() == Some("https"));
        let unused = (self.jwt_jwks_ca_file.is_some() && !is_https).then(|| {
            "jwt_jwks_ca_file has no effect: jwt_jwks_url does not begin with https://".to_owned()
        });
        missing.chain(both).chain(unused).collect()
    }

    /// Whether callers from other machines can make every call.
    pub fn is_open_to_the_network(&self) -> bool {
        self.authentication == Authentication::Off && self.is_reachable_from_the_network()
    }

    /// Whether calls may come from other machines: directly, or by a proxy on this one.
    fn is_reachable_from_the_network(&self) -> bool {
        !self.grpc_listen.ip().is_loopback() || !self.trusted_proxies.is_empty()
    }

    /// The most connections to Postgres that a process opens: those of its pools, one for the beats of a worker, one for
    /// each partition that it opens or rebuilds (5 at a time), one for a scrape.
    pub fn ledger_connections(&self) -> u32 {
        let pools =
            [self.pool_workers, self.pool_operators, self.pool_lookups, self.pool_maintenance];
        pools.iter().sum::<u32>() + 7
    }
}

/// The longest part of a value that a message repeats.
const SHOWN_CHARS_MAX: usize = 60;

/// A value of a setting, short and escaped for a message.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(SHOWN_CHARS_MAX).collect::<String>())
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::*;

    fn load(flags: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
        let flags: Vec<_> =
            flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Config::load(Path::new("none.toml"), false, &flags)
    }

    #[test]
    fn defaults_are_those_of_the_design() {
        let config = Config::defaults().unwrap();
        assert_eq!(config.grpc_listen.to_string(), "127.0.0.1:50051");
        assert_eq!(config.http_listen.to_string(), "127.0.0.1:9464");
        assert_eq!(config.partitions.get(), 8);
        assert_eq!((config.deliveries_max, config.takeover_idle_ms), (3, 30_000));
        assert_eq!(
            (config.backlog_max_entries, config.idempotency_window_ms),
            (500_000, 259_200_000)
        );
        assert!(!config.reflection);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let flags = [
            ("grpc_listen", "nonsense"),
            ("partitions", "many"),
            ("key_prefix", "a{b}"),
            ("deliveries_max", "0"),
            ("redis_url", "redis://host:notaport"),
            ("postgres_url", "http://x"),
            ("log_filter", "info=debug=warn"),
            ("ack", "fsync"),
            ("otlp_headers", "secret"),
            ("unknown", "1"),
        ];
        let error = load(&flags).unwrap_err();
        for (name, _) in &flags {
            assert!(error.problems.iter().any(|problem| problem.contains(name)), "{name}: {error}");
        }
        assert_eq!(error.problems.len(), flags.len(), "{error}");
    }

    #[test]
    fn flags_win_and_unknown_names_are_refused() {
        assert_eq!(load(&[("key_prefix", "mine")]).unwrap().key_prefix, "mine");
        let none = Path::new("none.toml");
        assert!(Config::load(none, true, &[]).is_err(), "a file that was named must exist");
        assert!(load(&[("nonsense", "1")]).unwrap_err().to_string().contains("nonsense"));
    }

    #[test]
    fn reflection_is_on_or_off() {
        for (word, on) in [("on", true), ("true", true), ("off", false), ("false", false)] {
            assert_eq!(load(&[("reflection", word)]).unwrap().reflection, on);
        }
        for word in ["auto", "perhaps"] {
            assert!(load(&[("reflection", word)]).is_err(), "{word}");
        }
    }

    #[test]
    fn authentication_is_required_beyond_loopback_unless_it_is_switched_off() {
        let everywhere = ("grpc_listen", "0.0.0.0:1");
        assert_eq!(load(&[]).unwrap().authentication, Authentication::Off);
        let config = load(&[everywhere]).unwrap();
        assert_eq!(config.authentication, Authentication::Required);
        assert!(!config.is_open_to_the_network());
        let config = load(&[everywhere, ("authentication", "off")]).unwrap();
        assert_eq!(config.authentication, Authentication::Off);
        assert!(config.is_open_to_the_network());
        let config = load(&[("authentication", "required")]).unwrap();
        assert_eq!(config.authentication, Authentication::Required);
        assert!(!config.reflection, "off unless it is asked for");
    }

    #[test]
    fn authentication_is_required_behind_a_proxy_on_this_machine() {
        let proxy = ("trusted_proxies", "127.0.0.1");
        assert_eq!(load(&[proxy]).unwrap().authentication, Authentication::Required);
        let config = load(&[proxy, ("authentication", "off")]).unwrap();
        assert_eq!(config.authentication, Authentication::Off);
        assert!(config.is_open_to_the_network());
    }

    #[test]
    fn keys_of_jwts_need_an_issuer_and_an_audience() {
        let file = ("jwt_jwks_file", "jwks.json");
        let error = load(&[file]).unwrap_err();
        assert_eq!(error.problems.len(), 2, "{error}");
        assert!(error.to_string().contains("jwt_issuer must be set"), "{error}");
        let both = [file, ("jwt_issuer", "https://id.example"), ("jwt_audience", "yoink")];
        assert_eq!(load(&both).unwrap().jwt_role_claim, None);
        let error = load(&[("jwt_algorithms", "RS256,HS256")]).unwrap_err();
        assert!(error.to_string().contains("\"HS256\", which is not one of"), "{error}");
        let url = ("jwt_jwks_url", "https://id.example/keys");
        let error = load(&[url, both[1], both[2], file]).unwrap_err();
        assert!(error.to_string().contains("not both"), "{error}");
        let authorities = ("jwt_jwks_ca_file", "ca.pem");
        load(&[url, both[1], both[2], authorities]).unwrap();
        let error = load(&[both[0], both[1], both[2], authorities]).unwrap_err();
        assert!(error.to_string().contains("jwt_jwks_ca_file has no effect"), "{error}");
    }

    #[test]
    fn proxies_are_addresses_or_networks() {
        let proxies =
            |text: &str| load(&[("trusted_proxies", text)]).map(|config| config.trusted_proxies);
        assert!(proxies("").unwrap().is_empty());
        let two = proxies("127.0.0.1, fd00::/8").unwrap();
        assert_eq!(
            two.iter().map(IpNet::to_string).collect::<Vec<_>>(),
            ["127.0.0.1/32", "fd00::/8"]
        );
        assert!(proxies("::ffff:10.0.0.0/104").is_err());
        assert!(proxies("10.0.0.1,edge").unwrap_err().to_string().contains("edge"));
    }

    #[test]
    fn no_secret_is_shown() {
        let config = load(&[
            ("redis_url", "redis://:hunter2@cache:6379"),
            ("postgres_url", "postgres://ann:hunter2@db/yoink?password=hunter2"),
            ("otlp_headers", "authorization=hunter2"),
        ]);
        let config = config.unwrap();
        assert!(!config.to_string().contains("hunter2"));
        assert!(!format!("{config:?}").contains("hunter2"));
        let parts = format!("{:?} {:?}", config.redis_url, config.postgres_url);
        assert!(!parts.contains("hunter2"), "{parts}");
    }
}
