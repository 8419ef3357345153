//! Carries out a plan: starts the threads, collects what they record, and ends the run.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Barrier, watch},
    task::JoinSet,
    time::{interval_at, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    backlog::MetricsUrl,
    caller::{Head, Shared, lock},
    connection::Target,
    message::{RequestTemplate, Requests, Responses},
    plan::{LoadError, Pace, Plan},
    recorder::{Interval, Recorder},
    report::{Report, Second},
    schedule::{Budget, Schedule},
    worker::{Start, Worker},
};

const SECOND: Duration = Duration::from_secs(1);

/// Carries out a plan until its end, or until `stop`; `on_second` gets each second when it is over.
///
/// After the end no call is begun, and those in progress are awaited.
///
/// # Errors
///
/// If the plan is invalid, or the service cannot be reached at the start. A service that cannot be reached later is part of
/// the report.
///
/// # Panics
///
/// If a thread of the generator panicked.
pub async fn run(
    plan: Plan,
    stop: CancellationToken,
    mut on_second: impl FnMut(&Second),
) -> Result<Report, LoadError> {
    plan.check()?;
    let target = Target::resolve(&plan).await?;
    target.probe().await?;
    let metrics = match &plan.metrics_url {
        Some(url) => Some(MetricsUrl::connect(url, plan.tls.as_ref()).await?),
        None => None,
    };
    let ending = CancellationToken::new();
    // If this function returns early or is cancelled, the threads end as well.
    let _end_threads = ending.clone().drop_guard();
    let mut running = Running::start(&plan, &target, &ending)?;
    let start = running.start.clone();
    let started = tokio::select! {
        // A short run may be over before this task is polled again: it began nevertheless.
        biased;
        started = start.wait() => started,
        ended = running.thread_ended() => return Err(ended.err().unwrap_or_else(ended_early)),
    };
    let backlog = Backlog::poll(metrics);

    let measured_from = started + plan.warm_up;
    let end = plan.duration.map(|duration| measured_from + duration);
    let mut seconds = interval_at((measured_from + SECOND).into(), SECOND);
    let mut collector = Collector::new(running.recorders.clone(), measured_from)?;
    let mut interrupted = false;
    while !running.threads.is_empty() {
        tokio::select! {
            ended = running.thread_ended() => running.cpu += ended?,
            _ = seconds.tick() => collector.collect(backlog.now(), &mut on_second),
            () = wait_until(end), if !ending.is_cancelled() => ending.cancel(),
            () = stop.cancelled(), if !ending.is_cancelled() => {
                interrupted = true;
                ending.cancel();
            }
        }
    }
    let planned = plan.duration.filter(|_| !interrupted);
    let mut report = collector.finish(plan, planned, backlog.now(), &mut on_second);
    report.interrupted = interrupted;
    report.cpu = running.cpu;
    Ok(report)
}

async fn wait_until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

fn ended_early() -> LoadError {
    LoadError::Thread(io::Error::other("it ended before the run began"))
}

/// The threads of a run.
struct Running {
    threads: JoinSet<io::Result<Duration>>,
    recorders: Vec<Arc<Mutex<Recorder>>>,
    start: Arc<Start>,
    /// Processor time of the threads that have ended.
    cpu: Duration,
}

impl Running {
    fn start(plan: &Plan, target: &Target, ending: &CancellationToken) -> Result<Self, LoadError> {
        let threads = plan.threads.min(plan.connections);
        let start = Arc::new(Start {
            barrier: Barrier::new(threads + 1),
            time: OnceLock::new(),
            warm_up: plan.warm_up,
            duration: plan.duration,
        });
        let (template, budget) = (RequestTemplate::new(plan), Arc::new(Budget::new(plan.calls)));
        let empty = Interval::empty()?;
        let mut running =
            Self { threads: JoinSet::new(), recorders: Vec::new(), start, cpu: Duration::ZERO };
        for thread in 0..threads {
            // The first threads have one more, if they cannot be divided evenly.
            let more = usize::from(thread < plan.connections % threads);
            let connections = plan.connections / threads + more;
            let recorder = Arc::new(Mutex::new(Recorder::new(empty.clone())));
            running.recorders.push(recorder.clone());
            let shared = Shared {
                target: target.clone(),
                head: Head::new(plan.call, plan.credential.as_ref(), target)?,
                timeout: plan.timeout,
                budget: budget.clone(),
                ending: ending.clone(),
                recorder,
                requests: Mutex::new(Requests::new(template.clone(), thread, threads)),
                responses: Responses::new(plan),
                statuses: Mutex::default(),
            };
            let worker = Worker {
                shared: Arc::new(shared),
                connections,
                streams: plan.streams,
                schedule: schedule(plan, thread, connections),
                start: running.start.clone(),
            };
            running.threads.spawn_blocking(|| worker.run());
        }
        Ok(running)
    }

