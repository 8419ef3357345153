//! Properties of the settings: nothing that is written panics, what is printed can be read again, and no secret is
//! printed.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::{
    Config, listen, postgres_url,
    redis_url::{self, RedisUrl},
    settings::declared,
    sources::Sources,
};
use crate::mutated::{mutated, mutated_text};

const POSTGRES_URLS: &[&str] = &[
    "postgres://ann:hunter2@db:5432/yoink",
    "postgresql://ann@[::1]:7,b:8/y?sslmode=require&channel_binding=require",
    "postgres://ann@db/y?ssl%6Dode=verify-full&sslrootcert=%2Fc%20a&password=hunter2",
    "host=db user=ann password='it\\'s' dbname=y",
    "host=/run/pg port=7 user=ann sslmode = 'verify-ca' sslrootcert='/c a'",
    "hostaddr=10.0.0.1,::1 user=ann connect_timeout=3 keepalives=1 target_session_attrs=read-write",
];
const REDIS_URLS: &[&str] = &[
    "redis://ann:hunter2@cache:6379/3",
    "rediss://:hun%23ter2@[::1]:7?protocol=3",
    "unix:///run/redis.sock?db=3&user=ann&pass=hunter2",
    "redis+cluster://ann:hunter2@a:7001,[::1]:7002",
    "rediss+sentinel://ann:x@a,b:7/shop/3?sentinel_user=s&sentinel_pass=hunter2",
];
const FILES: &[&str] = &[
    "grpc_listen = \"127.0.0.1:50051\"\npartitions = 8\ntrace_sample_ratio = 1_0.5e-1_0\n",
    "ack = \"disk\"\nmetrics_products = \"shoe,hat\"\nredis_url = 'redis://cache'\n",
    "[grpc]\nlisten = 1\n[[a]]\nkey_prefix = '''x'''\nlog_filter = 2026-11-27T18:00:00Z\n",
    "otlp_headers = \"a=b\"\ntrusted_proxies = [\"10.0.0.0/8\"]\n",
];
/// A valid secret, and some that are refused.
const SECRETS: &[&str] = &[
    "otlp_headers = 'authorization=Bearer hunter2'",
    "otlp_headers = 'hunter2'",
    "redis_url = 'redis://:hunter2@cache:port'",
    "postgres_url = 'postgres://ann:hunter2@db:port/y'",
];
const VALUES: &[&str] = &[
    "127.0.0.1:50051",
    "[::1]:0",
    "localhost:1",
    ":9464",
    "0",
    "1",
    "8",
    "100",
    "4096",
    "30000",
    "0.01",
    "on",
    "off",
    "auto",
    "manual",
    "required",
    "optional",
    "none",
    "memory",
    "ledger",
    "json",
    "yoink",
    "info,yoink=debug",
    "[call{user=\"a\"}]=trace",
    "shoe,hat",
    "10.0.0.0/8,fd00::/8",
    "http://127.0.0.1:4317",
    "https://otlp.example.com",
    "authorization=Bearer hunter2,x-a=b",
    "/etc/yoink/tls/server.pem",
    "RS256,EdDSA",
    "https://id.example/",
    "spiffe://shop/backend=service",
];

/// A part of a value of a URL or of a list of pairs.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{1,12}", "[\\PC&&[^\\x00]]{1,8}"]
}

/// As libpq reads it in `key=value` pairs.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// As a URL has it.
fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

