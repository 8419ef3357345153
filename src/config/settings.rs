//! The table of settings: each is declared here, once.
//!
//! From a declaration come the field of [`Config`], the default, the name in the file, the environment and `--set`, the
//! check, the line of `yoink config check` and of `yoink config sample`, and the row in `docs/operations.md`. A check
//! of several settings together is in `Config::of`.

use std::{fmt, net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use tonic::{metadata::MetadataMap, transport::Uri};

use super::{
    Authentication, Automation, LogFormat,
    format::{self, DAY_MS, Format},
    ignored::IgnoredVariables,
    postgres_url::{self, PostgresUrl},
    redis_url,
    sources::Sources,
};
use crate::{
    domain::{Ack, CertificateRole, JwtAlgorithm, PartitionCount, ProductId},
    tls::{ClientAuth, PemFile},
};

/// A setting as it is shown to operators.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    /// The values that it accepts.
    pub(super) values: String,
    /// Whether `yoink.toml` has the value without quotation marks.
    pub(super) is_number: bool,
    /// What it is for.
    pub(super) doc: &'static str,
    /// The setting that names a file with its value, if it is a secret.
    pub(super) file_name: Option<&'static str>,
    /// Its value in a configuration, secrets hidden.
    pub(super) show: fn(&Config) -> String,
}

/// A setting that holds a secret, and the one that names a file with its value.
pub(super) struct Secret {
    pub(super) name: &'static str,
    pub(super) file_name: &'static str,
}

impl Secret {
    /// The secret setting with this name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        SECRETS.iter().find(|secret| secret.name == name)
    }

    /// The one whose file this setting names.
    pub(super) fn of_file(file_name: &str) -> Option<&'static Self> {
        SECRETS.iter().find(|secret| secret.file_name == file_name)
    }
}

macro_rules! declared_secret {
    (secret $field:ident) => {
        Secret { name: stringify!($field), file_name: concat!(stringify!($field), "_file") }
    };
}

/// `/// documentation` and `name: type = "default", format;` for each setting, and `, secret` in front of the semicolon
/// where the value is a secret: it may then be in a file.
macro_rules! settings {
    ($(
        $(#[doc = $doc:literal])+
        $field:ident: $type:ty = $default:literal, $format:expr $(, $secret:ident)?;
    )+) => {
        /// Every setting, checked.
        #[derive(Clone)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $field: $type,)+
            /// Variables of the environment that begin like a setting and are not settings.
            pub ignored: IgnoredVariables,
        }

        /// The names of the settings.
        pub const NAMES: &[&str] = &[$(stringify!($field)),+];

        /// The settings that hold a secret.
        pub(super) const SECRETS: &[Secret] = &[$($(declared_secret!($secret $field),)?)+];

        impl Config {
            /// Reads each setting by itself. One that is wrong adds to the problems and has its default.
            pub(super) fn read(sources: &mut Sources) -> Option<Self> {
                $(let $field = sources.read(stringify!($field), $default, &$format);)+
                Some(Self { $($field: $field?,)+ ignored: std::mem::take(&mut sources.ignored) })
            }
        }

        /// Every setting, in order.
        pub(super) fn declared() -> Vec<Setting> {
            vec![$({
                let format: Format<$type> = $format;
                Setting {
                    name: stringify!($field),
                    default: $default,
                    values: format.values,
                    is_number: format.is_number,
                    doc: concat!($($doc),+).trim_start(),
                    file_name: Secret::named(stringify!($field)).map(|secret| secret.file_name),
                    show: |config| {
                        let format: Format<$type> = $format;
                        (format.show)(&config.$field)
                    },
                }
            }),+]
        }
    };
}

