//! How the text of a setting becomes its value and back, and which values the setting accepts.
//!
//! Must never: repeat a part of a text that may be a password.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
};

use ipnet::IpNet;
use tonic::{
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::Uri,
};
use tracing_subscriber::EnvFilter;

use super::{listen, shown};
use crate::{
    domain::{PartitionCount, ProductId},
    tls::PemFile,
};

/// A day, in milliseconds.
pub(super) const DAY_MS: u64 = 86_400_000;

type Parse<T> = dyn Fn(&str) -> Result<T, String>;

/// What a setting of type `T` accepts.
pub(super) struct Format<T> {
    /// The accepted values, described for a reader.
    pub(super) values: String,
    /// Whether `yoink.toml` has the value without quotation marks.
    pub(super) is_number: bool,
    /// Reads the text; the error continues a sentence that begins with the setting's name.
    pub(super) parse: Box<Parse<T>>,
    /// Writes the value as text, secrets hidden.
    pub(super) show: Box<dyn Fn(&T) -> String>,
}

impl<T> Format<T> {
    /// A setting that is text.
    pub(super) fn text(
        values: &str,
        parse: impl Fn(&str) -> Result<T, String> + 'static,
        show: impl Fn(&T) -> String + 'static,
    ) -> Self {
        let (parse, show) = (Box::new(parse), Box::new(show));
        Self { values: values.to_owned(), is_number: false, parse, show }
    }
}

/// A whole number in a range, written with digits.
pub(super) fn whole<T>(unit: &str, range: RangeInclusive<u64>) -> Format<T>
where
    T: TryFrom<u64> + Display + 'static,
{
    let values = match range.clone().into_inner() {
        (min, u64::MAX) => format!("at least {min}"),
        (min, max) => format!("{min} to {max}"),
    };
    integer(format!("{values} {unit}").trim_end().to_owned(), move |n| range.contains(&n))
}

/// 0, which switches something off, or a whole number in a range.
pub(super) fn whole_or_off<T>(unit: &str, range: RangeInclusive<u64>) -> Format<T>
where
    T: TryFrom<u64> + Display + 'static,
{
    let values = format!("0 (off), or {}", whole::<T>(unit, range.clone()).values);
    integer(values, move |n| n == 0 || range.contains(&n))
}

fn integer<T>(values: String, accepts: impl Fn(u64) -> bool + 'static) -> Format<T>
where
    T: TryFrom<u64> + Display + 'static,
{
    let expected = values.clone();
    let parse = move |text: &str| {
        let number = text.trim().parse::<u64>();
        let number = number.map_err(|_| format!("must be a whole number, not {}", shown(text)))?;
        let value = T::try_from(number).ok().filter(|_| accepts(number));
        value.ok_or_else(|| format!("must be {expected}, not {number}"))
    };
    Format { is_number: true, values, ..Format::text("", parse, T::to_string) }
}

/// The number of partitions.
pub(super) fn partition_count() -> Format<PartitionCount> {
    let number = whole::<u32>("", 1..=4096);
    let parse = move |text: &str| {
        PartitionCount::try_from((number.parse)(text)?).map_err(|error| error.to_string())
    };
    let show = |count: &PartitionCount| count.get().to_string();
    Format { is_number: true, ..Format::text("1 to 4096", parse, show) }
}

/// A share, from 0 to 1.
pub(super) fn ratio() -> Format<f64> {
    let parse = |text: &str| {
        let number = text.trim().parse::<f64>();
        let number = number.map_err(|_| format!("must be a number, not {}", shown(text)))?;
        Some(number).filter(|n| (0.0..=1.0).contains(n)).ok_or_else(|| "must be 0 to 1".to_owned())
    };
    Format { is_number: true, ..Format::text("0 to 1", parse, f64::to_string) }
}

/// One of these words; where `on` and `off` are among them, also `true` and `false`.
pub(super) fn word<T, const N: usize>(words: [(&'static str, T); N]) -> Format<T>
where
    T: Copy + PartialEq + 'static,
{
    let values = words.map(|(word, _)| word).join(", ");
    let expected = values.clone();
    let parse = move |text: &str| {
        let word = match text.trim() {
            "true" => "on",
            "false" => "off",
            word => word,
        };
        let found = words.iter().find(|(known, _)| *known == word);
        let value = found.map(|(_, value)| *value);
        value.ok_or_else(|| format!("must be one of {expected}, not {}", shown(text)))
    };
    let show = move |value: &T| {
        let found = words.iter().find(|(_, known)| known == value);
        found.map_or_else(String::new, |(word, _)| (*word).to_owned())
    };
    Format::text(&values, parse, show)
}

/// Values separated by commas; `parse` reads one of them.
pub(super) fn list<T: Display + 'static>(
    values: &str,
    parse: impl Fn(&str) -> Result<T, String> + 'static,
) -> Format<Vec<T>> {
    let parse = move |text: &str| {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(&parse).collect()
    };
    let show = |all: &Vec<T>| all.iter().map(T::to_string).collect::<Vec<_>>().join(",");
    Format::text(values, parse, show)
}

/// The id of a product.
pub(super) fn product(text: &str) -> Result<ProductId, String> {
    text.parse().map_err(|error| format!("names {}, which {error}", shown(text)))
}

/// An element of a list that its type reads.
pub(super) fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("names {}, which {error}", shown(text)))
}

/// Any text.
pub(super) fn any_text() -> Format<String> {
    Format::text("text", |text| Ok(text.to_owned()), String::clone)
}

/// Any text, or nothing.
pub(super) fn optional_text() -> Format<Option<String>> {
    let parse = |text: &str| Ok((!text.is_empty()).then(|| text.to_owned()));
    Format::text("text", parse, |text| text.clone().unwrap_or_default())
}

/// The path of a file, or nothing.
pub(super) fn path() -> Format<Option<PathBuf>> {
    let parse = |text: &str| Ok((!text.is_empty()).then(|| PathBuf::from(text)));
    let show = |path: &Option<PathBuf>| {
        path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    };
    Format::text("path", parse, show)
}

/// An address or a network.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    let network = address.or_else(|_| text.parse::<IpNet>()).ok();
    // IPv4 peers are never compared in their IPv6 form, so such a network would match no peer.
    let is_mapped = |network: &IpNet| match network {
        IpNet::V4(_) => false,
        IpNet::V6(network) => network.addr().to_ipv4_mapped().is_some(),
    };
    network.filter(|network| !is_mapped(network)).ok_or_else(|| {
        format!("names {}, which is not an address or a network such as 10.0.0.0/8", shown(text))
    })
}

