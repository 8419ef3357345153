//! The one parser of `redis_url`: `redis://` and `rediss://`, or `unix://` with the path of a socket.
//!
//! Must never: repeat a part of the text that may be a password.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use super::url_text::{check_characters, check_login, check_quotes};

const EXAMPLE: &str = "write redis://host:6379, rediss://host:6379 or unix:///run/redis.sock";

/// Reads the setting; the text of an error continues a sentence that begins with the setting's name.
pub(super) fn parse(text: &str) -> Result<ConnectionInfo, String> {
    check_quotes(text)?;
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("is not a URL: {EXAMPLE}"));
    };
    if rest.ends_with("#insecure") {
        return Err("ends in #insecure, which is not supported: the certificate of Redis is always verified \
                    (to trust another certificate authority, set redis_ca_file)"
            .to_owned());
    }
    check_characters(rest)?;
    match scheme {
        "redis" | "rediss" => check_tcp(rest)?,
        "unix" | "redis+unix" => check_socket(rest)?,
        _ => return Err(format!("has an unknown scheme: {EXAMPLE}")),
    }
    let info = text.into_connection_info().map_err(|error| {
        let found = error.to_string();
        if found.contains("database number") {
            "has a database that is not a number"
        } else if found.contains("wildcard") {
            "has the host 0.0.0.0 or ::, which is not an address to connect to: name the host of Redis"
        } else if found.contains("UTF-8") {
            "has a user name or a password that is not UTF-8"
        } else if found.contains("protocol") {
            "has a protocol that is neither 2 nor 3"
        } else {
            "is not an address of a Redis server"
        }
        .to_owned()
    })?;
    if info.redis_settings().db() < 0 {
        return Err("has a database that is not a number".to_owned());
    }
    Ok(info)
}

fn check_tcp(rest: &str) -> Result<(), String> {
    check_login(rest)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        Some(_) | None => (host, None),
    };
    if name.is_empty() {
        return Err(format!("names no host: {EXAMPLE}"));
    }
    if name.contains(':') && !(name.starts_with('[') && name.ends_with(']')) {
        return Err(
            "has an IPv6 address that is not in brackets, such as redis://[::1]:6379".to_owned()
        );
    }
    if name.contains(',') {
        return Err(
            "names more than one host: name one host, or one address that always leads to the primary"
                .to_owned(),
        );
    }
    let is_port = |port: &str| {
        port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if port.is_some_and(|port| !is_port(port)) {
        return Err("has a port that is not a number from 1 to 65535".to_owned());
    }
    let (_, query) = path.split_once('?').unwrap_or((path, ""));
    only(query, &["protocol"], "the number of a database follows the /, as in redis://host:6379/3")
}

fn check_socket(rest: &str) -> Result<(), String> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !path.starts_with('/') || path.len() < 2 {
        return Err("names no absolute path of a socket: write unix:///run/redis.sock".to_owned());
    }
    only(
        query,
        &["db", "user", "pass", "protocol"],
        "a socket's URL takes db, user, pass and protocol",
    )
}

/// Refuses options that the library would ignore.
fn only(query: &str, known: &[&str], hint: &str) -> Result<(), String> {
    let mut keys = query.split('&').filter(|pair| !pair.is_empty());
    let unknown = keys.any(|pair| !known.contains(&pair.split('=').next().unwrap_or_default()));
    if unknown { Err(format!("has an unknown option after the ?: {hint}")) } else { Ok(()) }
}

/// The setting as it applies: a URL without the password.
pub(super) fn show(info: &ConnectionInfo) -> String {
    let settings = info.redis_settings();
    let (user, db) = (settings.username().unwrap_or_default(), settings.db());
    let hidden = settings.password().is_some();
    let login = match (user, hidden) {
        ("", false) => String::new(),
        (user, false) => format!("{user}@"),
        (user, true) => format!("{user}:***@"),
    };
    let database = if db == 0 { String::new() } else { format!("/{db}") };
    let host = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    match info.addr() {
        ConnectionAddr::Tcp(name, port) => {
            format!("redis://{login}{}:{port}{database}", host(name))
        }
        ConnectionAddr::TcpTls { host: name, port, .. } => {
            format!("rediss://{login}{}:{port}{database}", host(name))
        }
        ConnectionAddr::Unix(path) => {
            let db = (db != 0).then(|| format!("db={db}"));
            let user = (!user.is_empty()).then(|| format!("user={user}"));
            let password = hidden.then(|| "pass=***".to_owned());
            let options: Vec<String> = [db, user, password].into_iter().flatten().collect();
            let mark = if options.is_empty() { "" } else { "?" };
            format!("unix://{}{mark}{}", path.display(), options.join("&"))
        }
        _ => "another kind of address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_tls_and_socket_urls_are_read() {
        for (text, shown) in [
            ("redis://cache", "redis://cache:6379"),
            ("redis://:hun%23ter%252@cache:1/3", "redis://:***@cache:1/3"),
            ("rediss://ann:x@[::1]:7", "rediss://ann:***@[::1]:7"),
            ("redis://[::1]", "redis://[::1]:6379"),
            ("unix:///run/redis.sock", "unix:///run/redis.sock"),
            (
                "redis+unix:///run/redis.sock?db=3&user=ann&pass=a%40b",
                "unix:///run/redis.sock?db=3&user=ann&pass=***",
            ),
        ] {
            assert_eq!(parse(text).map(|info| show(&info)), Ok(shown.to_owned()), "{text}");
        }
        let info = parse("redis://:a%23b%25c%40@cache").unwrap();
        assert_eq!(info.redis_settings().password(), Some("a#b%c@"));
    }

    #[test]
    fn wrong_url_is_refused_with_the_reason_and_without_the_password() {
        for (text, why) in [
            ("redis://:hun#ter2@cache", "write %23 for a #"),
            ("unix:///run/redis.sock?pass=hun#ter2", "write %23 for a #"),
            ("rediss://cache#insecure", "always verified"),
            ("redis://:hun%ter2@cache", "write %25 for a %"),
            ("redis://:hun@ter2@cache", "write %40 for an @"),
            ("redis://:hun/ter2@cache", "write %2F for a /"),
            ("redis://:hun?ter2@cache", "%3F for a ?"),
            ("redis://:hun ter2@cache", "write %20"),
            ("redis://:hunter2@", "names no host"),
            ("redis://", "names no host"),
            ("redis://:6379", "names no host"),
            ("redis://:hunter2@a,b", "more than one host"),
            ("redis://::1:6379", "brackets"),
            ("redis://cache:hunter2", "port that is not a number"),
            ("redis://cache:", "port that is not a number"),
            ("redis://cache:65536", "port that is not a number"),
            ("redis://cache:0", "port that is not a number"),
            ("redis://cache/hunter2", "database that is not a number"),
            ("redis://cache/-1", "database that is not a number"),
            ("redis://cache?db=3", "as in redis://host:6379/3"),
            ("redis://0.0.0.0:6379", "not an address to connect to"),
            ("unix://run/redis.sock", "absolute path"),
            ("unix:///", "absolute path"),
            ("unix:///run/redis.sock?password=hunter2", "db, user, pass"),
            ("unix:///run/redis.sock?db=x", "database that is not a number"),
            ("'redis://cache'", "quotation mark"),
            ("http://cache", "unknown scheme"),
            ("cache:6379", "is not a URL"),
            ("", "is not a URL"),
        ] {
            let error = parse(text).map(|info| show(&info)).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("hun") && !error.contains("ter2"), "{text}: {error}");
        }
    }
}
