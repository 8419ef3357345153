//! The one parser of `postgres_url`: a URL or `key=value` pairs, as libpq reads them. Everything that connects to Postgres
//! uses its result and nothing else: no `PG…` variable, no `.pgpass`, no service file.
//!
//! Must never: repeat a part of the text that may be a password.

use tokio_postgres::{
    Config,
    config::{Host, TargetSessionAttrs},
};

use super::{
    postgres_tls::{self, SSL_MODES, TlsOptions},
    url_text::{check_characters, check_login, check_quotes},
};
use crate::tls::ClientTls;

/// The setting, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// The address, and what a connection asks for when it starts.
    pub config: Config,
    /// What `sslmode` verifies, and with which files.
    pub tls: ClientTls,
}

/// Options of libpq that this program does not support.
const LIBPQ_ONLY: &str = "passfile require_auth client_encoding fallback_application_name keepalives_count \
    gssencmode sslcompression sslpassword sslcertmode sslcrl \
    sslcrldir sslsni requirepeer ssl_min_protocol_version ssl_max_protocol_version \
    krbsrvname gsslib gssdelegation service requiressl replication tty min_protocol_version \
    max_protocol_version oauth_issuer";
/// Options whose value can be wrong, and the values that they accept.
const CHECKED: [(&str, &str); 12] = [
    ("sslmode", SSL_MODES),
    ("sslnegotiation", "postgres or direct"),
    ("hostaddr", "an IP address for each host"),
    ("port", "a number from 1 to 65535 for each host"),
    ("connect_timeout", "a whole number of seconds"),
    ("tcp_user_timeout", "a whole number of seconds"),
    ("keepalives", "0 or 1"),
    ("keepalives_idle", "a whole number of seconds"),
    ("keepalives_interval", "a whole number of seconds"),
    ("keepalives_retries", "a whole number"),
    ("target_session_attrs", "any or read-write"),
    ("channel_binding", "disable, prefer or require"),
];

/// Reads the setting; the text of an error continues a sentence that begins with the setting's name.
pub(super) fn parse(text: &str) -> Result<PostgresUrl, String> {
    check_quotes(text)?;
    let prefixes = ["postgres://", "postgresql://"];
    let url = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix));
    match url {
        Some(rest) => {
            check_characters(rest)?;
            check_login(rest)?;
        }
        None if text.contains("://") && !text.contains('=') => {
            return Err("has a scheme other than postgres:// or postgresql://".to_owned());
        }
        None if !text.contains('=') => {
            return Err(
                "is neither a URL such as postgres://user@host:5432/database nor key=value \
                        pairs such as host=/run/postgresql user=ann dbname=yoink"
                    .to_owned(),
            );
        }
        None => {}
    }
    let (options, rest) = TlsOptions::take(text, url.is_some());
    let mut config: Config = rest.parse().map_err(|error| explain(&error, url.is_some()))?;
    check(&config)?;
    let tls = options.apply(&mut config)?;
    if config.get_hosts().len().max(config.get_hostaddrs().len()) > 1 {
        // Every connection of this program writes, so of several hosts one that accepts writes is used.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
    Ok(PostgresUrl { config, tls })
}

/// Replaces the library's error, which quotes parts of the text that may be a password.
fn explain(error: &tokio_postgres::Error, is_url: bool) -> String {
    let found = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let option = |before: &str| found.strip_prefix(before)?.strip_suffix('`').map(str::to_owned);
    if let Some(name) = option("invalid value for option `") {
        let known = CHECKED.iter().find(|(known, _)| *known == name);
        return match known {
            Some((name, values)) => format!("has a wrong {name}: it must be {values}"),
            None => "has a wrong host: write an IPv6 address in brackets".to_owned(),
        };
    }
    if let Some(name) = option("unknown option `") {
        let known = LIBPQ_ONLY.split_whitespace().find(|known| *known == name);
        return match known {
            Some(name) => format!("has the option {name}, which is not supported here"),
            None if is_url => "has an unknown option: the options follow the ?, and & \
                               separates them (write %26 for an & in a value)"
                .to_owned(),
            None => "has an unknown key: write a value that has spaces in single quotes, with a \\ before \
                     a ' or \\ in it"
                .to_owned(),
        };
    }
    if is_url {
        "is not a URL such as postgres://user@host:5432/database".to_owned()
    } else {
        "is not a list of key=value pairs such as host=/run/postgresql user=ann dbname=yoink (write a value that has spaces \
         or is empty in single quotes)"
            .to_owned()
    }
}

