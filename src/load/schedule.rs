//! When calls start.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::{io::unix::AsyncFd, sync::Semaphore};

/// Calls that are due within this time are started together: at high rates, one timer for each call costs too much.
const WAIT_MIN: Duration = Duration::from_micros(100);

/// How many calls may still be made, for all threads together.
#[derive(Debug)]
pub(super) struct Budget {
    next: AtomicU64,
    limit: u64,
}

impl Budget {
    /// For these many calls; `None`: without a limit.
    pub(super) fn new(calls: Option<u64>) -> Self {
        // As many again can be asked for after the limit without an overflow.
        Self { next: AtomicU64::new(0), limit: calls.unwrap_or(u64::MAX / 2) }
    }

    /// Takes one call, if there is one left.
    pub(super) fn take(&self) -> bool {
        self.next.fetch_add(1, Ordering::Relaxed) < self.limit
    }

    /// Whether there are calls left.
    pub(super) fn is_open(&self) -> bool {
        self.next.load(Ordering::Relaxed) < self.limit
    }

    /// No further call is made.
    pub(super) fn close(&self) {
        self.next.fetch_max(self.limit, Ordering::Relaxed);
    }
}

/// The intended starts of one thread's calls: evenly spaced, from the start of the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    /// Calls per second.
    rate: f64,
    /// The first start. Threads start at different parts of the interval.
    offset: Duration,
}

impl Schedule {
    /// `part` of the rate of a run; the first call is `offset` of the run's interval after the start.
    pub(super) fn of_thread(rate: f64, offset: f64, part: f64) -> Self {
        Self { rate: rate * part, offset: Duration::from_secs_f64(offset / rate) }
    }

    /// When call `n` is to start, counted from the start of the run.
    pub(super) fn start_of(&self, n: u64) -> Duration {
        self.offset + Duration::from_secs_f64(n as f64 / self.rate)
    }
}

/// Starts the calls of one thread at a rate.
#[derive(Debug)]
pub(super) struct OpenLoop {
    schedule: Schedule,
    started: Instant,
    /// Calls that were to start then or later are not made.
    end: Duration,
    /// Calls that are due and that no caller has taken yet.
    due: Semaphore,
    next: AtomicU64,
}

impl OpenLoop {
    pub(super) fn new(schedule: Schedule, started: Instant, end: Option<Duration>) -> Self {
        let (due, next) = (Semaphore::new(0), AtomicU64::new(0));
        Self { schedule, started, end: end.unwrap_or(Duration::MAX), due, next }
    }

    /// Waits for the next call; returns when it was to start, or nothing after the end.
    pub(super) async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        Some(self.started + self.schedule.start_of(n))
    }

    /// Makes calls due, each at its time, until the end.
    pub(super) async fn pace(&self, timer: &Timer) -> io::Result<()> {
        let (mut n, mut start) = (0, self.schedule.start_of(0));
        while start < self.end {
            let elapsed = self.started.elapsed();
            let mut due = 0;
            while start <= elapsed && start < self.end {
                n += 1;
                due += 1;
                start = self.schedule.start_of(n);
            }
            self.due.add_permits(due);
            timer.wait(start.saturating_sub(elapsed).max(WAIT_MIN)).await?;
        }
        Ok(())
    }

    /// Ends: callers who wait for a call get none. Returns how many calls were due and not taken.
    pub(super) fn close(&self) -> u64 {
        let waiting = self.due.available_permits();
        self.due.close();
        waiting as u64
    }
}

/// A timer with the resolution of the kernel; those of tokio have one millisecond.
#[derive(Debug)]
pub(super) struct Timer(AsyncFd<TimerDescriptor>);

#[derive(Debug)]
struct TimerDescriptor(TimerFd);

impl AsRawFd for TimerDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Timer {
    /// In the context of a runtime.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        #[expect(deprecated, reason = "the other is unsafe; this type owns its descriptor")]
        let timer = AsyncFd::new(TimerDescriptor(timer))?;
        Ok(Self(timer))
    }

    /// Waits this long; it may return earlier. Zero would wait forever.
    async fn wait(&self, time: Duration) -> io::Result<()> {
        let once = Expiration::OneShot(TimeSpec::from_duration(time));
        // To set it also forgets an earlier expiration, so it need not be read.
        self.0.get_ref().0.set(once, TimerSetTimeFlags::empty())?;
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_gives_exactly_its_calls_and_none_after_it_is_closed() {
        let budget = Budget::new(Some(3));
        assert_eq!((0..9).filter(|_| budget.take()).count(), 3);
        let unlimited = Budget::new(None);
        assert!(unlimited.take() && unlimited.is_open());
        unlimited.close();
        assert!(!unlimited.take() && !unlimited.is_open());
    }

    #[test]
    fn threads_together_start_calls_evenly_at_the_rate() {
        let threads = [0.0, 1.0].map(|offset| Schedule::of_thread(1000.0, offset, 0.5));
        let mut starts: Vec<Duration> =
            (0..500).flat_map(|n| threads.map(|thread| thread.start_of(n))).collect();
        starts.sort();
        for (n, start) in (0..).zip(starts) {
            let expected = Duration::from_millis(n);
            assert!(start.abs_diff(expected) < Duration::from_micros(1), "{start:?}");
        }
    }

    #[test]
    fn schedule_stays_exact_after_many_calls() {
        let schedule = Schedule::of_thread(30_000.0, 0.0, 1.0);
        let day = schedule.start_of(30_000 * 86_400);
        assert!(day.abs_diff(Duration::from_secs(86_400)) < Duration::from_micros(1));
    }

    #[tokio::test]
    async fn calls_have_their_intended_starts_however_late_they_are_taken() {
        let started = Instant::now();
        let calls = OpenLoop::new(Schedule::of_thread(10_000.0, 0.0, 1.0), started, None);
        let timer = Timer::new().unwrap();
        let taken = async {
            let mut taken = Vec::new();
            while taken.len() < 50 {
                taken.push(calls.next().await.unwrap());
            }
            taken
        };
        let taken = tokio::select! {
            taken = taken => taken,
            ended = calls.pace(&timer) => panic!("{ended:?}"),
        };
        for (n, due) in (0..).zip(taken) {
            assert_eq!(due, started + calls.schedule.start_of(n));
            assert!(due <= Instant::now());
        }
        let waiting = calls.due.available_permits() as u64;
        assert_eq!(calls.close(), waiting);
        assert_eq!(calls.next().await, None);
    }

    #[tokio::test]
    async fn exactly_the_calls_before_the_end_are_due() {
        let end = Some(Duration::from_millis(20));
        let schedule = Schedule::of_thread(5_000.0, 0.0, 1.0);
        let calls = OpenLoop::new(schedule, Instant::now(), end);
        calls.pace(&Timer::new().unwrap()).await.unwrap();
        assert_eq!(calls.close(), 100);
    }
}
