//! The one parser of `redis_url`: `redis://` and `rediss://`, `unix://` with the path of a socket, and lists of addresses
//! for `redis+cluster://` and `redis+sentinel://`.
//!
//! Must never: repeat a part of the text that may be a password.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

use super::url_text::{check_characters, check_login, check_quotes};

const EXAMPLE: &str = "write redis://host:6379, rediss://host:6379, unix:///run/redis.sock, \
    redis+cluster://host1:6379,host2:6379 or redis+sentinel://host1:26379,host2:26379/name";
const SENTINEL_PORT: u16 = 26_379;

/// Where Redis is.
#[derive(Debug, Clone)]
pub enum RedisUrl {
    /// One server.
    Server(ConnectionInfo),
    /// Some nodes of a Redis Cluster, at least one, each with the login that all nodes accept.
    Cluster(Vec<ConnectionInfo>),
    /// The master that Sentinels watch under a name.
    Sentinel {
        /// At least one, each with the login of the Sentinels.
        sentinels: Vec<ConnectionInfo>,
        /// The name.
        master: String,
        /// The login and the database of the master. The address is that of a Sentinel.
        login: ConnectionInfo,
    },
}

impl RedisUrl {
    /// The login of the servers that hold data.
    pub fn login(&self) -> &ConnectionInfo {
        match self {
            Self::Server(login) | Self::Sentinel { login, .. } => login,
            // The parser makes no empty list.
            Self::Cluster(nodes) => &nodes[0],
        }
    }
}

/// Reads the setting; the text of an error continues a sentence that begins with the setting's name.
pub(super) fn parse(text: &str) -> Result<RedisUrl, String> {
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
        "redis" | "rediss" | "unix" | "redis+unix" => server(scheme, rest).map(RedisUrl::Server),
        "redis+cluster" => cluster("redis", rest),
        "rediss+cluster" => cluster("rediss", rest),
        "redis+sentinel" => sentinel("redis", rest),
        "rediss+sentinel" => sentinel("rediss", rest),
        _ => Err(format!("has an unknown scheme: {EXAMPLE}")),
    }
}