proptest! {
    #[test]
    fn postgres_url_is_read_or_refused_without_its_password(text in mutated_text(POSTGRES_URLS)) {
        match postgres_url::parse(&text) {
            Err(problem) => prop_assert!(!problem.contains("hunter2"), "{}", problem),
            Ok(url) => {
                let shown = postgres_url::show(&url);
                // In another place the word is a name that the operator has chosen.
                let password = url.config.get_password().unwrap_or_default();
                if text.matches("hunter2").count() == 1
                    && password.windows(7).any(|part| part == b"hunter2")
                {
                    prop_assert!(!shown.contains("hunter2"), "{}", shown);
                }
            }
        }
    }

    #[test]
    fn options_of_postgres_are_read_as_they_are_written_in_pairs_and_in_urls(
        user in any_text(), password in any_text(), path in any_text(), spaces in " {0,2}",
    ) {
        let pairs = format!(
            "host=db{spaces} user{spaces}={} sslmode={spaces}verify-full{spaces} \
             sslrootcert={}password={}",
            quoted(&user), quoted(&path), quoted(&password),
        );
        let url = format!(
            "postgres://{}:{}@db/y?sslmode=verify-full&sslrootcert={}",
            percent_encoded(&user), percent_encoded(&password), percent_encoded(&path),
        );
        // `system` has a meaning of its own.
        prop_assume!(path != "system");
        for text in [pairs, url] {
            let read = postgres_url::parse(&text);
            prop_assert!(read.is_ok(), "{}: {:?}", text, read.err());
            let read = read.unwrap();
            prop_assert_eq!(read.config.get_user(), Some(user.as_str()));
            prop_assert_eq!(read.config.get_password(), Some(password.as_bytes()));
            let authorities = read.tls.authorities.unwrap();
            prop_assert_eq!(authorities.path(), Path::new(&path));
        }
    }

    #[test]
    fn redis_url_is_read_or_refused_without_its_password(text in mutated_text(REDIS_URLS)) {
        match redis_url::parse(&text) {
            Err(problem) => prop_assert!(!problem.contains("hunter2"), "{}", problem),
            Ok(url) => {
                let shown = redis_url::show(&url);
                let sentinels = match &url {
                    RedisUrl::Sentinel { sentinels, .. } => sentinels.as_slice(),
                    RedisUrl::Server(_) | RedisUrl::Cluster(_) => &[],
                };
                let is_password = std::iter::once(url.login()).chain(sentinels).any(|info| {
                    info.redis_settings().password().is_some_and(|it| it.contains("hunter2"))
                });
                if text.matches("hunter2").count() == 1 && is_password {
                    prop_assert!(!shown.contains("hunter2"), "{}", shown);
                }
            }
        }
    }

    #[test]
    fn login_of_redis_is_read_as_it_is_written(
        user in any_text(), password in any_text(), db in 0..99_i64,
    ) {
        let (user_text, password_text) = (percent_encoded(&user), percent_encoded(&password));
        for text in [
            format!("redis://{user_text}:{password_text}@cache/{db}"),
            format!("rediss://{user_text}:{password_text}@[::1]:7/{db}"),
            format!("unix:///run/redis.sock?user={user_text}&pass={password_text}&db={db}"),
            format!("redis+sentinel://{user_text}:{password_text}@a,b:7/shop/{db}"),
        ] {
            let read = redis_url::parse(&text);
            prop_assert!(read.is_ok(), "{}: {:?}", text, read.err());
            let read = read.unwrap();
            let settings = read.login().redis_settings();
            prop_assert_eq!(settings.username(), Some(user.as_str()));
            prop_assert_eq!(settings.password(), Some(password.as_str()));
            prop_assert_eq!(settings.db(), db);
        }
        let text = format!("redis+cluster://{user_text}:{password_text}@a,[::1]:7");
        let nodes = match redis_url::parse(&text) {
            Ok(RedisUrl::Cluster(nodes)) => nodes,
            read => return Err(TestCaseError::fail(format!("{text}: {read:?}"))),
        };
        prop_assert_eq!(nodes.len(), 2);
        for node in nodes {
            prop_assert_eq!(node.redis_settings().username(), Some(user.as_str()));
            prop_assert_eq!(node.redis_settings().password(), Some(password.as_str()));
        }
    }

    #[test]
    fn address_to_listen_on_is_written_as_it_is_read(text in mutated_text(VALUES)) {
        if let Ok(address) = listen::parse(&text) {
            prop_assert_eq!(listen::parse(&address.to_string()), Ok(address));
        }
    }

    #[test]
    fn settings_file_is_read_or_refused_without_its_secrets(
        secret in prop::sample::select(SECRETS), bytes in mutated(FILES),
    ) {
        // What follows cannot change the meaning of the first line.
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [secret.as_bytes(), b"\n", &bytes].concat()).unwrap();
        let read = Sources::gather(file.path(), std::iter::empty(), &[]).and_then(Config::of);
        let printed = match &read {
            Err(error) => format!("{error} {error:?}"),
            Ok(config) => format!("{config} {config:?}"),
        };
        prop_assert!(!printed.contains("hunter2"), "{}", printed);
    }

    #[test]
    fn setting_that_is_printed_is_read_again_as_the_same(
        at in any::<prop::sample::Index>(), text in mutated_text(VALUES),
    ) {
        // What a secret setting prints has `***` in it.
        let settings = declared();
        let open: Vec<_> = settings.iter().filter(|it| it.file_name.is_none()).collect();
        let name = open[at.index(open.len())].name;
        let none = Path::new("none.toml");
        if let Ok(config) = Config::load(none, false, &[(name, text)]) {
            let printed = config.to_string();
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), &printed).unwrap();
            let again = Sources::gather(file.path(), std::iter::empty(), &[]).and_then(Config::of);
            prop_assert!(again.is_ok(), "{}: {:?}", printed, again.err());
            prop_assert_eq!(again.unwrap().to_string(), printed);
        }
    }
}
