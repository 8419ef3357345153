//! Addresses to listen on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::shown;

/// `address:port`, `localhost:port`, or `:port` for every IPv4 address. No name is resolved: `localhost` is
/// 127.0.0.1.
pub(super) fn parse(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let wrong = |why: &str| {
        let shown = shown(text);
        Err(format!("{why}: {shown}; write an address such as 127.0.0.1:50051 or :50051"))
    };
    if text.contains("://") {
        return wrong("is a URL, not an address to listen on");
    }
    let Some((host, port)) = text.rsplit_once(':') else { return wrong("has no port") };
    let port = Some(port).filter(|port| port.chars().all(|c| c.is_ascii_digit()));
    let Some(port) = port.and_then(|port| port.parse().ok()) else {
        return wrong("has a port that is not a number from 0 to 65535");
    };
    match host {
        "" => Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        host if host.eq_ignore_ascii_case("localhost") => {
            Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        }
        host if host.contains(':') => {
            wrong("has an IPv6 address that is not in brackets, such as [::1]:50051")
        }
        _ => wrong("has a host that is not an IP address (the only name accepted is localhost)"),
    }
}

/// Whether one process cannot listen on both.
pub(super) fn conflict(one: SocketAddr, other: SocketAddr) -> bool {
    // A socket on `::` also takes the port on IPv4.
    let covers = |all: IpAddr, single: IpAddr| {
        all.is_unspecified() && (all.is_ipv6() || single.is_ipv4() || single.is_unspecified())
    };
    let (a, b) = (one.ip(), other.ip());
    let same_port = one.port() == other.port() && one.port() != 0;
    same_port && (a == b || covers(a, b) || covers(b, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_alone_is_every_ipv4_address_and_localhost_is_loopback() {
        for (text, address) in [
            (":50051", "0.0.0.0:50051"),
            ("localhost:50051", "127.0.0.1:50051"),
            ("LOCALHOST:0", "127.0.0.1:0"),
            (" 10.0.0.1:1 ", "10.0.0.1:1"),
            ("[::]:50051", "[::]:50051"),
            ("[::1]:50051", "[::1]:50051"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), address);
        }
    }

    #[test]
    fn wrong_address_is_refused_with_the_reason() {
        for (text, why) in [
            ("50051", "no port"),
            ("", "no port"),
            ("localhost", "no port"),
            ("127.0.0.1:", "port that is not a number"),
            (":65536", "port that is not a number"),
            (":+1", "port that is not a number"),
            ("::1:50051x", "port that is not a number"),
            ("::1:50051", "brackets"),
            ("db:50051", "not an IP address"),
            ("*:50051", "not an IP address"),
            ("http://0.0.0.0:50051", "URL"),
            ("\u{1b}[31m:1", "not an IP address"),
        ] {
            match parse(text) {
                Ok(address) => assert_eq!((text, address.is_ipv6()), ("::1:50051", true)),
                Err(error) => {
                    assert!(error.contains(why), "{error}");
                    assert!(!error.contains('\u{1b}'), "{error}");
                }
            }
        }
    }

    #[test]
    fn address_conflicts_with_itself_and_with_unspecified_addresses_of_its_port() {
        let conflicts = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(conflict(one, other), conflict(other, one));
            conflict(one, other)
        };
        assert!(conflicts("127.0.0.1:1", "127.0.0.1:1"));
        assert!(conflicts("0.0.0.0:1", "127.0.0.1:1"));
        assert!(conflicts("[::]:1", "127.0.0.1:1"));
        assert!(conflicts("[::]:1", "[::1]:1"));
        assert!(conflicts("[::]:1", "0.0.0.0:1"));
        assert!(!conflicts("0.0.0.0:1", "[::1]:1"));
        assert!(!conflicts("127.0.0.1:1", "127.0.0.2:1"));
        assert!(!conflicts("127.0.0.1:1", "127.0.0.1:2"));
        assert!(!conflicts("127.0.0.1:0", "127.0.0.1:0"));
    }
}
