//! The limits of a process on the calls of buyers.
//!
//! Must never: make an operator or a health check wait for buyers, or remember a caller for longer than the limit needs.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};
use ipnet::IpNet;

/// How many checks there are between two removals of keys whose limit is unused again.
const CHECKS_PER_SWEEP: u32 = 16_384;

/// The limits.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each is described by the setting of its name")]
pub struct Limits {
    pub concurrency_max_calls: usize,
    pub address_calls_per_second: u32,
    pub principal_calls_per_second: u32,
    pub user_calls_per_second: u32,
    pub call_timeout: Duration,
    pub request_max_bytes: usize,
    pub trusted_proxies: Vec<IpNet>,
    pub require_request_id: bool,
}

/// The maximum number of calls per second for each key; all of them may come in one burst. Clones share the count.
#[derive(Clone)]
pub(super) struct RateLimit<K: Hash + Eq + Clone> {
    /// `None`: no limit.
    limiter: Option<Arc<DefaultKeyedRateLimiter<K>>>,
    checks: Arc<AtomicU32>,
}

impl<K: Hash + Eq + Clone> RateLimit<K> {
    /// 0 means no limit.
    pub(super) fn per_second(calls: u32) -> Self {
        let limiter = NonZeroU32::new(calls)
            .map(|calls| Arc::new(RateLimiter::keyed(Quota::per_second(calls))));
        Self { limiter, checks: Arc::new(AtomicU32::new(0)) }
    }

    /// Whether there is a limit.
    pub(super) fn is_set(&self) -> bool {
        self.limiter.is_some()
    }

    /// Counts a call. A refused call is not counted.
    /// The error is how long to wait.
    pub(super) fn check(&self, key: &K) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        if self.checks.fetch_add(1, Ordering::Relaxed) % CHECKS_PER_SWEEP == CHECKS_PER_SWEEP - 1 {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        limiter
            .check_key(key)
            .map_err(|not_until| not_until.wait_time_from(DefaultClock::default().now()))
    }

    #[cfg(test)]
    fn remembered(&self) -> usize {
        self.limiter.as_ref().map_or(0, |limiter| limiter.len())
    }
}

/// The address of the caller: the peer, or, behind trusted proxies, the last address in `forwarded` (each
/// `x-forwarded-for`, in order) that is not a trusted proxy. The addresses before it are written by the client and
/// prove nothing. An IPv6 client is counted by its /64, because it owns all of it.
pub(super) fn client_address<'a>(
    peer: IpAddr,
    forwarded: impl DoubleEndedIterator<Item = &'a str>,
    trusted: &[IpNet],
) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let mut hops = forwarded.flat_map(|header| header.split(',')).rev();
    while is_trusted(&client) {
        let Some(hop) = hops.next() else { break };
        // A trusted proxy wrote an unreadable address: count the proxy, not the hop before it.
        let Some(address) = hop_address(hop.trim()) else { break };
        client = address.to_canonical();
    }
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
    }
}

/// An address, with or without a port and brackets.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let trusted: Vec<IpNet> = trusted.iter().map(|one| one.parse().unwrap()).collect();
        client_address(peer.parse().unwrap(), forwarded.iter().copied(), &trusted).to_string()
    }

    #[test]
    fn forwarded_address_counts_only_from_trusted_proxies() {
        let edge = ["10.0.0.0/8"];
        assert_eq!(address("192.0.2.7", &["1.1.1.1"], &edge), "192.0.2.7", "not a trusted proxy");
        assert_eq!(address("10.0.0.1", &["1.1.1.1"], &[]), "10.0.0.1");
        for (forwarded, expected) in [
            (["1.1.1.1"].as_slice(), "1.1.1.1"),
            // The address before it may be forged.
            (&["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            (&["6.6.6.6", "1.1.1.1,10.0.0.2"], "1.1.1.1"),
            // No other address is named.
            (&["10.0.0.3"], "10.0.0.3"),
            (&["1.1.1.1, unknown"], "10.0.0.1"),
            (&[], "10.0.0.1"),
            (&["1.1.1.1:51234"], "1.1.1.1"),
            (&["[2001:db8::1]:80"], "2001:db8::"),
            (&["[2001:db8::1]"], "2001:db8::"),
        ] {
            assert_eq!(address("10.0.0.1", forwarded, &edge), expected, "{forwarded:?}");
        }
    }

    #[test]
    fn ipv6_client_is_counted_by_its_network_and_mapped_address_as_ipv4() {
        assert_eq!(address("2001:db8:1:2:3:4:5:6", &[], &[]), "2001:db8:1:2::");
        assert_eq!(address("::ffff:10.0.0.1", &["1.1.1.1"], &["10.0.0.0/8"]), "1.1.1.1");
    }

    #[test]
    fn each_key_has_its_own_limit_and_a_refusal_has_the_delay() {
        let limit = RateLimit::per_second(2);
        assert!(limit.check(&"ann").is_ok() && limit.check(&"ann").is_ok());
        let wait = limit.check(&"ann").unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
        assert!(limit.check(&"bob").is_ok());
        let none = RateLimit::per_second(0);
        assert!((0..1000).all(|_| none.check(&"ann").is_ok()));
    }

    #[test]
    fn unused_keys_are_removed() {
        // At this rate a key may be removed after a millisecond.
        let limit = RateLimit::per_second(1000);
        for key in 0..4 * CHECKS_PER_SWEEP {
            assert!(limit.check(&key).is_ok());
        }
        assert!(limit.remembered() < 2 * usize::try_from(CHECKS_PER_SWEEP).unwrap());
    }
}
