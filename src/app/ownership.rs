//! Runs the loops of the partitions that this worker owns. Once a second it records that it runs, reads which other
//! workers do, and begins and ends loops accordingly.
//!
//! A worker owns a partition unless another worker that it has seen running has a better claim. So it begins with every
//! partition, as if it were the only one, and a row that a killed process left takes nothing from it.
//!
//! Must never: leave a partition alone because it is not known who owns it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    future::{join_all, ready},
    stream,
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Stores;
use crate::{
    domain::Partition,
    ledger::Beat,
    redis::Connection,
    stream::Progress,
    tasks::{Tasks, tick},
    worker::{
        Consumer, LiveWorkers, PauseReason, READ_ROUNDS, Releaser, Unattended, WorkerContext,
        is_auditor, owned_partitions, owners,
    },
};

/// How often a worker records that it runs.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long that may take, with a new connection to the last of several hosts, and the removal of its row.
const BEAT_LIMIT: Duration = Duration::from_secs(5);
const REMOVAL_LIMIT: Duration = Duration::from_secs(1);
/// After so many rounds, the partitions of other workers are checked.
const CHECK_ROUNDS: u32 = 5;
/// How long such a check may take, and how many partitions of one master it reads at the same time.
const CHECK_LIMIT: Duration = Duration::from_secs(1);
const CHECK_CONCURRENCY_MAX: usize = 16;
/// After so many rounds, other workers have noticed that this one ends: it has removed its row, or could not.
const NOTICED_AFTER: u32 = 2;
const SILENCE_NOTICED_AFTER: u32 = 5;

/// Which loops a worker runs, apart from consumers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loops {
    /// Whether it releases dead entries.
    pub(super) release: bool,
    /// How often it audits, if it does.
    pub(super) audit_interval: Option<Duration>,
}

/// A loop that runs until `stop`.
struct Running {
    stop: CancellationToken,
    /// The loop holds it.
    held: Weak<()>,
}

impl Running {
    fn has_ended(&self) -> bool {
        self.held.strong_count() == 0
    }
}

/// A connection for the consumer of a partition, as soon as Redis can be reached.
async fn open_reader(stores: &Stores, partition: Partition) -> Connection {
    loop {
        match stores.reader(partition).await {
            Ok(reader) => return reader,
            Err(error) => {
                let error: &dyn std::error::Error = error.as_ref();
                tracing::warn!(%partition, error, "a partition of this worker cannot be read; trying again");
            }
        }
        sleep(BEAT_INTERVAL).await;
    }
}

/// What these reads return within the limit of a check.
async fn within_limit<T>(reads: Vec<impl Future<Output = Option<T>>>) -> Vec<T> {
    let reads = stream::iter(reads).buffer_unordered(CHECK_CONCURRENCY_MAX);
    reads.filter_map(ready).take_until(sleep(CHECK_LIMIT)).collect().await
}

/// What this worker owns, and the loops that it runs.
pub(super) struct Ownership {
    stores: Stores,
    context: WorkerContext,
    loops: Loops,
    tasks: Tasks,
    /// Ends every loop.
    stop: CancellationToken,
    beat: Beat,
    /// Whether the last beat was recorded.
    is_recorded: bool,
    others: LiveWorkers,
    /// The partitions that this worker owns beside these live workers.
    owned: (Vec<String>, Vec<Partition>),
    unattended: Unattended,
    round: u32,
    partitions: BTreeMap<Partition, Running>,
    audit: Option<Running>,
    /// How many partitions it reads, and over how many workers they are spread.
    published: (usize, usize),
}

impl Ownership {
    /// Begins with every partition. Its loops are tasks of `tasks`, and end at `stop`. Fails if Redis cannot be reached.
    pub(super) async fn begin(
        stores: Stores,
        context: WorkerContext,
        loops: Loops,
        tasks: &Tasks,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let audits = loops.audit_interval.is_some();
        let beat = Beat { worker: context.consumer.clone(), beat: 0, audits };
        let interval = BEAT_INTERVAL * CHECK_ROUNDS;
        let partitions = stores.deployment.partitions;
        let mut this = Self {
            unattended: Unattended::new(context.settings.takeover_idle, interval),
            stores,
            context,
            loops,
            tasks: tasks.clone(),
            stop: stop.clone(),
            beat,
            is_recorded: true,
            others: LiveWorkers::default(),
            owned: (Vec::new(), partitions.all().collect()),
            round: 0,
            partitions: BTreeMap::new(),
            audit: None,
            published: (0, 0),
        };
        for partition in partitions.all() {
            this.begin_partition(partition);
        }
        this.begin_audit();
        this.publish();
        Ok(this)
    }

