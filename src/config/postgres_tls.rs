//! The options of `postgres_url` about TLS. The parser of tokio-postgres knows some of them, with fewer values, so they
//! are read here and removed from the text that it parses.
//!
//! Must never: repeat a part of the text that may be a password.

use std::ops::Range;

use tokio_postgres::{
    Config,
    config::{ChannelBinding, Host, SslMode, SslNegotiation},
};

use crate::tls::{ClientTls, Identity, PemFile, Verify};

/// The values of `sslmode`, weakest first.
pub(super) const SSL_MODES: &str = "disable, prefer, require, verify-ca or verify-full";

/// The options as they are written; of one that is repeated, the last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TlsOptions {
    sslmode: Option<String>,
    sslrootcert: Option<String>,
    sslcert: Option<String>,
    sslkey: Option<String>,
}

impl TlsOptions {
    /// Takes the options out of a URL (what follows its scheme) or out of `key=value` pairs; returns the rest.
    pub(super) fn take(text: &str, is_url: bool) -> (Self, String) {
        let mut options = Self::default();
        let rest = if is_url { options.take_url(text) } else { options.take_pairs(text) };
        (options, rest)
    }

    fn field(&mut self, name: &str) -> Option<&mut Option<String>> {
        match name {
            "sslmode" => Some(&mut self.sslmode),
            "sslrootcert" => Some(&mut self.sslrootcert),
            "sslcert" => Some(&mut self.sslcert),
            "sslkey" => Some(&mut self.sslkey),
            _ => None,
        }
    }

    fn take_url(&mut self, text: &str) -> String {
        let Some((before, query)) = text.split_once('?') else { return text.to_owned() };
        let mut kept = Vec::new();
        for pair in query.split('&') {
            let taken = pair.split_once('=').and_then(|(name, value)| {
                // The library decodes names, too.
                *self.field(&decode(name)?)? = Some(decode(value)?);
                Some(())
            });
            if taken.is_none() {
                kept.push(pair);
            }
        }
        if kept.is_empty() { before.to_owned() } else { format!("{before}?{}", kept.join("&")) }
    }

    fn take_pairs(&mut self, text: &str) -> String {
        let (mut kept, mut at) = (String::new(), 0);
        while let Some(pair) = next_pair(text, at) {
            match self.field(&text[pair.name]) {
                Some(field) => {
                    *field = Some(pair.value);
                    // What is before it and after it stays two pairs: a quoted value needs no space after it.
                    kept.push(' ');
                }
                None => kept.push_str(&text[at..pair.end]),
            }
            at = pair.end;
        }
        // The parser of the library reports what is wrong with the rest.
        kept + &text[at..]
    }

    /// Applies the options to what the library has parsed. An error continues a sentence that begins with the name of
    /// the setting.
    pub(super) fn apply(self, config: &mut Config) -> Result<ClientTls, String> {
        for (name, value) in [
            ("sslrootcert", &self.sslrootcert),
            ("sslcert", &self.sslcert),
            ("sslkey", &self.sslkey),
        ] {
            if value.as_ref().is_some_and(String::is_empty) {
                return Err(format!("has an empty {name}: name a file, or remove the option"));
            }
        }
        let uses_system = self.sslrootcert.as_deref() == Some("system");
        let default = if uses_system { "verify-full" } else { "prefer" };
        let file = |path: Option<String>| path.map(|path| PemFile::new("postgres_url", path));
        let authorities = file(self.sslrootcert).filter(|_| !uses_system);
        let (mode, verify) = match self.sslmode.as_deref().unwrap_or(default) {
            "disable" => (SslMode::Disable, Verify::Nothing),
            "prefer" => (SslMode::Prefer, Verify::Nothing),
            // As libpq: with authorities it is verify-ca.
            "require" if authorities.is_some() => (SslMode::Require, Verify::Authority),
            "require" => (SslMode::Require, Verify::Nothing),
            "verify-ca" => (SslMode::Require, Verify::Authority),
            "verify-full" => (SslMode::Require, Verify::Name),
            _ => return Err(format!("has a wrong sslmode: it must be {SSL_MODES}")),
        };
        let identity = match (file(self.sslcert), file(self.sslkey)) {
            (Some(certificate), Some(key)) => Some(Identity::new(certificate, key)),
            (None, None) => None,
            (Some(_), None) => return Err("has sslcert without sslkey".to_owned()),
            (None, Some(_)) => return Err("has sslkey without sslcert".to_owned()),
        };
        config.ssl_mode(mode);
        let tls = ClientTls { verify, authorities, identity };
        check(config, &tls, uses_system)?;
        if has_only_sockets(config) {
            // As libpq: a socket is not encrypted, whatever the mode.
            config.ssl_mode(SslMode::Disable);
        } else if config.get_hosts().is_empty() {
            // The library needs a name for the handshake.
            for address in config.get_hostaddrs().to_vec() {
                config.host(address.to_string());
            }
        }
        Ok(tls)
    }
}

