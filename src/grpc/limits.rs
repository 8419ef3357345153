//! How much of its callers' demand a process takes on.
//!
//! Must never: keep an operator or a health check waiting for buyers, or remember who called for longer
//! than the limit needs.

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

/// Checks between two looks for keys that need not be remembered any more.
const CHECKS_A_SWEEP: u32 = 16_384;

/// What a process takes on; from the settings of the same names.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most calls of buyers under way at once.
    pub concurrency_max_calls: usize,
    /// Calls an address may make in a second; 0: as many as it likes.
    pub address_calls_per_second: u32,
    /// Reservations a user may ask for in a second; 0: as many as they like.
    pub user_calls_per_second: u32,
    /// How long a call may take.
    pub call_timeout: Duration,
    /// Largest message of a buyer, in bytes.
    pub request_max_bytes: usize,
    /// Peers whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Refuses a reservation without a request id.
    pub require_request_id: bool,
}

/// So many calls a second and key, and as many at once after a rest. Clones share the count.
#[derive(Clone)]
pub(super) struct RateLimit<K: Hash + Eq + Clone> {
    /// None: no limit.
    limiter: Option<Arc<DefaultKeyedRateLimiter<K>>>,
    checks: Arc<AtomicU32>,
}

impl<K: Hash + Eq + Clone> RateLimit<K> {
    /// 0: no limit.
    pub(super) fn per_second(calls: u32) -> Self {
        let limiter = NonZeroU32::new(calls)
            .map(|calls| Arc::new(RateLimiter::keyed(Quota::per_second(calls))));
        Self { limiter, checks: Arc::new(AtomicU32::new(0)) }
    }

    /// Counts a call; refused, it is not counted.
    ///
    /// # Errors
    ///
    /// How long to wait.
    pub(super) fn check(&self, key: &K) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        if self.checks.fetch_add(1, Ordering::Relaxed) % CHECKS_A_SWEEP == CHECKS_A_SWEEP - 1 {
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

/// Whose call it is: the peer, or, behind proxies that are trusted, the nearest address in
/// `forwarded` (each `x-forwarded-for`, in order) that is none of them. What stands further left is
/// what a client says of itself. An IPv6 client is its /64: it owns all of it.
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
        // A proxy that is trusted wrote something unreadable: count it, not whoever stands before.
        let Some(address) = hop_address(hop.trim()) else { break };
        client = address.to_canonical();
    }
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
    }
}

/// An address, also with a port or in brackets, as some proxies write it.
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
    fn only_proxies_that_are_trusted_are_believed() {
        let edge = ["10.0.0.0/8"];
        assert_eq!(address("192.0.2.7", &["1.1.1.1"], &edge), "192.0.2.7", "a stranger's word");
        assert_eq!(address("10.0.0.1", &["1.1.1.1"], &edge), "1.1.1.1");
        assert_eq!(
            address("10.0.0.1", &["6.6.6.6, 1.1.1.1"], &edge),
            "1.1.1.1",
            "forged before it"
        );
        assert_eq!(address("10.0.0.1", &["6.6.6.6", "1.1.1.1,10.0.0.2"], &edge), "1.1.1.1");
        assert_eq!(address("10.0.0.1", &["10.0.0.3"], &edge), "10.0.0.3", "nobody else is named");
        assert_eq!(address("10.0.0.1", &["1.1.1.1, unknown"], &edge), "10.0.0.1");
        assert_eq!(address("10.0.0.1", &[], &edge), "10.0.0.1");
        assert_eq!(address("10.0.0.1", &["1.1.1.1:51234"], &edge), "1.1.1.1");
        assert_eq!(address("10.0.0.1", &["[2001:db8::1]:80"], &edge), "2001:db8::");
        assert_eq!(address("10.0.0.1", &["[2001:db8::1]"], &edge), "2001:db8::");
        assert_eq!(address("10.0.0.1", &["1.1.1.1"], &[]), "10.0.0.1");
    }

    #[test]
    fn an_ipv6_client_is_its_network_and_a_mapped_one_is_ipv4() {
        assert_eq!(address("2001:db8:1:2:3:4:5:6", &[], &[]), "2001:db8:1:2::");
        assert_eq!(address("::ffff:10.0.0.1", &["1.1.1.1"], &["10.0.0.0/8"]), "1.1.1.1");
    }

    #[test]
    fn a_key_has_its_own_calls_and_learns_how_long_to_wait() {
        let limit = RateLimit::per_second(2);
        assert!(limit.check(&"ann").is_ok() && limit.check(&"ann").is_ok());
        let wait = limit.check(&"ann").unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
        assert!(limit.check(&"bob").is_ok());
        let none = RateLimit::per_second(0);
        assert!((0..1000).all(|_| none.check(&"ann").is_ok()));
    }

    #[test]
    fn keys_that_need_no_memory_are_forgotten() {
        // At this rate a key is as good as new after a millisecond.
        let limit = RateLimit::per_second(1000);
        for key in 0..4 * CHECKS_A_SWEEP {
            assert!(limit.check(&key).is_ok());
        }
        assert!(limit.remembered() < 2 * usize::try_from(CHECKS_A_SWEEP).unwrap());
    }
}
