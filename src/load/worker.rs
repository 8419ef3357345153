//! One thread of a run, with its own runtime, connections and callers.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use nix::sys::resource::{UsageWho, getrusage};
use tokio::{
    runtime,
    sync::{Barrier, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    caller::{Caller, Shared, Starts},
    connection::keep_connected,
    schedule::{OpenLoop, Schedule, Timer},
};

/// The start that all threads of a run have in common.
#[derive(Debug)]
pub(super) struct Start {
    /// Every thread, and the one that waits for them.
    pub(super) barrier: Barrier,
    /// When the last of them was ready.
    pub(super) time: OnceLock<Instant>,
    pub(super) warm_up: Duration,
    /// Without the warm-up.
    pub(super) duration: Option<Duration>,
}

impl Start {
    /// Waits for the others; returns when the run starts.
    pub(super) async fn wait(&self) -> Instant {
        self.barrier.wait().await;
        *self.time.get_or_init(Instant::now)
    }
}

/// The work of one thread.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) connections: usize,
    /// Callers on each connection.
    pub(super) streams: usize,
    /// Absent in a closed loop.
    pub(super) schedule: Option<Schedule>,
    pub(super) start: Arc<Start>,
}

impl Worker {
    /// Runs on this thread until the end; returns the CPU time that it used.
    pub(super) fn run(self) -> io::Result<Duration> {
        let before = cpu_time()?;
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.call_until_the_end())?;
        drop(runtime);
        Ok(cpu_time()?.saturating_sub(before))
    }

    async fn call_until_the_end(self) -> io::Result<()> {
        let Self { shared, connections, streams, schedule, start } = self;
        let timer = Timer::new()?;
        // Every connection is made before the first call.
        let firsts = join_all((0..connections).map(|_| shared.target.connect())).await;
        let Some(started) = shared.ending.run_until_cancelled(start.wait()).await else {
            return Ok(());
        };
        let measured_from = started + start.warm_up;
        shared.recorder().measure_from(measured_from);
        let end = start.duration.map(|duration| start.warm_up + duration);
        let open_loop = schedule.map(|schedule| OpenLoop::new(schedule, started, end));
        let starts = Arc::new(Starts { measured_from, open_loop });

        let (mut keepers, mut callers) = (JoinSet::new(), JoinSet::new());
        let ended = CancellationToken::new();
        for first in firsts {
            let (current, connection) = watch::channel(None);
            keepers.spawn(keep_connected(shared.clone(), first, current, ended.clone()));
            for _ in 0..streams {
                let caller = Caller::new(shared.clone(), connection.clone());
                callers.spawn(caller.run(starts.clone()));
            }
        }
        let pace = async {
            if let Some(open_loop) = &starts.open_loop {
                open_loop.pace(&timer).await?;
            }
            std::future::pending::<io::Result<()>>().await
        };
        let paced = tokio::select! {
            () = shared.ending.cancelled() => Ok(()),
            () = join_all_tasks(&mut callers) => Ok(()),
            paced = pace => paced,
        };
        shared.budget.close();
        if let Some(open_loop) = &starts.open_loop {
            let not_taken = open_loop.close();
            // Otherwise the plan's number of calls was reached.
            if shared.ending.is_cancelled() {
                shared.recorder().not_started = not_taken;
            }
        }
        join_all_tasks(&mut callers).await;
        ended.cancel();
        join_all_tasks(&mut keepers).await;
        paced
    }
}

/// Waits for every task. A panic of one is a panic here.
async fn join_all_tasks(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// The CPU time of this thread so far.
fn cpu_time() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = |time: nix::sys::time::TimeVal| {
        use nix::sys::time::TimeValLike as _;
        Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or(0))
    };
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}