fn server(scheme: &str, rest: &str) -> Result<ConnectionInfo, String> {
    if scheme.contains("unix") {
        check_socket(rest)?
    } else {
        check_tcp(rest)?
    }
    let info = format!("{scheme}://{rest}").into_connection_info().map_err(|error| {
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

/// The login with its `@`, the addresses, and what follows them.
fn split_addresses(rest: &str) -> Result<(&str, &str, &str), String> {
    check_login(rest)?;
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (login, addresses) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    Ok((login, addresses, tail))
}

fn cluster(scheme: &str, rest: &str) -> Result<RedisUrl, String> {
    let (login, addresses, tail) = split_addresses(rest)?;
    if !matches!(tail, "" | "/" | "/0") {
        return Err(
            "has something after the addresses: a cluster has one database, and its URL takes no options"
                .to_owned(),
        );
    }
    let nodes = addresses.split(',').map(|address| server(scheme, &format!("{login}{address}")));
    nodes.collect::<Result<_, _>>().map(RedisUrl::Cluster)
}

fn sentinel(scheme: &str, rest: &str) -> Result<RedisUrl, String> {
    let (login, addresses, tail) = split_addresses(rest)?;
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let path = path.strip_prefix('/').unwrap_or(path);
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if master.is_empty() || !master.chars().all(is_name) {
        return Err(
            "names no master: write the name that the Sentinels have for it after the addresses, as in \
             redis+sentinel://host1:26379,host2:26379/name"
                .to_owned(),
        );
    }
    let known = ["sentinel_user", "sentinel_pass"];
    only(query, &known, "the URL of a Sentinel takes sentinel_user and sentinel_pass")?;
    let [user, password] = known.map(|key| {
        let values = query.split('&').filter_map(|pair| pair.split_once('='));
        values
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .next_back()
            .unwrap_or_default()
    });
    if user.contains(':') {
        return Err("has a raw : in sentinel_user: write %3A".to_owned());
    }
    let own_login = match (user, password) {
        ("", "") => String::new(),
        _ => format!("{user}:{password}@"),
    };
    let with_port = |address: &str| match address.rsplit_once(':') {
        Some((_, port)) if !port.contains(']') => address.to_owned(),
        Some(_) | None if address.is_empty() => String::new(),
        Some(_) | None => format!("{address}:{SENTINEL_PORT}"),
    };
    let addresses: Vec<String> = addresses.split(',').map(with_port).collect();
    let sentinels = addresses.iter().map(|at| server(scheme, &format!("{own_login}{at}")));
    let sentinels = sentinels.collect::<Result<_, _>>()?;
    let login = server(scheme, &format!("{login}{}/{database}", addresses[0]))?;
    Ok(RedisUrl::Sentinel { sentinels, master: master.to_owned(), login })
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
            "names more than one host: name one host, or begin it with redis+cluster:// or redis+sentinel://"
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
pub(super) fn show(url: &RedisUrl) -> String {
    match url {
        RedisUrl::Server(server) => show_server(server),
        RedisUrl::Cluster(nodes) => {
            let (scheme, login) = (scheme(url.login().addr()), show_login(url.login()));
            format!("{scheme}+cluster://{login}{}", show_addresses(nodes))
        }
        RedisUrl::Sentinel { sentinels, master, login } => {
            let own = sentinels.first().map(ConnectionInfo::redis_settings);
            let user =
                own.and_then(|own| own.username()).map(|user| format!("sentinel_user={user}"));
            let password =
                own.and_then(|own| own.password()).map(|_| "sentinel_pass=***".to_owned());
            let options: Vec<String> = [user, password].into_iter().flatten().collect();
            let mark = if options.is_empty() { "" } else { "?" };
            let addresses = show_addresses(sentinels);
            format!(
                "{}+sentinel://{}{addresses}/{master}{}{mark}{}",
                scheme(login.addr()),
                show_login(login),
                show_database(login),
                options.join("&")
            )
        }
    }
}

fn scheme(address: &ConnectionAddr) -> &'static str {
    if matches!(address, ConnectionAddr::TcpTls { .. }) { "rediss" } else { "redis" }
}

fn show_login(info: &ConnectionInfo) -> String {
    let settings = info.redis_settings();
    match (settings.username().unwrap_or_default(), settings.password()) {
        ("", None) => String::new(),
        (user, None) => format!("{user}@"),
        (user, Some(_)) => format!("{user}:***@"),
    }
}

fn show_database(info: &ConnectionInfo) -> String {
    let db = info.redis_settings().db();
    if db == 0 { String::new() } else { format!("/{db}") }
}

fn show_addresses(infos: &[ConnectionInfo]) -> String {
    let addresses: Vec<String> = infos.iter().map(|info| show_address(info.addr())).collect();
    addresses.join(",")
}

fn show_address(address: &ConnectionAddr) -> String {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
        }
        other @ (ConnectionAddr::Unix(_) | _) => other.to_string(),
    }
}

fn show_server(info: &ConnectionInfo) -> String {
    let ConnectionAddr::Unix(path) = info.addr() else {
        let (address, login) = (show_address(info.addr()), show_login(info));
        return format!("{}://{login}{address}{}", scheme(info.addr()), show_database(info));
    };
    let settings = info.redis_settings();
    let db = (settings.db() != 0).then(|| format!("db={}", settings.db()));
    let user = settings.username().filter(|user| !user.is_empty());
    let user = user.map(|user| format!("user={user}"));
    let password = settings.password().map(|_| "pass=***".to_owned());
    let options: Vec<String> = [db, user, password].into_iter().flatten().collect();
    let mark = if options.is_empty() { "" } else { "?" };
    format!("unix://{}{mark}{}", path.display(), options.join("&"))
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
            ("redis+cluster://a,b:7/", "redis+cluster://a:6379,b:7"),
            ("rediss+cluster://ann:x@[::1]:7,b", "rediss+cluster://ann:***@[::1]:7,b:6379"),
            ("redis+sentinel://a,[::1]/shop", "redis+sentinel://a:26379,[::1]:26379/shop"),
            (
                "rediss+sentinel://ann:x@a:7/my.shop/3?sentinel_user=s&sentinel_pass=y",
                "rediss+sentinel://ann:***@a:7/my.shop/3?sentinel_user=s&sentinel_pass=***",
            ),
        ] {
            assert_eq!(parse(text).map(|url| show(&url)), Ok(shown.to_owned()), "{text}");
        }
        let url = parse("redis://:a%23b%25c%40@cache").unwrap();
        assert_eq!(url.login().redis_settings().password(), Some("a#b%c@"));
    }

    #[test]
    fn sentinels_and_their_master_have_their_own_logins() {
        let text = "redis+sentinel://ann:x@a,b:7/shop/3?sentinel_user=s%3A&sentinel_pass=y%40";
        let Ok(RedisUrl::Sentinel { sentinels, master, login }) = parse(text) else { panic!() };
        let of = |info: &ConnectionInfo| {
            let settings = info.redis_settings();
            let part = |part: Option<&str>| part.unwrap_or_default().to_owned();
            (part(settings.username()), part(settings.password()), settings.db())
        };
        assert_eq!((master.as_str(), of(&login)), ("shop", ("ann".to_owned(), "x".to_owned(), 3)));
        for sentinel in &sentinels {
            assert_eq!(of(sentinel), ("s:".to_owned(), "y@".to_owned(), 0));
        }
        let addresses: Vec<String> = sentinels.iter().map(|it| it.addr().to_string()).collect();
        assert_eq!(addresses, ["a:26379", "b:7"]);
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
            ("redis+cluster://:hunter2@", "names no host"),
            ("redis+cluster://:hunter2@a,,b", "names no host"),
            ("redis+cluster://a,b:hunter2", "port that is not a number"),
            ("redis+cluster://a/3", "one database"),
            ("redis+cluster://a?protocol=3", "no options"),
            ("redis+sentinel://:hunter2@a", "names no master"),
            ("redis+sentinel://:hunter2@a/", "names no master"),
            ("redis+sentinel://a/shop hunter2", "write %20"),
            ("redis+sentinel://a/shop%2Fhunter2", "names no master"),
            ("redis+sentinel:///shop", "names no host"),
            ("redis+sentinel://a/shop/x", "database that is not a number"),
            ("redis+sentinel://a/shop?pass=hunter2", "sentinel_pass"),
            ("redis+sentinel://a/shop?sentinel_user=a:hunter2", "write %3A"),
            ("redis+sentinel://a/shop?sentinel_pass=hun@ter2", "write %2F"),
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
            let error = parse(text).map(|url| show(&url)).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("hun") && !error.contains("ter2"), "{text}: {error}");
        }
    }
}