fn has_only_sockets(config: &Config) -> bool {
    let is_socket = |host: &Host| matches!(host, Host::Unix(_));
    config.get_hosts().iter().all(is_socket) && config.get_hostaddrs().is_empty()
}

/// Refuses options that promise more than the connection would keep.
fn check(config: &Config, tls: &ClientTls, uses_system: bool) -> Result<(), String> {
    let mode = config.get_ssl_mode();
    let weak = mode != SslMode::Require;
    let problem = if weak && tls.authorities.is_some() {
        "has sslrootcert with an sslmode that verifies nothing: write sslmode=verify-full"
    } else if uses_system && tls.verify != Verify::Name {
        "has sslrootcert=system, which needs sslmode=verify-full: such authorities sign certificates for everyone"
    } else if tls.verify == Verify::Authority && tls.authorities.is_none() {
        "has sslmode=verify-ca, which needs sslrootcert: name the file of the authorities"
    } else if mode == SslMode::Disable && tls.identity.is_some() {
        "has sslcert, which needs TLS: write another sslmode than disable"
    } else if weak && config.get_ssl_negotiation() == SslNegotiation::Direct {
        "has sslnegotiation=direct, which needs sslmode require, verify-ca or verify-full"
    } else if mode == SslMode::Disable && config.get_channel_binding() == ChannelBinding::Require {
        "has channel_binding=require, which needs TLS: write another sslmode than disable"
    } else {
        return Ok(());
    };
    Err(problem.to_owned())
}

/// The options as they apply, for the query of a URL.
pub(super) fn show(config: &Config, tls: &ClientTls) -> Vec<String> {
    let mode = match (config.get_ssl_mode(), tls.verify) {
        (SslMode::Disable, _) if !has_only_sockets(config) => Some("disable"),
        (SslMode::Require, Verify::Nothing) => Some("require"),
        (SslMode::Require, Verify::Authority) => Some("verify-ca"),
        (SslMode::Require, Verify::Name) => Some("verify-full"),
        _ => None,
    };
    let file =
        |name: &str, file: &PemFile| format!("{name}={}", encode(&file.path().to_string_lossy()));
    let mut options: Vec<String> = mode.map(|mode| format!("sslmode={mode}")).into_iter().collect();
    options.extend(tls.authorities.iter().map(|it| file("sslrootcert", it)));
    if let Some(identity) = &tls.identity {
        options.push(file("sslcert", identity.certificate()));
        options.push(file("sslkey", identity.key()));
    }
    if config.get_ssl_negotiation() == SslNegotiation::Direct {
        options.push("sslnegotiation=direct".to_owned());
    }
    for (binding, name) in
        [(ChannelBinding::Disable, "disable"), (ChannelBinding::Require, "require")]
    {
        if config.get_channel_binding() == binding {
            options.push(format!("channel_binding={name}"));
        }
    }
    options
}