settings! {
    /// Where gRPC listens: `address:port`, `localhost:port` (127.0.0.1) or `:port` (0.0.0.0, every IPv4 address;
    /// `[::]:port` is every address of both families). Other names are not resolved.
    grpc_listen: SocketAddr = "127.0.0.1:50051", format::address();
    /// Where `/healthz`, `/readyz` and `/metrics` listen, written like `grpc_listen`.
    http_listen: SocketAddr = "127.0.0.1:9464", format::address();
    /// The certificate of this service, with its intermediate certificates. With it, both listeners use TLS (below).
    tls_cert_file: Option<PemFile> = "", format::file("tls_cert_file");
    /// The private key of `tls_cert_file`, without a passphrase.
    tls_key_file: Option<PemFile> = "", format::file("tls_key_file");
    /// The authorities that sign the certificates of clients.
    tls_client_ca_file: Option<PemFile> = "", format::file("tls_client_ca_file");
    /// Whether clients of `grpc_listen` present a certificate: they are not asked, they may, or they must.
    grpc_client_auth: ClientAuth = "none", format::word(CLIENT_AUTH);
    /// The same for `http_listen`.
    http_client_auth: ClientAuth = "none", format::word(CLIENT_AUTH);
    /// Whether `http_listen` uses TLS, too, if there is a `tls_cert_file`.
    http_tls: bool = "on", format::word([("on", true), ("off", false)]);
    /// A file with a token that `/metrics` asks for (`authorization: Bearer`); it is read for each scrape.
    metrics_token_file: Option<PathBuf> = "", format::path();
    /// How to reach Redis: `redis://`, `rediss://` for TLS, `unix:///run/redis.sock` for a Unix socket, `redis+cluster://` or `redis+sentinel://` (below).
    redis_url: redis_url::RedisUrl = "redis://127.0.0.1:6379",
        Format::text("URL", redis_url::parse, redis_url::show), secret;
    /// The authorities that sign the certificate of Redis, in place of those of the system; only for `rediss://`.
    redis_ca_file: Option<PemFile> = "", format::file("redis_ca_file");
    /// The certificate that is presented to Redis; only for `rediss://`.
    redis_cert_file: Option<PemFile> = "", format::file("redis_cert_file");
    /// The private key of `redis_cert_file`, without a passphrase.
    redis_key_file: Option<PemFile> = "", format::file("redis_key_file");
    /// How to reach Postgres: a URL or `key=value` pairs (below).
    postgres_url: PostgresUrl = "postgres://postgres@127.0.0.1:5432/yoink",
        Format::text("URL or `key=value` pairs", postgres_url::parse, postgres_url::show), secret;
    /// Number of partitions, fixed when the database is first initialised.
    partitions: PartitionCount = "8", format::partition_count();
    /// Every Redis key starts with it.
    key_prefix: String = "yoink", format::key_prefix();
    /// Whether gRPC reflection shows the API to clients, for tools such as grpcurl. `yoink dev` turns it on.
    reflection: bool = "off", format::word([("on", true), ("off", false)]);
    /// Whether callers of gRPC must authenticate (below); `auto` is `off` for a loopback `grpc_listen` without
    /// `trusted_proxies`, and `required` otherwise. `off` is logged at each start, beyond loopback or with a proxy as a
    /// warning.
    authentication: Authentication = "auto", format::word([
        ("auto", Authentication::Auto), ("required", Authentication::Required),
        ("off", Authentication::Off),
    ]);
    /// A file with the public keys that sign JWTs, as a JWK Set. Changes are read within a second. Without it and
    /// `jwt_jwks_url` no JWT is accepted.
    jwt_jwks_file: Option<PathBuf> = "", format::path();
    /// In place of `jwt_jwks_file`: the URL of the JWK Set, `https://`, or `http://` for a loopback address.
    jwt_jwks_url: Option<Uri> = "", format::jwks_url();
    /// How often the set is fetched from `jwt_jwks_url`; also when a JWT names a key that is not in it (below).
    jwt_jwks_interval_s: u64 = "300", format::whole("s", 10..=86_400);
    /// The authorities that sign the certificate of `jwt_jwks_url`, in place of those of the system.
    jwt_jwks_ca_file: Option<PemFile> = "", format::file("jwt_jwks_ca_file");
    /// The algorithms that a JWT may be signed with.
    jwt_algorithms: Vec<JwtAlgorithm> = "RS256,ES256", format::list(
        "of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA, by commas",
        format::parsed,
    );
    /// The issuer (`iss`) that a JWT must have.
    jwt_issuer: String = "", format::any_text();
    /// The audience (`aud`) that a JWT must have, alone or among others.
    jwt_audience: String = "", format::any_text();
    /// How far the clock of the issuer may be off.
    jwt_clock_skew_s: u64 = "30", format::whole("s", 0..=600);
    /// The claim of a JWT that names the user.
    jwt_user_claim: String = "sub", format::any_text();
    /// The claim of a JWT that names the role of its user: a text, or a list that has one role. Without this setting every
    /// JWT is that of a customer.
    jwt_role_claim: Option<String> = "", format::optional_text();
    /// The roles of client certificates, by a subject alternative name (DNS name or URI); it needs `grpc_client_auth` and
    /// `connection_max_age_ms`. List no proxy: its callers without credentials would have its role.
    client_certificate_roles: Vec<CertificateRole> = "",
        format::list("`name=role`, by commas", format::parsed);
    /// Attempts to store an order that the ledger refuses or that cannot be read, before it is moved to the dead
    /// stream.
    deliveries_max: u32 = "3", format::whole("", 1..=100);
    /// An entry that its worker has not touched for this long is taken over by another worker.
    takeover_idle_ms: u64 = "30000", format::whole("ms", 100..=DAY_MS);
    /// Maximum number of waiting orders of a partition; beyond it, reservations there are refused.
    backlog_max_entries: u64 = "500000", format::whole("", 1..=u64::MAX);
    /// How long a request id is remembered at least. The default is 72 hours, since payment providers deliver a webhook
    /// again for three days. It must be the same for every process and for `yoink audit` (below).
    idempotency_window_ms: u64 = "259200000", format::whole("ms", 1_000..=30 * DAY_MS);
    /// When an accepted reservation is answered, unless its call chooses (below).
    ack: Ack = "memory", format::word(Ack::ALL.map(|ack| (ack.as_str(), ack)));
    /// How many replicas of Redis `ack = replica` waits for.
    ack_replicas: u32 = "1", format::whole("", 1..=100);
    /// Who voids and releases dead entries: `auto` the workers, `manual` operators.
    dead_letter_release: Automation = "auto", format::word(AUTOMATION);
    /// Who rebuilds fenced partitions: `auto` the workers, `manual` operators.
    recovery: Automation = "auto", format::word(AUTOMATION);
    /// Time between two audits (longer, if an audit takes longer). One of the workers for which it is on audits.
    audit_interval_ms: u64 = "30000", format::whole_or_off("ms", 100..=DAY_MS);
    /// Maximum number of buyers' calls in progress in this process; one more is refused as OVERLOADED.
    concurrency_max_calls: u32 = "10000", format::whole("", 1..=1_000_000);
    /// Maximum number of buyers' calls per second from one address; all of them may come in one burst. One more is
    /// refused as RATE_LIMITED. It also limits the wrong credentials of an address, to any service (below).
    address_calls_per_second: u32 = "0", format::whole_or_off("", 1..=u64::from(u32::MAX));
    /// The same for one principal, whatever its address; it needs `authentication`.
    principal_calls_per_second: u32 = "0", format::whole_or_off("", 1..=u64::from(u32::MAX));
    /// Maximum number of reservations per second that one user asks for; all of them may come in one burst. One more is
    /// refused as RATE_LIMITED.
    user_calls_per_second: u32 = "0", format::whole_or_off("", 1..=u64::from(u32::MAX));
    /// Longest duration of a call, whatever deadline its client sets; operators' calls have no limit.
    call_timeout_ms: u64 = "10000", format::whole("ms", 10..=600_000);
    /// Largest message of a buyer; a larger one is refused as MESSAGE_TOO_LARGE.
    request_max_bytes: usize = "16384", format::whole("bytes", 1_024..=1_048_576);
    /// Largest header list of a call; HTTP/2 itself refuses a larger one.
    header_max_bytes: u32 = "16384", format::whole("bytes", 4_096..=1_048_576);
    /// Maximum number of calls in progress on one connection; further calls wait at the client. A call that is opened
    /// and sends nothing holds memory for `call_timeout_ms`.
    connection_max_streams: u32 = "1000", format::whole("", 1..=100_000);
    /// Maximum number of gRPC connections at the same time; one more is closed at once. The descriptor limit may allow
    /// fewer (below).
    connections_max: u32 = "10000", format::whole("", 1..=1_000_000);
    /// How long a gRPC connection lasts before its client is asked to open a new one.
    connection_max_age_ms: u64 = "300000", format::whole_or_off("ms", 1_000..=DAY_MS);
    /// How long a process that answers calls still accepts new connections and calls after SIGTERM, while health and
    /// `/readyz` already report that it is not ready (below).
    shutdown_delay_ms: u64 = "0", format::whole_or_off("ms", 100..=600_000);
    /// Whether a reservation without a request id is refused.
    require_request_id: bool = "off", format::word([("on", true), ("off", false)]);
    /// Proxies whose `x-forwarded-for` header is trusted.
    trusted_proxies: Vec<IpNet> = "",
        format::list("addresses or networks, by commas", format::network);
    /// Maximum number of connections to Postgres for workers (storing, voiding) and for calls that wait with `ack =
    /// ledger`: about one per partition.
    pool_workers: u32 = "16", format::whole("", 1..=1_000);
    /// Maximum number of connections to Postgres for operators' calls, the catalogue, and opening, watching and
    /// rebuilding partitions.
    pool_operators: u32 = "8", format::whole("", 1..=1_000);
    /// Maximum number of connections to Postgres for buyers' `GetReservation`. For each, 32 such calls may be in
    /// progress; one more is refused as OVERLOADED.
    pool_lookups: u32 = "8", format::whole("", 1..=1_000);
    /// Maximum number of connections to Postgres for long reads: rebuilds (one each, 4 at a time), audits, `yoink
    /// export`.
    pool_maintenance: u32 = "10", format::whole("", 6..=1_000);
    /// Products whose stock is a metric; no other product is named in metrics.
    metrics_products: Vec<ProductId> = "",
        format::list("product ids, by commas", format::product);
    /// A collector that receives OTLP over gRPC, such as http://127.0.0.1:4317.
    otlp_endpoint: Option<String> = "", format::endpoint();
    /// Metadata of each OTLP export, such as a token.
    otlp_headers: MetadataMap = "", format::metadata(), secret;
    /// How often metrics are sent to `otlp_endpoint`.
    otlp_metrics_interval_ms: u64 = "60000", format::whole_or_off("ms", 1_000..=3_600_000);
    /// Share of the calls that are traced. A call that belongs to a trace already follows the decision of its client.
    trace_sample_ratio: f64 = "0.01", format::ratio();
    /// What is logged, such as `warn,yoink=debug`.
    log_filter: String = "info", format::log_filter();
    /// The format of log lines: `text`, or `json` for one object per line.
    log_format: LogFormat = "text", format::word([
        ("text", LogFormat::Text), ("json", LogFormat::Json),
    ]);
}

