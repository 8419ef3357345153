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
    ledger::{Beat, LedgerError},
    stream::Progress,
    tasks::{Tasks, tick},
    worker::{
        Consumer, LiveWorkers, Releaser, Unattended, WorkerContext, is_auditor, owned_partitions,
    },
};

/// How often a worker records that it runs.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long that may take, and the removal of its row.
const BEAT_LIMIT: Duration = Duration::from_secs(2);
const REMOVAL_LIMIT: Duration = Duration::from_secs(1);
/// After so many rounds, the partitions of other workers are checked.
const CHECK_ROUNDS: u32 = 5;
/// How long such a check may take, and how many partitions of one master it reads at the same time.
const CHECK_LIMIT: Duration = Duration::from_secs(1);
const CHECK_CONCURRENCY_MAX: usize = 16;

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
            this.begin_partition(partition).await?;
        }
        this.begin_audit();
        this.publish();
        Ok(this)
    }

    /// Follows the other workers until `leaving`, when it reports that it ends. Its loops continue until their stop.
    pub(super) async fn run(mut self, leaving: CancellationToken) {
        loop {
            self.run_round(&leaving).await;
            if !tick(BEAT_INTERVAL, &leaving).await {
                break;
            }
        }
        let removed = self.stores.ledger.remove_workers(std::slice::from_ref(&self.beat));
        if !matches!(timeout(REMOVAL_LIMIT, removed).await, Ok(Ok(()))) {
            tracing::debug!("the row of this worker was not removed: others notice its end in 3 s");
        }
    }

    async fn run_round(&mut self, leaving: &CancellationToken) {
        self.beat.beat += 1;
        let beats = timeout(BEAT_LIMIT, self.stores.ledger.beat(&self.beat)).await;
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
        // Without Postgres nothing can be stored, and each worker keeps what it has.
        let Ok(Ok(beats)) = beats else { return };
        self.others.observe(beats);
        let follow = async {
            if let Err(error) = self.follow().await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "rows of workers that have ended were not removed"
                );
            }
        };
        leaving.run_until_cancelled(follow).await;
    }

    /// Begins and ends loops by what is known of the other workers.
    async fn follow(&mut self) -> Result<(), LedgerError> {
        self.round = self.round.wrapping_add(1);
        self.unattended.end_round();
        if self.round.is_multiple_of(CHECK_ROUNDS) {
            self.check_unattended().await;
        }
        let is_auditor = self.assign();
        for partition in self.stores.deployment.partitions.all() {
            let is_owned = self.owned.1.binary_search(&partition).is_ok();
            if !is_owned && !self.unattended.is_read_here(partition) {
                self.end_partition(partition);
            } else if let Err(error) = self.begin_partition(partition).await {
                let error = error.as_ref() as &dyn std::error::Error;
                tracing::warn!(%partition, error, "a partition of this worker cannot be read; trying again");
            }
        }
        if is_auditor {
            self.begin_audit();
        } else {
            self.end_audit();
        }
        self.publish();
        self.stores.ledger.remove_workers(&self.others.ended()).await
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
    /// out. The masters are asked at the same time, because one of several may not answer.
    async fn check_unattended(&mut self) {
        let masters = self.stores.stock.partitions().masters().into_iter();
        let reads: Vec<_> = masters.map(|(_, partitions)| self.read_progress(partitions)).collect();
        let read = join_all(reads).await;
        for (partition, progress) in read.into_iter().flatten() {
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
        let reads: Vec<_> = reads.collect();
        let reads = stream::iter(reads).buffer_unordered(CHECK_CONCURRENCY_MAX);
        reads.filter_map(ready).take_until(sleep(CHECK_LIMIT)).collect().await
    }

    /// Begins the loops of a partition, unless they run.
    async fn begin_partition(&mut self, partition: Partition) -> anyhow::Result<()> {
        // A consumer that is ending stores what it has read.
        if self.partitions.get(&partition).is_some_and(|running| !running.has_ended()) {
            return Ok(());
        }
        let reader = self.stores.reader(partition).await?;
        let (stop, hold) = (self.stop.child_token(), Arc::new(()));
        let running = Running { stop: stop.clone(), held: Arc::downgrade(&hold) };
        if self.loops.release {
            let releaser = Releaser::new(self.context.clone(), partition);
            // Nothing waits for its end: two releasers are what two workers were, and orders would wait for the entry that
            // it releases last.
            self.tasks.spawn("releaser", releaser.run(stop.clone()));
        }
        let consumer = Consumer::new(self.context.clone(), partition, reader);
        self.tasks.spawn("consumer", async move {
            consumer.run(stop).await;
            drop(hold);
        });
        self.partitions.insert(partition, running);
        Ok(())
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