    /// Waits until one of the threads ends; returns its CPU time.
    async fn thread_ended(&mut self) -> Result<Duration, LoadError> {
        match self.threads.join_next().await {
            Some(Ok(ended)) => ended.map_err(LoadError::Thread),
            Some(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => Err(LoadError::Thread(cancelled.into())),
            },
            None => Ok(Duration::ZERO),
        }
    }
}

fn schedule(plan: &Plan, thread: usize, connections: usize) -> Option<Schedule> {
    let Pace::Open { rate } = plan.pace else { return None };
    let part = connections as f64 / plan.connections as f64;
    Some(Schedule::of_thread(rate, thread as f64, part))
}

/// The backlog as it was last read.
struct Backlog {
    read: watch::Receiver<Option<u64>>,
    /// Ends the reading when this is dropped.
    _reading: JoinSet<()>,
}

impl Backlog {
    /// Reads it until this is dropped, if there is a page of metrics, beginning with what was read of it.
    fn poll(metrics: Option<(MetricsUrl, u64)>) -> Self {
        let (last, read) = watch::channel(metrics.as_ref().map(|(_, backlog)| *backlog));
        let mut reading = JoinSet::new();
        if let Some((metrics, _)) = metrics {
            reading.spawn(async move {
                let mut ticks = tokio::time::interval(SECOND / 2);
                loop {
                    ticks.tick().await;
                    last.send_replace(metrics.backlog().await);
                }
            });
        }
        Self { read, _reading: reading }
    }

    fn now(&self) -> Option<u64> {
        *self.read.borrow()
    }
}

/// Puts together what the threads recorded.
struct Collector {
    recorders: Vec<Arc<Mutex<Recorder>>>,
    measured_from: Instant,
    empty: Interval,
    total: Interval,
    seconds: Vec<Second>,
}

impl Collector {
    fn new(
        recorders: Vec<Arc<Mutex<Recorder>>>,
        measured_from: Instant,
    ) -> Result<Self, LoadError> {
        let empty = Interval::empty()?;
        let (total, seconds) = (empty.clone(), Vec::new());
        Ok(Self { recorders, measured_from, empty, total, seconds })
    }

    /// Collects the seconds that are over.
    fn collect(&mut self, backlog: Option<u64>, on_second: &mut impl FnMut(&Second)) {
        let now = Instant::now().saturating_duration_since(self.measured_from).as_secs();
        self.collect_before(now, backlog, on_second);
    }

    fn collect_before(
        &mut self,
        number: u64,
        backlog: Option<u64>,
        on_second: &mut impl FnMut(&Second),
    ) {
        let mut found: BTreeMap<u64, Interval> = BTreeMap::new();
        for recorder in &self.recorders {
            for interval in lock(recorder).take_before(number) {
                match found.get_mut(&interval.number) {
                    Some(same) => same.merge(&interval),
                    None => drop(found.insert(interval.number, interval)),
                }
            }
        }
        // Seconds without any call are part of the run as well.
        for number in self.seconds.len() as u64..number {
            let interval = found.get(&number).unwrap_or(&self.empty);
            self.total.merge(interval);
            let second = Second {
                number,
                answered: interval.outcomes.answered(),
                p50: Duration::from_micros(interval.latency.value_at_quantile(0.5)),
                p99: Duration::from_micros(interval.latency.value_at_quantile(0.99)),
                outcomes: interval.outcomes.clone(),
                backlog,
            };
            on_second(&second);
            self.seconds.push(second);
        }
    }

    /// The report, when every thread has ended; `planned` is the time that the run had at least.
    fn finish(
        mut self,
        plan: Plan,
        planned: Option<Duration>,
        backlog: Option<u64>,
        on_second: &mut impl FnMut(&Second),
    ) -> Report {
        let last_end = self.recorders.iter().filter_map(|recorder| lock(recorder).last_end).max();
        let elapsed = last_end.map(|end| end.saturating_duration_since(self.measured_from));
        let elapsed = elapsed.unwrap_or_default();
        self.collect_before(elapsed.as_secs() + 1, backlog, on_second);
        let mut report = Report {
            plan,
            elapsed: elapsed.max(planned.unwrap_or_default()),
            outcomes: self.total.outcomes,
            seconds: self.seconds,
            connections: Default::default(),
            not_started: 0,
            interrupted: false,
            cpu: Duration::ZERO,
            warm_up_calls: 0,
            accepted_ids: Vec::new(),
            latency: self.total.latency,
        };
        for recorder in &self.recorders {
            let mut recorder = lock(recorder);
            report.connections.merge(recorder.connections);
            report.not_started += recorder.not_started;
            report.warm_up_calls += recorder.warm_up_calls;
            report.accepted_ids.append(&mut recorder.accepted_ids);
        }
        report
    }
}