const CLIENT_AUTH: [(&str, ClientAuth); 3] = [
    ("none", ClientAuth::None),
    ("optional", ClientAuth::Optional),
    ("required", ClientAuth::Required),
];

const AUTOMATION: [(&str, Automation); 2] =
    [("auto", Automation::Auto), ("manual", Automation::Manual)];

/// The settings as they apply, in the form of `yoink.toml`, secrets hidden.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = declared().into_iter();
        let lines = settings.map(|it| toml_line(it.name, it.is_number, &(it.show)(self)));
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

/// Hides secrets as well.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A setting as `yoink.toml` has it.
fn toml_line(name: &str, is_number: bool, value: &str) -> String {
    if is_number {
        return format!("{name} = {value}");
    }
    format!("{name} = \"{}\"", value.chars().map(escaped).collect::<String>())
}

/// A character in a text of TOML, which may have no control character as it is.
fn escaped(c: char) -> String {
    match c {
        '\\' | '"' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    }
}

/// A `yoink.toml` that has every setting as a comment, at its default.
pub fn sample() -> String {
    let mut text =
        "# Settings of yoink, each at its default: remove the # before a name to change one.\n\
                    # `(below)` refers to docs/operations.md.\n"
            .to_owned();
    for Setting { name, default, values, is_number, doc, file_name, .. } in declared() {
        let line = toml_line(name, is_number, default);
        let file = file_name.map_or_else(String::new, |file| {
            format!("# A secret: `{file}` may name a file that has the value.\n")
        });
        text.push_str(&format!("\n# {doc}\n# Values: {values}.\n{file}#{line}\n"));
    }
    text
}