    /// Follows the other workers until `leaving`, when it reports that it ends. If others run, its loops end as soon as
    /// those have noticed: they need no second reader, releaser and auditor. Otherwise its loops continue until their stop.
    pub(super) async fn run(mut self, leaving: CancellationToken) {
        loop {
            self.record_beat().await;
            leaving.run_until_cancelled(self.follow()).await;
            if !tick(BEAT_INTERVAL, &leaving).await {
                break;
            }
        }
        let own = std::slice::from_ref(&self.beat);
        let removed = timeout(REMOVAL_LIMIT, self.stores.pools.beats.remove_workers(own)).await;
        let is_removed = matches!(removed, Ok(Ok(())));
        if !is_removed {
            tracing::debug!("the row of this worker was not removed: others notice its end in 3 s");
        }
        let rounds = if is_removed { NOTICED_AFTER } else { SILENCE_NOTICED_AFTER };
        if self.others.live().next().is_some() && tick(BEAT_INTERVAL * rounds, &self.stop).await {
            for partition in self.stores.deployment.partitions.all() {
                self.end_partition(partition);
            }
            self.end_audit();
            self.publish();
        }
    }

    /// Records that this worker runs, and observes the others. While Postgres does not answer, others stay as they were seen
    /// last, and each worker keeps what it has.
    async fn record_beat(&mut self) {
        self.beat.beat += 1;
        let ledger = &self.stores.pools.beats;
        let beats = timeout(BEAT_LIMIT, ledger.beat(&self.beat)).await;
        let recorded = matches!(beats, Ok(Ok(_)));
        if let (true, false) = (self.is_recorded, recorded) {
            let error = beats.as_ref().ok().and_then(|beats| beats.as_ref().err());
            let error = error.map(|error| error as &dyn std::error::Error);
            tracing::warn!(
                error,
                "this worker cannot record in Postgres that it runs: other workers may read its partitions"
            );
        }
        self.is_recorded = recorded;
        let Ok(Ok(beats)) = beats else { return };
        self.others.observe(beats);
        let ended = self.others.ended();
        if !matches!(timeout(REMOVAL_LIMIT, ledger.remove_workers(&ended)).await, Ok(Ok(()))) {
            tracing::debug!("rows of workers that have ended were not removed");
        }
    }

    /// Begins and ends loops by what is known of the other workers.
    async fn follow(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.unattended.end_round();
        if self.round.is_multiple_of(CHECK_ROUNDS) && self.can_store() {
            self.check_unattended().await;
            self.check_owners().await;
        }
        let is_auditor = self.assign();
        for partition in self.stores.deployment.partitions.all() {
            let is_owned = self.owned.1.binary_search(&partition).is_ok();
            if is_owned || self.unattended.is_read_here(partition) {
                self.begin_partition(partition);
            } else {
                self.end_partition(partition);
            }
        }
        if is_auditor {
            self.begin_audit();
        } else {
            self.end_audit();
        }
        self.publish();
    }

    /// Whether this worker could store orders of others. If Postgres does not even store its own, it is not the others that
    /// fail. If only its beat fails, it may be the only one that runs.
    fn can_store(&self) -> bool {
        let pauses = self.context.pauses.by_reason();
        self.is_recorded || pauses.iter().all(|(why, _)| *why != PauseReason::LedgerTransient)
    }

    /// Computes what this worker owns beside the workers that are live now; returns whether it is the one that audits.
    fn assign(&mut self) -> bool {
        let own = self.beat.worker.as_str();
        let live: Vec<&Beat> = self.others.live().collect();
        let others: Vec<&str> = live.iter().map(|beat| beat.worker.as_str()).collect();
        if self.owned.0 != others {
            let owned = owned_partitions(own, &others, self.stores.deployment.partitions);
            self.owned = (others.iter().map(|&other| other.to_owned()).collect(), owned);
        }
        let auditors = live.iter().filter(|beat| beat.audits);
        let auditors: Vec<&str> = auditors.map(|beat| beat.worker.as_str()).collect();
        is_auditor(own, &auditors)
    }

    /// Reads how far the orders of other workers' partitions are. A partition that is fenced, or cannot be read, is left
    /// out, and does not keep the others from being checked. The masters are asked at the same time, because one of several
    /// may not answer.
    async fn check_unattended(&mut self) {
        let masters = self.stores.stock.partitions().masters().into_iter();
        let reads: Vec<_> = masters.map(|(_, partitions)| self.read_progress(partitions)).collect();
        for (partition, progress) in join_all(reads).await.into_iter().flatten() {
            if self.unattended.check(partition, progress) {
                tracing::warn!(%partition, "orders wait, and the worker that owns the partition does not store them: this worker reads them as well for a minute");
            }
        }
    }