/// An address to listen on.
pub(super) fn address() -> Format<SocketAddr> {
    Format::text("address and port", listen::parse, SocketAddr::to_string)
}

/// A file in PEM format, or none; it is read when it is used.
pub(super) fn file(setting: &'static str) -> Format<Option<PemFile>> {
    let parse =
        move |text: &str| Ok((!text.trim().is_empty()).then(|| PemFile::new(setting, text.trim())));
    let show = |file: &Option<PemFile>| {
        file.as_ref().map_or_else(String::new, |file| file.path().display().to_string())
    };
    Format::text("file in PEM format", parse, show)
}

/// The prefix of every Redis key.
pub(super) fn key_prefix() -> Format<String> {
    let parse = |text: &str| {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
        let fits = (1..=64).contains(&text.len()) && text.chars().all(is_allowed);
        if fits { Ok(text.to_owned()) } else { Err("must match [A-Za-z0-9._:-]{1,64}".to_owned()) }
    };
    Format::text("1 to 64 of `A-Z a-z 0-9 . _ : -`", parse, String::clone)
}

/// A filter of `tracing`.
pub(super) fn log_filter() -> Format<String> {
    let parse = |text: &str| match text.parse::<EnvFilter>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("must be a filter such as info or warn,yoink=debug".to_owned()),
    };
    Format::text("filter", parse, String::clone)
}

/// The address of an OTLP collector, or nothing.
pub(super) fn endpoint() -> Format<Option<String>> {
    let parse = |text: &str| {
        let has_scheme = ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme));
        match text {
            "" => Ok(None),
            // An address is printed as it is.
            _ if text.contains('@') => {
                Err("has a login: write credentials into otlp_headers, which is a secret"
                    .to_owned())
            }
            _ if has_scheme && text.parse::<Uri>().is_ok() => Ok(Some(text.to_owned())),
            _ => {
                Err("must be an address such as http://127.0.0.1:4317 or https://otlp.example.com"
                    .to_owned())
            }
        }
    };
    Format::text("http:// or https:// address", parse, |url| url.clone().unwrap_or_default())
}

/// Where a JWK Set is fetched, or nothing. Without TLS only from this machine: a caller who can change the
/// set can make tokens.
pub(super) fn jwks_url() -> Format<Option<Uri>> {
    let is_allowed = |uri: &Uri| {
        let host = uri.host().unwrap_or_default();
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match uri.scheme_str() {
            Some("https") => !host.is_empty(),
            Some("http") => host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback()),
            _ => false,
        }
    };
    let parse = move |text: &str| {
        let uri = match text.trim() {
            "" => return Ok(None),
            text => text.parse::<Uri>().ok(),
        };
        let has_user = |uri: &Uri| uri.authority().is_some_and(|all| all.as_str().contains('@'));
        let usable = uri.filter(|uri| is_allowed(uri) && !has_user(uri));
        usable.map(Some).ok_or_else(|| {
            "must be an address such as https://id.example.com/jwks.json, without a user; http:// only for a loopback address"
                .to_owned()
        })
    };
    let show = |uri: &Option<Uri>| uri.as_ref().map(Uri::to_string).unwrap_or_default();
    Format::text("https:// address", parse, show)
}

