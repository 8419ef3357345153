//! How fast a full stream drains, from what its refusals say: when it is worth asking again.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Before anything was measured.
const WAIT_DEFAULT: Duration = Duration::from_secs(5);
const WAIT_MIN: Duration = Duration::from_secs(1);
/// Also where nothing drains: somebody may mend it.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Two looks this far apart make a rate.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// After so long, an old look says nothing of now.
const STALE: Duration = Duration::from_secs(60);
/// It is worth asking when so many parts of a hundred of the stream are free.
const FREE_PERCENT: f64 = 10.0;

/// A partition's stream, seen by its refusals.
#[derive(Debug, Default)]
pub(super) struct Drain {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// When, and how many entries had left by then.
    at: Option<(Instant, i64)>,
    per_second: Option<f64>,
}

impl Drain {
    /// So many entries have left the stream, which holds `full` of them: how long until it has room.
    pub(super) fn wait(&self, now: Instant, left: i64, full: u64) -> Duration {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.at {
            Some((then, before)) if left >= before && now - then <= STALE => {
                if now - then >= SAMPLE_INTERVAL {
                    seen.per_second = Some(count(left - before) / (now - then).as_secs_f64());
                    seen.at = Some((now, left));
                }
            }
            // Of another epoch, or too long ago.
            Some(_) | None => *seen = Seen { at: Some((now, left)), per_second: None },
        }
        match seen.per_second {
            None => WAIT_DEFAULT,
            Some(rate) => {
                let room = count(i64::try_from(full).unwrap_or(i64::MAX)) * FREE_PERCENT / 100.0;
                let wait = Duration::try_from_secs_f64(room / rate).unwrap_or(WAIT_MAX);
                wait.clamp(WAIT_MIN, WAIT_MAX)
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn count(entries: i64) -> f64 {
    entries as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_what_drains() {
        let (drain, start) = (Drain::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(drain.wait(at(0), 1_000, 10_000), WAIT_DEFAULT, "nothing is known yet");
        // 100 a second: 1,000 of 10,000 are free in ten seconds.
        assert_eq!(drain.wait(at(2), 1_200, 10_000), Duration::from_secs(10));
        // Twice as fast.
        assert_eq!(drain.wait(at(4), 1_600, 10_000), Duration::from_secs(5));
        // Nothing drains any more, however little time passes between.
        assert_eq!(drain.wait(at(5), 1_600, 10_000), WAIT_MAX);
        assert_eq!(drain.wait(at(5), 1_600, 10_000), WAIT_MAX);
        // Faster than anybody should come back.
        assert_eq!(drain.wait(at(6), 900_000, 10_000), WAIT_MIN);
        // Another epoch begins at 0.
        assert_eq!(drain.wait(at(7), 5, 10_000), WAIT_DEFAULT);
    }
}