/// Refuses what every attempt to connect would refuse.
fn check(config: &Config) -> Result<(), String> {
    let (hosts, addresses, ports) =
        (config.get_hosts(), config.get_hostaddrs(), config.get_ports().len());
    let is_empty = |host: &Host| match host {
        Host::Tcp(name) => name.is_empty(),
        Host::Unix(path) => path.as_os_str().is_empty(),
    };
    let number = hosts.len().max(addresses.len());
    let wrong = if number == 0 || hosts.iter().any(is_empty) {
        "names no host (or, for a Unix socket, its directory: host=/run/postgresql)"
    } else if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        "has a different number of hostaddr than of hosts"
    } else if ports > 1 && ports != number {
        "has a different number of ports than of hosts"
    } else if config.get_ports().contains(&0) {
        "has the port 0"
    } else if config.get_target_session_attrs() == TargetSessionAttrs::ReadOnly {
        "has target_session_attrs=read-only: orders cannot be stored there; write read-write"
    } else {
        return Ok(());
    };
    Err(wrong.to_owned())
}

/// The setting as it applies: a URL without the password.
pub(super) fn show(url: &PostgresUrl) -> String {
    let PostgresUrl { config, tls } = url;
    let user = config.get_user().unwrap_or_default();
    let hidden = if config.get_password().is_some() { ":***" } else { "" };
    let at = if user.is_empty() && hidden.is_empty() { "" } else { "@" };
    let named = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) if name.contains(':') => format!("[{name}]"),
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string().replace('%', "%25").replace('/', "%2F"),
    });
    let hosts: Vec<String> = if config.get_hosts().is_empty() {
        config.get_hostaddrs().iter().map(ToString::to_string).collect()
    } else {
        named.collect()
    };
    let ports = config.get_ports();
    let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
    let hosts: Vec<String> =
        hosts.iter().enumerate().map(|(at, host)| format!("{host}:{}", port(at))).collect();
    let database = config.get_dbname().map_or(String::new(), |name| format!("/{name}"));
    let only_primary = config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite;
    let mut options = postgres_tls::show(config, tls);
    if only_primary {
        options.insert(0, "target_session_attrs=read-write".to_owned());
    }
    let mark = if options.is_empty() { "" } else { "?" };
    let (hosts, options) = (hosts.join(","), options.join("&"));
    format!("postgres://{user}{hidden}{at}{hosts}{database}{mark}{options}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_key_value_pairs_sockets_and_several_hosts_are_read() {
        for (text, shown) in [
            ("postgres://ann@db/yoink", "postgres://ann@db:5432/yoink"),
            ("postgresql://ann:a%23b%25c%40@[::1]:7/y", "postgres://ann:***@[::1]:7/y"),
            ("host=db user=ann password='a#b%c d@' dbname=y", "postgres://ann:***@db:5432/y"),
            ("host=/run/pg port=7 user=ann", "postgres://ann@%2Frun%2Fpg:7"),
            ("postgres://ann@%2Frun%2Fpg/y", "postgres://ann@%2Frun%2Fpg:5432/y"),
            ("postgres:///y?host=/run/pg&user=ann", "postgres://ann@%2Frun%2Fpg:5432/y"),
            ("hostaddr=10.0.0.1 user=ann", "postgres://ann@10.0.0.1:5432"),
            ("postgres://ann@db/y?sslmode=prefer", "postgres://ann@db:5432/y"),
            ("postgres://ann@db/y?sslmode=disable", "postgres://ann@db:5432/y?sslmode=disable"),
            ("postgres://ann@db/y?ssl%6Dode=require", "postgres://ann@db:5432/y?sslmode=require"),
            ("user=ann sslmode='disable'host=db", "postgres://ann@db:5432?sslmode=disable"),
            (
                "host=db user=ann sslmode=require sslrootcert='/c a' sslcert=/c sslkey=/k",
                "postgres://ann@db:5432?sslmode=verify-ca&sslrootcert=/c%20a&sslcert=/c&sslkey=/k",
            ),
            (
                "postgres://ann@db/y?sslrootcert=system&channel_binding=require&sslnegotiation=direct",
                "postgres://ann@db:5432/y?sslmode=verify-full&sslnegotiation=direct&channel_binding=require",
            ),
            ("host=/run/pg user=ann sslmode=require", "postgres://ann@%2Frun%2Fpg:5432"),
            (
                "postgres://ann@a:1,b:2/y",
                "postgres://ann@a:1,b:2/y?target_session_attrs=read-write",
            ),
            (
                "host=a,b port=1 user=ann target_session_attrs=any",
                "postgres://ann@a:1,b:1?target_session_attrs=read-write",
            ),
        ] {
            assert_eq!(parse(text).map(|url| show(&url)), Ok(shown.to_owned()), "{text}");
        }
        let password = parse("postgres://ann:a%23b%25c%40%2F%3F@db").unwrap();
        assert_eq!(password.config.get_password(), Some("a#b%c@/?".as_bytes()));
    }

    #[test]
    fn wrong_url_is_refused_with_the_reason_and_without_the_password() {
        for (text, why) in [
            ("postgres://ann:hun#ter2@db/y", "write %23 for a #"),
            ("postgres://ann:hun%ter2@db/y", "write %25 for a %"),
            ("postgres://ann:hunter2%@db/y", "write %25 for a %"),
            ("postgres://ann:hun@ter2@db/y", "write %40 for an @"),
            ("postgres://ann:hun/ter2@db/y", "write %2F for a /"),
            ("postgres://ann:hun?ter2@db/y", "%3F for a ?"),
            ("postgres:///y?user=ann&password=hun@ter2&host=db", "%40 for an @"),
            ("postgres://ann:hun ter2@db/y", "write %20"),
            ("postgres://ann:hunter2@db/y\n", "line break"),
            ("postgres://ann@db/y?password=a&hunter2=b", "write %26"),
            ("postgres://ann@db/y?password=a&hunter2", "is not a URL"),
            ("host=db password=hun ter2=x", "single quotes"),
            ("host=db password=hun ter2", "single quotes"),
            ("host=db password='hunter2", "single quotes"),
            ("host=db password=", "single quotes"),
            ("\"postgres://ann:hunter2@db/y\"", "quotation mark"),
            ("postgres://ann@db:hunter2/y", "a wrong port"),
            ("postgres://ann@db:65536/y", "a wrong port"),
            ("postgres://ann@db:0/y", "the port 0"),
            ("postgres://ann@[::1/y", "brackets"),
            ("postgres://ann:hunter2@/y", "names no host"),
            ("user=ann password=hunter2", "names no host"),
            ("host=a,,b", "names no host"),
            ("host=a,b port=1,2,3", "number of ports"),
            ("host=a,b hostaddr=10.0.0.1", "number of hostaddr"),
            ("mysql://ann:hunter2@db/y", "a scheme other than"),
            ("hunter2", "neither a URL"),
            ("", "neither a URL"),
            ("postgres://ann@db/y?sslmode=hunter2", "disable, prefer, require, verify-ca or"),
            ("host=db sslmode=allow", "a wrong sslmode"),
            ("host=db sslmode=verify-ca", "needs sslrootcert"),
            ("host=db sslmode=require sslrootcert=system", "needs sslmode=verify-full"),
            ("host=db sslnegotiation=direct", "needs sslmode require"),
            ("host=db sslmode=disable channel_binding=require", "needs TLS"),
            ("host=db sslmode=disable sslcert=/c sslkey=/k", "needs TLS"),
            ("host=db sslrootcert=/ca.pem", "verifies nothing"),
            ("host=db sslmode=require sslcert=/c", "without sslkey"),
            ("host=db sslmode=require sslrootcert=''", "an empty sslrootcert"),
            ("postgres://db?sslmode=verify-full&sslrootcert=", "an empty sslrootcert"),
            ("postgres://db?sslmode=require&sslcert=&sslkey=", "an empty sslcert"),
            ("postgres://db?sslmode=require&sslkey=", "an empty sslkey"),
            ("host=db sslmode=require sslkey=/k", "without sslcert"),
            ("host=db sslcrl=/crl.pem", "the option sslcrl"),
            ("host=db target_session_attrs=read-only", "write read-write"),
            ("host=db target_session_attrs=hunter2", "it must be any or read-write"),
            ("host=db connect_timeout=hunter2", "seconds"),
        ] {
            let error = parse(text).map(|url| show(&url)).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("hun") && !error.contains("ter2"), "{text}: {error}");
        }
        let error = parse("host=db password=hun ter2=x").map(|url| show(&url)).unwrap_err();
        assert_eq!(
            error,
            r"has an unknown key: write a value that has spaces in single quotes, with a \ before a ' or \ in it"
        );
        let escaped = parse(r"host=db password='a\'b\\c'").unwrap();
        assert_eq!(escaped.config.get_password(), Some(br"a'b\c".as_slice()));
    }

    #[test]
    fn library_can_refuse_every_checked_option() {
        for (name, _) in CHECKED {
            let error = format!("host=db {name}=?").parse::<Config>().unwrap_err();
            assert!(!explain(&error, false).contains("unknown"), "{name}");
        }
    }
}