/// The table of settings in `docs/operations.md`.
pub fn table() -> String {
    let mut text = "| setting | default | values | meaning |\n|---|---|---|---|\n".to_owned();
    for Setting { name, default, values, doc, file_name, .. } in declared() {
        let file = file_name.map_or_else(String::new, |file| format!(" A secret: or `{file}`."));
        let default = if default.is_empty() { "(none)" } else { default };
        text.push_str(&format!("| `{name}` | {default} | {values} | {doc}{file} |\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn sample_with_every_comment_removed_is_valid_and_has_the_defaults() {
        let text = sample();
        let lines = text.lines().filter_map(|line| line.strip_prefix('#'));
        let settings: Vec<&str> = lines.filter(|line| !line.starts_with(' ')).collect();
        assert_eq!(settings.len(), NAMES.len());
        let file = tempfile::NamedTempFile::new().unwrap();
        let load = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let environment = std::iter::empty();
            let sources = Sources::gather(file.path(), environment, &[]).unwrap();
            Config::of(sources).unwrap().to_string()
        };
        let defaults = Config::defaults().unwrap().to_string();
        assert_eq!(load(&text), defaults);
        assert_eq!(load(&settings.join("\n")), defaults);
    }

    #[test]
    fn settings_that_are_printed_can_be_read_again() {
        let flags = [("log_filter", r#"a[b{c="d\\e"}]=info"#.to_owned())];
        let config = Config::load(Path::new("none.toml"), false, &flags).unwrap();
        let table: toml::Table = config.to_string().parse().unwrap();
        assert_eq!(table["log_filter"].as_str(), Some(flags[0].1.as_str()));
    }

    #[test]
    fn setting_for_the_file_of_a_secret_is_no_other_setting() {
        let names: Vec<&str> = SECRETS.iter().map(|secret| secret.name).collect();
        assert_eq!(names, ["redis_url", "postgres_url", "otlp_headers"]);
        for secret in SECRETS {
            assert!(NAMES.contains(&secret.name) && !NAMES.contains(&secret.file_name));
            assert_eq!(secret.file_name, format!("{}_file", secret.name));
        }
    }

    #[test]
    fn documentation_fits_a_table() {
        for Setting { name, doc, values, .. } in declared() {
            assert!(doc.ends_with('.') && !doc.contains('|') && !values.contains('|'), "{name}");
        }
    }
}
