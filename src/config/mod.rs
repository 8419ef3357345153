//! Every setting: defaults → `yoink.toml` → environment → flags, checked together before anything binds.

mod checks;
mod listen;
mod postgres_url;
mod raw;
mod redis_url;
mod show;
mod sources;
mod url_text;

use std::{fmt, net::SocketAddr, path::Path};

use ipnet::IpNet;

pub(crate) use self::sources::no_such_setting;
pub use self::{raw::NAMES, sources::IgnoredVariables};
use self::{raw::Raw, sources::Sources};
use crate::domain::{Ack, PartitionCount, ProductId};

/// Whether something happens by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Automation {
    /// It does.
    Auto,
    /// An operator does it.
    Manual,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Every setting, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where gRPC listens.
    pub grpc_listen: SocketAddr,
    /// Where `/healthz` and `/readyz` listen.
    pub http_listen: SocketAddr,
    /// How to reach Redis: `redis_url`.
    pub redis: redis::ConnectionInfo,
    /// How to reach Postgres: `postgres_url`, for everything that connects to it.
    pub postgres: tokio_postgres::Config,
    /// Fixed when the database is first initialised.
    pub partitions: PartitionCount,
    /// Every Redis key starts with it.
    pub key_prefix: String,
    /// Whether clients may ask for the contract.
    pub reflection: bool,
    /// Attempts at storing an order before it is given up on.
    pub max_deliveries: u32,
    /// An entry that nobody touched for so long is taken over, in milliseconds.
    pub takeover_idle_ms: u64,
    /// Most entries in a partition's orders stream before intake is refused.
    pub backlog_max_entries: u64,
    /// How long a request id is remembered at least, in milliseconds.
    pub idempotency_window_ms: u64,
    /// When an accepted reservation is answered, unless its call asks for something else.
    pub ack: Ack,
    /// How many replicas of Redis `ack = replica` waits for.
    pub ack_replicas: u32,
    /// Whether dead entries are voided and released by themselves.
    pub dead_letter_release: Automation,
    /// Whether a fenced partition is rebuilt by itself.
    pub recovery: Automation,
    /// Between two audits that a worker makes by itself, in milliseconds; 0: none.
    pub audit_interval_ms: u64,
    /// Most calls of buyers under way at once; one more is refused.
    pub concurrency_max_calls: u32,
    /// Calls that a client's address may make in a second (and at once); 0: as many as it likes.
    pub address_calls_per_second: u32,
    /// Reservations that a user may ask for in a second (and at once); 0: as many as they like.
    pub user_calls_per_second: u32,
    /// How long a call may take, whatever its caller says, in milliseconds; operators' calls aside.
    pub call_timeout_ms: u64,
    /// Largest message of a buyer, in bytes.
    pub request_max_bytes: usize,
    /// Largest head of a call, in bytes.
    pub header_max_bytes: u32,
    /// Most calls under way on one connection; more wait at the client.
    pub connection_max_streams: u32,
    /// Most gRPC connections at the same time; one more is closed at once.
    pub connections_max: u32,
    /// How long a gRPC connection lasts before its client is asked to open a new one, in milliseconds; 0: no limit.
    pub connection_max_age_ms: u64,
    /// Whether a reservation without a request id is refused.
    pub require_request_id: bool,
    /// Peers whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Most connections to Postgres for workers.
    pub pool_workers: u32,
    /// Most connections to Postgres for operators' calls, the catalogue and opening and rebuilding partitions.
    pub pool_operators: u32,
    /// Most connections to Postgres for buyers who look a reservation up.
    pub pool_lookups: u32,
    /// Most connections to Postgres for reads that take long.
    pub pool_maintenance: u32,
    /// Products whose stock is a metric, by name.
    pub metrics_products: Vec<ProductId>,
    /// Where spans are sent, over OTLP in gRPC; nowhere if there is none.
    pub otlp_endpoint: Option<String>,
    /// Metadata of each OTLP export, such as a token: `name=value`, separated by commas. A secret.
    pub otlp_headers: String,
    /// How often metrics are sent to `otlp_endpoint`, in milliseconds; 0: they are not sent.
    pub otlp_metrics_interval_ms: u64,
    /// Share of the calls that are traced, 0 to 1; a caller's own trace goes on, or does not.
    pub trace_sample_ratio: f64,
    /// What is logged, as `tracing` filters are written.
    pub log: String,
    /// How.
    pub log_format: LogFormat,
    /// Variables of the environment that begin like a setting and are not settings.
    pub ignored: IgnoredVariables,
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
        Self::of(Sources::gather(file, std::env::vars_os(), flags)?)
    }

    fn of(sources: Sources) -> Result<Self, ConfigError> {
        let config = Self::check(Raw::read(&sources)?)?;
        Ok(Self { ignored: sources.ignored(), ..config })
    }

    /// The most connections to Postgres that a process opens: those of its pools, one for each partition that it opens
    /// or rebuilds (5 at a time), one for a scrape.
    pub fn ledger_connections(&self) -> u32 {
        let pools =
            [self.pool_workers, self.pool_operators, self.pool_lookups, self.pool_maintenance];
        pools.iter().sum::<u32>() + 6
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
        let mut noted = |problem: String| problems.push(problem);
        let grpc_listen = listen::parse("grpc_listen", &raw.grpc_listen).map_err(&mut noted);
        let http_listen = listen::parse("http_listen", &raw.http_listen).map_err(&mut noted);
        let redis = redis_url::parse(&raw.redis_url);
        let redis = redis.map_err(|problem| noted(format!("redis_url {problem}")));
        let postgres = postgres_url::parse(&raw.postgres_url);
        let postgres = postgres.map_err(|problem| noted(format!("postgres_url {problem}")));
        let partitions = PartitionCount::try_from(raw.partitions)
            .map_err(|error| problems.push(format!("partitions {error}")));
        let trusted_proxies = raw.trusted_proxies().map_err(|problem| problems.push(problem));
        let products = raw.metrics_products().map_err(|problem| problems.push(problem));
        let ack = raw.ack().map_err(|problem| problems.push(problem));
        problems.extend(raw.problems());
        if let (Ok(grpc), Ok(http)) = (grpc_listen, http_listen)
            && listen::conflict(grpc, http)
        {
            problems.push(
                "grpc_listen and http_listen must differ: both take the same port".to_owned(),
            );
        }
        if let (Ok(grpc_listen), Ok(http_listen), Ok(partitions), true) =
            (grpc_listen, http_listen, partitions, problems.is_empty())
            && let (Ok(trusted_proxies), Ok(metrics_products), Ok(ack)) =
                (trusted_proxies, products, ack)
            && let (Ok(redis), Ok(postgres)) = (redis, postgres)
        {
            return Ok(Self {
                grpc_listen,
                http_listen,
                redis,
                postgres,
                partitions,
                key_prefix: raw.key_prefix,
                reflection: raw.reflection.applies(grpc_listen),
                max_deliveries: raw.max_deliveries,
                takeover_idle_ms: raw.takeover_idle_ms,
                backlog_max_entries: raw.backlog_max_entries,
                idempotency_window_ms: raw.idempotency_window_ms,
                ack,
                ack_replicas: raw.ack_replicas,
                dead_letter_release: raw.dead_letter_release,
                recovery: raw.recovery,
                audit_interval_ms: raw.audit_interval_ms,
                concurrency_max_calls: raw.concurrency_max_calls,
                address_calls_per_second: raw.address_calls_per_second,
                user_calls_per_second: raw.user_calls_per_second,
                call_timeout_ms: raw.call_timeout_ms,
                request_max_bytes: raw.request_max_bytes,
                header_max_bytes: raw.header_max_bytes,
                connection_max_streams: raw.connection_max_streams,
                connections_max: raw.connections_max,
                connection_max_age_ms: raw.connection_max_age_ms,
                require_request_id: raw.require_request_id,
                trusted_proxies,
                pool_workers: raw.pool_workers,
                pool_operators: raw.pool_operators,
                pool_lookups: raw.pool_lookups,
                pool_maintenance: raw.pool_maintenance,
                metrics_products,
                otlp_endpoint: Some(raw.otlp_endpoint).filter(|endpoint| !endpoint.is_empty()),
                otlp_headers: raw.otlp_headers,
                otlp_metrics_interval_ms: raw.otlp_metrics_interval_ms,
                trace_sample_ratio: raw.trace_sample_ratio,
                log: raw.log,
                log_format: raw.log_format,
                ignored: IgnoredVariables::default(),
            });
        }
        Err(ConfigError { problems })
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
        assert_eq!((config.max_deliveries, config.takeover_idle_ms), (3, 30_000));
        assert_eq!(
            (config.backlog_max_entries, config.idempotency_window_ms),
            (500_000, 259_200_000)
        );
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
            postgres_url: "http://x".into(),
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
    fn problems_of_every_kind_are_told_together() {
        let flags = [
            ("partitions", "many".to_owned()),
            ("log", "info=debug=warn".to_owned()),
            ("redis_url", "redis://host:notaport".to_owned()),
            ("nonsense", "1".to_owned()),
            ("max_deliveries", "0".to_owned()),
        ];
        let error = Config::load(Path::new("none.toml"), false, &flags).unwrap_err();
        for name in ["partitions", "log", "redis_url", "nonsense", "max_deliveries"] {
            assert!(error.problems.iter().any(|p| p.contains(name)), "{name}: {error}");
        }
    }

    #[test]
    fn reflection_is_auto_on_or_off() {
        let reflection = |flags: &[(&'static str, String)]| {
            Config::load(Path::new("none.toml"), false, flags).map(|config| config.reflection)
        };
        let everywhere = ("grpc_listen", "0.0.0.0:1".to_owned());
        assert!(!reflection(std::slice::from_ref(&everywhere)).unwrap(), "off beyond loopback");
        for (word, on) in [("on", true), ("true", true), ("off", false), ("false", false)] {
            assert_eq!(reflection(&[everywhere.clone(), ("reflection", word.into())]).unwrap(), on);
        }
        assert!(reflection(&[("reflection", "perhaps".into())]).is_err());
    }

    #[test]
    fn proxies_are_addresses_or_networks() {
        let proxies = |text: &str| {
            let flags = [("trusted_proxies", text.to_owned())];
            Config::load(Path::new("none.toml"), false, &flags).map(|config| config.trusted_proxies)
        };
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