/// One `key=value` of a list.
struct Pair {
    name: Range<usize>,
    value: String,
    end: usize,
}

/// The pair that begins at this byte or after spaces; none at the end or where there is no pair.
fn next_pair(text: &str, at: usize) -> Option<Pair> {
    let start = at + (text[at..].len() - text[at..].trim_start().len());
    let equals = start + text[start..].find('=')?;
    let name = text[start..equals].trim_end();
    let after = equals + 1;
    let value_start = after + (text[after..].len() - text[after..].trim_start().len());
    let quoted = text[value_start..].starts_with('\'');
    let (mut value, mut escaped) = (String::new(), false);
    for (offset, c) in text[value_start..].char_indices().skip(usize::from(quoted)) {
        let end = value_start + offset;
        match c {
            _ if std::mem::take(&mut escaped) => value.push(c),
            '\\' => escaped = true,
            '\'' if quoted => {
                return Some(Pair { name: start..start + name.len(), value, end: end + 1 });
            }
            c if c.is_whitespace() && !quoted => {
                return Some(Pair { name: start..start + name.len(), value, end });
            }
            c => value.push(c),
        }
    }
    let ended = !quoted && !value.is_empty();
    ended.then(|| Pair { name: start..start + name.len(), value, end: text.len() })
}

/// Replaces each `%` and its two digits, as in a URL.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(after.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

/// Writes the characters that end a value of a URL with `%`.
fn encode(text: &str) -> String {
    let reserved = |c: char| "%&#?+\"'".contains(c) || c.is_whitespace();
    let mut written = String::new();
    for c in text.chars() {
        if reserved(c) {
            let mut bytes = [0; 4];
            let bytes = c.encode_utf8(&mut bytes).bytes();
            written.extend(bytes.map(|byte| format!("%{byte:02X}")));
        } else {
            written.push(c);
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_out_of_urls_and_pairs() {
        for (text, is_url, rest, mode, root) in [
            ("ann@db/y", true, "ann@db/y", None, None),
            ("ann@db/y?sslmode=require", true, "ann@db/y", Some("require"), None),
            ("a?x=1&sslmode=require&y=2", true, "a?x=1&y=2", Some("require"), None),
            ("a?sslrootcert=%2Fc%20a", true, "a", None, Some("/c a")),
            ("a?sslmode=disable&sslmode=prefer", true, "a", Some("prefer"), None),
            ("a?ssl%6Dode=require&x=1", true, "a?x=1", Some("require"), None),
            ("a?sslmode", true, "a?sslmode", None, None),
            ("host=db sslmode=require user=a", false, "host=db  user=a", Some("require"), None),
            ("sslmode = 'verify-ca' host=db", false, "  host=db", Some("verify-ca"), None),
            ("user=a sslmode='require'host=db", false, "user=a host=db", Some("require"), None),
            (r"sslrootcert='/c \'a\\'", false, " ", None, Some(r"/c 'a\")),
            (r"host=db sslrootcert=/c\ a", false, "host=db ", None, Some("/c a")),
            ("password='x sslmode=require'", false, "password='x sslmode=require'", None, None),
            ("host=db password='x", false, "host=db password='x", None, None),
            ("host=db sslmode=", false, "host=db sslmode=", None, None),
            ("host=db nonsense", false, "host=db nonsense", None, None),
        ] {
            let (options, kept) = TlsOptions::take(text, is_url);
            assert_eq!(kept, rest, "{text}");
            assert_eq!(options.sslmode.as_deref(), mode, "{text}");
            assert_eq!(options.sslrootcert.as_deref(), root, "{text}");
        }
    }

    #[test]
    fn path_is_written_as_it_is_read() {
        for path in ["/etc/ca.pem", "/a b/c&d#e%f.pem", "/ä/ca.pem"] {
            assert_eq!(decode(&encode(path)).as_deref(), Some(path));
        }
        assert_eq!(decode("%"), None);
        assert_eq!(decode("%zz"), None);
    }
}
