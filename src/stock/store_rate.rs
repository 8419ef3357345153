//! How fast orders are stored, measured when a request is refused because the stream is full: from that, how long a
//! client should wait.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Before anything was measured.
const WAIT_DEFAULT: Duration = Duration::from_secs(5);
const WAIT_MIN: Duration = Duration::from_secs(1);
/// Also while nothing is stored: an operator may repair it.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Two samples this far apart make a rate.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// An older sample is not used.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(60);
/// A client should ask again when this share of the stream is free.
const FREE_PERCENT: f64 = 10.0;

/// The rate at which the orders of a partition are stored.
#[derive(Debug, Default)]
pub(super) struct StoreRate {
    last: Mutex<Sample>,
}

#[derive(Debug, Default)]
struct Sample {
    /// When, and how many entries had been removed by then.
    at: Option<(Instant, i64)>,
    per_second: Option<f64>,
}

impl StoreRate {
    /// How long to wait until a stream of `capacity` entries has free space again; `removed` entries have been
    /// removed from it in this epoch.
    pub(super) fn wait(&self, now: Instant, removed: i64, capacity: u64) -> Duration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.at {
            Some((then, before)) if removed >= before && now - then <= SAMPLE_AGE_MAX => {
                if now - then >= SAMPLE_INTERVAL {
                    last.per_second =
                        Some(entries(removed.abs_diff(before)) / (now - then).as_secs_f64());
                    last.at = Some((now, removed));
                }
            }
            // Of another epoch, or too long ago.
            Some(_) | None => *last = Sample { at: Some((now, removed)), per_second: None },
        }
        match last.per_second {
            None => WAIT_DEFAULT,
            Some(rate) => {
                let free = entries(capacity) * FREE_PERCENT / 100.0;
                let wait = Duration::try_from_secs_f64(free / rate).unwrap_or(WAIT_MAX);
                wait.clamp(WAIT_MIN, WAIT_MAX)
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn entries(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_follows_the_rate_at_which_entries_leave() {
        let (rate, start) = (StoreRate::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.wait(at(0), 1_000, 10_000), WAIT_DEFAULT, "nothing is known yet");
        // 100 a second: 1,000 of 10,000 are free in ten seconds.
        assert_eq!(rate.wait(at(2), 1_200, 10_000), Duration::from_secs(10));
        // Twice as fast.
        assert_eq!(rate.wait(at(4), 1_600, 10_000), Duration::from_secs(5));
        // Nothing is stored any more, even if little time passes between two refusals.
        assert_eq!(rate.wait(at(5), 1_600, 10_000), WAIT_MAX);
        assert_eq!(rate.wait(at(5), 1_600, 10_000), WAIT_MAX);
        // Faster than the shortest wait.
        assert_eq!(rate.wait(at(6), 900_000, 10_000), WAIT_MIN);
        // Another epoch begins at 0.
        assert_eq!(rate.wait(at(7), 5, 10_000), WAIT_DEFAULT);
    }
}
