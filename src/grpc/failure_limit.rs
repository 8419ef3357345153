//! How many credentials of an address are not accepted. An address over the limit has no further signature verified until
//! the second has ended, on any service.
//!
//! Must never: refuse a caller that is known from memory, or remember an address for longer than a second.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const WINDOW: Duration = Duration::from_secs(1);

/// The failures of the second that began at `start`.
struct Window {
    start: Instant,
    failures: HashMap<IpAddr, u32>,
}

/// The maximum number of failures in a second for each address.
pub(super) struct FailureLimit {
    max: u32,
    window: Mutex<Window>,
}

impl FailureLimit {
    pub(super) fn per_second(max: u32) -> Self {
        let window = Window { start: Instant::now(), failures: HashMap::new() };
        Self { max, window: Mutex::new(window) }
    }

    /// Whether an address may fail again. The error is how long to wait.
    pub(super) fn check(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        self.with(now, |window| {
            let failures = window.failures.get(&address).copied().unwrap_or(0);
            let left = (window.start + WINDOW).saturating_duration_since(now);
            if failures < self.max { Ok(()) } else { Err(left) }
        })
    }

    pub(super) fn count(&self, address: IpAddr, now: Instant) {
        self.with(now, |window| {
            let failures = window.failures.entry(address).or_default();
            *failures = failures.saturating_add(1);
        });
    }

    /// Uses the failures of this second.
    fn with<T>(&self, now: Instant, use_window: impl FnOnce(&mut Window) -> T) -> T {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(window.start) >= WINDOW {
            *window = Window { start: now, failures: HashMap::new() };
        }
        use_window(&mut window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_that_failed_too_often_waits_for_the_end_of_the_second_and_others_do_not() {
        let limit = FailureLimit::per_second(2);
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let start = limit.window.lock().unwrap().start;
        let at = |ms| start + Duration::from_millis(ms);
        limit.count(one, at(0));
        assert_eq!(limit.check(one, at(100)), Ok(()));
        limit.count(one, at(100));
        assert_eq!(limit.check(one, at(400)), Err(Duration::from_millis(600)));
        assert_eq!(limit.check(other, at(400)), Ok(()));
        assert_eq!(limit.check(one, at(1000)), Ok(()));
        limit.count(other, at(1000));
        let remembered = limit.window.lock().unwrap().failures.len();
        assert_eq!(remembered, 1, "the failures of the second before are forgotten");
    }
}