/// Metadata of a gRPC call, `name=value` separated by commas. A secret.
pub(super) fn metadata() -> Format<MetadataMap> {
    let parse = |text: &str| {
        let mut metadata = MetadataMap::new();
        let pairs: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split(',').collect() };
        for pair in pairs {
            let (name, value) = metadata_pair(pair.trim()).ok_or(
                "must be name=value pairs separated by commas, such as authorization=Bearer abc: a name has \
                 lower-case letters, digits, - _ and ., a value has printable ASCII characters",
            )?;
            metadata.append(name, value);
        }
        Ok(metadata)
    };
    let show = |pairs: &MetadataMap| if pairs.is_empty() { "" } else { "(hidden)" }.to_owned();
    Format::text("`name=value` pairs, by commas", parse, show)
}

fn metadata_pair(pair: &str) -> Option<(AsciiMetadataKey, AsciiMetadataValue)> {
    let (name, value) = pair.split_once('=')?;
    let in_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let is_name = name.chars().all(in_name) && !name.starts_with("grpc-");
    let is_value = !value.is_empty() && value.chars().all(|c| (' '..='~').contains(&c));
    let mut value = value.trim().parse::<AsciiMetadataValue>().ok()?;
    value.set_sensitive(true);
    // The key refuses an empty name, and one that ends in `-bin`.
    let name = name.parse().ok()?;
    (is_name && is_value).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_outside_its_range_is_refused_with_the_range() {
        let format = whole_or_off::<u32>("ms", 100..=DAY_MS);
        assert_eq!((format.parse)("0"), Ok(0));
        assert_eq!((format.parse)(" 100 "), Ok(100));
        let problem = "must be 0 (off), or 100 to 86400000 ms, not 99";
        assert_eq!((format.parse)("99"), Err(problem.to_owned()));
        let format = whole::<u64>("", 1..=u64::MAX);
        assert_eq!((format.parse)("0"), Err("must be at least 1, not 0".to_owned()));
        let problem = "must be a whole number, not \"-1\"";
        assert_eq!((format.parse)("-1"), Err(problem.to_owned()));
        assert!((partition_count().parse)("4097").is_err());
        for (text, accepted) in [("0", true), ("1.0", true), ("1.1", false), ("NaN", false)] {
            assert_eq!((ratio().parse)(text).is_ok(), accepted, "{text}");
        }
    }

    #[test]
    fn metadata_with_a_wrong_name_or_value_is_refused_without_its_text() {
        let parse = metadata().parse;
        assert!(parse("").unwrap().is_empty());
        let pairs = parse(" authorization=Bearer a=b, x-b_c.d= shop").unwrap();
        assert_eq!(pairs.get("authorization").unwrap(), "Bearer a=b");
        assert_eq!(pairs.get("x-b_c.d").unwrap(), "shop");
        assert!(pairs.len() == 2 && pairs.get("authorization").unwrap().is_sensitive());
        let refused =
            "hunter2|A=hunter2|a=hunter2,|=hunter2|a=|grpc-a=1|a-bin=1|a b=hunter2|a=hunter2\u{7f}";
        for text in refused.split('|') {
            let problem = parse(text).unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
        assert_eq!((metadata().show)(&pairs), "(hidden)");
    }

    #[test]
    fn jwks_are_fetched_without_tls_only_from_this_machine() {
        let parse = jwks_url().parse;
        assert_eq!(parse(""), Ok(None));
        for url in [
            "https://id.example/keys?v=1",
            "https://192.0.2.1:8443/",
            "http://127.0.0.1:8080/keys",
            "http://[::1]:8080/keys",
            "http://localhost/keys",
        ] {
            assert_eq!(parse(url).unwrap().unwrap().to_string(), url);
        }
        for url in [
            "http://id.example/keys",
            "http://192.0.2.1/keys",
            "http://localhost.example/keys",
            "https://ann:hunter2@id.example/keys",
            "file:///etc/keys",
            "id.example/keys",
            "https://",
        ] {
            let problem = parse(url).unwrap_err();
            assert!(!problem.contains("hunter2"), "{url}: {problem}");
        }
    }

    #[test]
    fn endpoint_takes_http_and_https() {
        for url in ["http://127.0.0.1:4317", "https://otlp.example.com"] {
            assert_eq!((endpoint().parse)(url), Ok(Some(url.to_owned())));
        }
        assert_eq!((endpoint().parse)(""), Ok(None));
        for url in ["127.0.0.1:4317", "grpc://host", "http://", "http://col lector:4317"] {
            assert!((endpoint().parse)(url).is_err(), "{url}");
        }
        let login = (endpoint().parse)("https://ann:hunter2@otlp.example.com").unwrap_err();
        assert!(login.contains("otlp_headers") && !login.contains("hunter2"), "{login}");
    }
}
