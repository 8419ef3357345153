//! The settings of TLS together: which need others, and what they mean for the modules that use TLS.

use std::collections::HashSet;

use redis::ConnectionAddr;

use super::Config;
use crate::tls::{ClientAuth, ClientTls, Identity, PemFile, Verify};

/// A certificate with its key, if both are set.
fn identity(certificate: Option<&PemFile>, key: Option<&PemFile>) -> Option<Identity> {
    Some(Identity::new(certificate?.clone(), key?.clone()))
}

impl Config {
    /// What the listeners present, if they use TLS.
    pub fn tls_identity(&self) -> Option<Identity> {
        identity(self.tls_cert_file.as_ref(), self.tls_key_file.as_ref())
    }

    /// How connections to Redis use TLS; none unless its URL begins with `rediss`.
    pub fn redis_tls(&self) -> Option<ClientTls> {
        self.redis_uses_tls().then(|| ClientTls {
            verify: Verify::Name,
            authorities: self.redis_ca_file.clone(),
            identity: identity(self.redis_cert_file.as_ref(), self.redis_key_file.as_ref()),
        })
    }

    fn redis_uses_tls(&self) -> bool {
        matches!(self.redis_url.login().addr(), ConnectionAddr::TcpTls { .. })
    }
}

/// What is wrong with the settings of TLS, each of which is valid by itself. No file is read: a command may run as a user
/// who cannot read the keys of the service, and does not need them.
pub(super) fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    for (one, other) in [
        (("tls_cert_file", &config.tls_cert_file), ("tls_key_file", &config.tls_key_file)),
        (("redis_cert_file", &config.redis_cert_file), ("redis_key_file", &config.redis_key_file)),
    ] {
        let missing = match (one.1, other.1) {
            (Some(_), None) => (one.0, other.0),
            (None, Some(_)) => (other.0, one.0),
            (Some(_), Some(_)) | (None, None) => continue,
        };
        problems.push(format!("{} needs {} as well", missing.0, missing.1));
    }
    let has_authorities = config.tls_client_ca_file.is_some();
    let asked = [
        ("grpc_client_auth", config.grpc_client_auth),
        ("http_client_auth", config.http_client_auth),
    ]
    .into_iter()
    .filter(|(_, auth)| *auth != ClientAuth::None);
    let asked: Vec<&str> = asked.map(|(name, _)| name).collect();
    for name in &asked {
        if config.tls_cert_file.is_none() || !has_authorities {
            let needed = "needs tls_cert_file, tls_key_file and tls_client_ca_file";
            problems.push(format!("{name} {needed}: without them no certificate is verified"));
        }
    }
    if has_authorities && asked.is_empty() {
        problems.push(
            "tls_client_ca_file has no effect: set grpc_client_auth or http_client_auth to optional or required"
                .to_owned(),
        );
    }
    if config.http_client_auth != ClientAuth::None && !config.http_tls {
        problems.push("http_client_auth needs http_tls = on".to_owned());
    }
    if !config.client_certificate_roles.is_empty() && config.grpc_client_auth == ClientAuth::None {
        problems.push(
            "client_certificate_roles has no effect: set grpc_client_auth to optional or required"
                .to_owned(),
        );
    }
    problems.extend(certificate_role_problems(config));
    let redis_files =
        [&config.redis_ca_file, &config.redis_cert_file, &config.redis_key_file].into_iter();
    if !config.redis_uses_tls() {
        problems.extend(redis_files.flatten().map(|file| {
            format!("{} has no effect: redis_url must begin with rediss", file.setting())
        }));
    }
    problems
}

/// What is wrong with the roles of certificates.
fn certificate_role_problems(config: &Config) -> Vec<String> {
    let roles = &config.client_certificate_roles;
    let mut seen = HashSet::new();
    let twice = roles.iter().filter(|one| !seen.insert(&one.name));
    let mut problems: Vec<_> = twice
        .map(|one| format!("client_certificate_roles lists {} more than once", one.name))
        .collect();
    if !roles.is_empty() && config.connection_max_age_ms == 0 {
        problems.push(
            "client_certificate_roles needs connection_max_age_ms other than 0: a certificate is verified only when its \
             connection is opened"
                .to_owned(),
        );
    }
    problems
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn problems_of(flags: &[(&'static str, &str)]) -> String {
        let flags: Vec<_> =
            flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let loaded = Config::load(Path::new("none.toml"), false, &flags);
        loaded.map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn settings_that_need_others_are_refused_without_them() {
        let (cert, key, ca) =
            (("tls_cert_file", "c"), ("tls_key_file", "k"), ("tls_client_ca_file", "a"));
        let tls = ("redis_url", "rediss://cache");
        let auth = ("grpc_client_auth", "optional");
        let roles = ("client_certificate_roles", "backend.example=service");
        for (flags, problem) in [
            (&[cert, key][..], ""),
            (&[cert, key, ca, ("grpc_client_auth", "required")], ""),
            (&[cert, key, ca, ("http_client_auth", "optional")], ""),
            (&[cert, key, ca, auth, roles], ""),
            (&[roles], "client_certificate_roles has no effect"),
            (
                &[cert, key, ca, auth, roles, ("connection_max_age_ms", "0")],
                "client_certificate_roles needs connection_max_age_ms",
            ),
            (
                &[
                    cert,
                    key,
                    ca,
                    auth,
                    ("client_certificate_roles", "a=service,b=auditor,a=operator"),
                ],
                "client_certificate_roles lists a more than once",
            ),
            (&[tls, ("redis_ca_file", "a")], ""),
            (&[tls, ("redis_cert_file", "c"), ("redis_key_file", "k")], ""),
            (&[cert], "tls_cert_file needs tls_key_file"),
            (&[key], "tls_key_file needs tls_cert_file"),
            (&[tls, ("redis_cert_file", "c")], "redis_cert_file needs redis_key_file"),
            (&[cert, key, ca], "tls_client_ca_file has no effect"),
            (&[cert, key, ("grpc_client_auth", "required")], "grpc_client_auth needs"),
            (&[ca, ("grpc_client_auth", "optional")], "grpc_client_auth needs"),
            (
                &[cert, key, ca, ("http_client_auth", "required"), ("http_tls", "off")],
                "http_client_auth needs http_tls",
            ),
            (&[("redis_ca_file", "a")], "redis_ca_file has no effect"),
            (&[("grpc_client_auth", "perhaps")], "must be one of none, optional, required"),
        ] {
            let found = problems_of(flags);
            assert!(found.contains(problem) && found.is_empty() == problem.is_empty(), "{found}");
        }
    }
}