    /// What could be read within the limit of the partitions of one master, without those that this worker reads.
    async fn read_progress(
        &self,
        partitions: Vec<Partition>,
    ) -> Vec<(Partition, Option<Progress>)> {
        let Stores { stock, streams, .. } = &self.stores;
        let others = partitions.into_iter().filter(|partition| {
            let is_open = stock.partitions().epoch(*partition).is_ok();
            is_open && !self.partitions.contains_key(partition)
        });
        let reads = others.map(|partition| async move {
            Some((partition, streams.progress(partition).await.ok()?))
        });
        within_limit(reads.collect()).await
    }

    /// Goes on to read the partitions of other workers whose minute ends and whose owners read nothing of them meanwhile.
    async fn check_owners(&mut self) {
        let ending = self.unattended.ending(CHECK_ROUNDS);
        if ending.is_empty() {
            return;
        }
        let others = self.others.live().map(|beat| beat.worker.as_str());
        let workers: Vec<&str> = others.chain([self.beat.worker.as_str()]).collect();
        let owners: BTreeMap<_, _> =
            owners(&workers, self.stores.deployment.partitions).into_iter().collect();
        let idle_ms = (BEAT_INTERVAL * (READ_ROUNDS - CHECK_ROUNDS)).as_millis();
        let idle_ms = usize::try_from(idle_ms).unwrap_or(usize::MAX);
        let (streams, owners) = (&self.stores.streams, &owners);
        let reads = ending.iter().map(|&partition| async move {
            let reading = streams.is_reading(partition, owners.get(&partition)?, idle_ms).await;
            reading.is_ok_and(|is_reading| is_reading).then_some(partition)
        });
        let reading: Vec<Partition> = within_limit(reads.collect()).await;
        for partition in ending.into_iter().filter(|ending| !reading.contains(ending)) {
            tracing::debug!(%partition, "the worker that owns the partition has read none of its orders: this worker reads them for another minute");
            self.unattended.read_on(partition);
        }
    }

    /// Begins the loops of a partition, unless they run. Its consumer opens its connection itself: neither the start nor a
    /// round waits for a master that does not answer.
    fn begin_partition(&mut self, partition: Partition) {
        // A consumer that is ending stores what it has read.
        if self.partitions.get(&partition).is_some_and(|running| !running.has_ended()) {
            return;
        }
        let (stop, hold) = (self.stop.child_token(), Arc::new(()));
        let running = Running { stop: stop.clone(), held: Arc::downgrade(&hold) };
        if self.loops.release {
            let releaser = Releaser::new(self.context.clone(), partition);
            // Nothing waits for its end: two releasers are what two workers were, and orders would wait for the entry that
            // it releases last.
            self.tasks.spawn("releaser", releaser.run(stop.clone()));
        }
        let (stores, context) = (self.stores.clone(), self.context.clone());
        self.tasks.spawn("consumer", async move {
            let reader = stop.run_until_cancelled(open_reader(&stores, partition)).await;
            if let Some(reader) = reader {
                Consumer::new(context, partition, reader).run(stop).await;
            }
            drop(hold);
        });
        self.partitions.insert(partition, running);
    }

    fn end_partition(&mut self, partition: Partition) {
        if let Some(running) = self.partitions.get(&partition) {
            running.stop.cancel();
            if running.has_ended() {
                self.partitions.remove(&partition);
            }
        }
    }

    fn begin_audit(&mut self) {
        let Some(interval) = self.loops.audit_interval else { return };
        if self.audit.as_ref().is_some_and(|running| !running.has_ended()) {
            return;
        }
        let (stop, hold) = (self.stop.child_token(), Arc::new(()));
        self.audit = Some(Running { stop: stop.clone(), held: Arc::downgrade(&hold) });
        let (auditor, metrics) = (self.stores.auditor.clone(), self.stores.metrics.clone());
        self.tasks.spawn("audit", async move {
            auditor.run(metrics, interval, stop).await;
            drop(hold);
        });
    }

    fn end_audit(&mut self) {
        let Some(running) = &self.audit else { return };
        running.stop.cancel();
        if running.has_ended() {
            self.stores.metrics.clear_audit();
            self.audit = None;
        }
    }

    /// Sets the metrics, and logs a change.
    fn publish(&mut self) {
        let read = self.partitions.values().filter(|running| !running.stop.is_cancelled()).count();
        let (workers, of) =
            (self.others.live().count() + 1, self.stores.deployment.partitions.get());
        self.stores.metrics.set_spread(workers, read);
        if self.published != (read, workers) {
            self.published = (read, workers);
            tracing::info!(
                "this worker reads {read} of {of} partitions; workers that run: {workers}"
            );
        }
    }
}
