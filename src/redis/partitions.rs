//! What this process believes of each partition, and the one way to run a script on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use ::redis::{FromRedisValue, ParsingError, RedisError, Value};
use uuid::Uuid;

use super::{Applied, Commands, Connection, FenceError, FenceReason, Keys, Script};
use crate::{
    domain::{Epoch, Partition, PartitionCount},
    telemetry::Metrics,
};

/// A handle on every partition; clones share what is known.
#[derive(Clone)]
pub struct Partitions {
    connection: Connection,
    keys: Keys,
    count: PartitionCount,
    deployment: Uuid,
    metrics: Metrics,
    /// 0: not known to be open.
    epochs: Arc<[AtomicU32]>,
    /// The last epoch believed in and its highest seq seen, as epoch and 36 bits of seq; 0: none yet.
    seen: Arc<[AtomicU64]>,
    /// Whether nothing may be sold, wherever it is open.
    forbidden: Arc<AtomicBool>,
    /// Whether this process is taking units now.
    taking: Arc<[AtomicBool]>,
}

const SEQ_BITS: u32 = 36;

/// Held while units are taken from a partition.
pub struct Taking<'a> {
    flag: &'a AtomicBool,
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.flag.store(false, Ordering::SeqCst);
    }
}

impl Partitions {
    /// Partitions behind one connection, none known to be open yet.
    pub fn new(
        connection: Connection,
        keys: Keys,
        (deployment, count): (Uuid, PartitionCount),
        metrics: Metrics,
    ) -> Self {
        let epochs = count.all().map(|_| AtomicU32::new(0)).collect();
        let seen = count.all().map(|_| AtomicU64::new(0)).collect();
        let taking = count.all().map(|_| AtomicBool::new(false)).collect();
        let forbidden = Arc::default();
        Self { connection, keys, count, deployment, metrics, epochs, seen, forbidden, taking }
    }

    /// The instruments of whoever works on them.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How many there are.
    pub fn count(&self) -> PartitionCount {
        self.count
    }

    /// Their keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// A connection for plain commands that change no stock; never for a blocking one.
    pub fn connection(&self) -> Commands {
        Commands::new(self.connection.clone(), self.metrics.clone())
    }

    /// Believe that a partition is open in this epoch, or (`None`) that it is not open.
    pub fn set_epoch(&self, partition: Partition, epoch: Option<Epoch>) {
        if let Some(epoch) = epoch {
            self.saw(partition, epoch, 0);
        }
        self.epochs[partition.index()].store(epoch.map_or(0, |epoch| epoch.0), Ordering::SeqCst);
    }

    /// Nothing is sold any more, or it is again: for a Redis whose settings are not safe.
    pub fn forbid(&self, forbidden: bool) {
        self.forbidden.store(forbidden, Ordering::Release);
    }

    /// The epoch to sell in.
    ///
    /// # Errors
    ///
    /// `Fenced` when the partition is not known to be open, or selling is forbidden.
    pub fn selling_epoch(&self, partition: Partition) -> Result<Epoch, FenceError> {
        if self.forbidden.load(Ordering::Acquire) {
            return Err(FenceError::Fenced(FenceReason::Settings));
        }
        self.epoch(partition)
    }

    /// This process was told of an accept.
    pub fn saw(&self, partition: Partition, epoch: Epoch, seq: u64) {
        let mark = u64::from(epoch.0) << SEQ_BITS | seq;
        self.seen[partition.index()].fetch_max(mark, Ordering::SeqCst);
    }

    /// The last epoch this process believed in, and the highest seq it saw of it.
    pub fn seen(&self, partition: Partition) -> Option<(Epoch, u64)> {
        let mark = self.seen[partition.index()].load(Ordering::SeqCst);
        let epoch = u32::try_from(mark >> SEQ_BITS).unwrap_or(u32::MAX);
        (epoch > 0).then_some((Epoch(epoch), mark & ((1 << SEQ_BITS) - 1)))
    }

    /// Units are taken until the answer is dropped; by one task a partition.
    pub fn take(&self, partition: Partition) -> Taking<'_> {
        let flag = &self.taking[partition.index()];
        flag.store(true, Ordering::SeqCst);
        Taking { flag }
    }

    /// Whether units are being taken. Where no epoch is believed in, nobody begins to.
    pub fn is_taking(&self, partition: Partition) -> bool {
        self.taking[partition.index()].load(Ordering::SeqCst)
    }

    /// The epoch believed in.
    ///
    /// # Errors
    ///
    /// `Fenced` when the partition is not known to be open.
    pub fn epoch(&self, partition: Partition) -> Result<Epoch, FenceError> {
        match self.epochs[partition.index()].load(Ordering::SeqCst) {
            0 => Err(FenceError::Fenced(FenceReason::Unknown)),
            epoch => Ok(Epoch(epoch)),
        }
    }

    /// Runs a script under the epoch believed in; returns its answer, whose first word is its status.
    ///
    /// # Errors
    ///
    /// `Fenced` and `Unavailable { applied: No }` mean that nothing was done.
    pub async fn run(
        &self,
        partition: Partition,
        script: &Script,
        keys: &[String],
        args: &[&str],
    ) -> Result<Vec<String>, FenceError> {
        self.run_in(self.epoch(partition)?, script, keys, args).await
    }

    /// Runs a script under an epoch that the caller knows.
    ///
    /// # Errors
    ///
    /// As [`Partitions::run`].
    pub async fn run_in(
        &self,
        epoch: Epoch,
        script: &Script,
        keys: &[String],
        args: &[&str],
    ) -> Result<Vec<String>, FenceError> {
        let caller = format!("{epoch} {}", self.deployment);
        let mut all = Vec::with_capacity(args.len() + 1);
        all.push(caller.as_str());
        all.extend_from_slice(args);
        self.call_script(script, keys, &all).await
    }

    /// Runs a script that is not fenced by an epoch: for opening a new partition and reading what Redis holds of one.
    ///
    /// # Errors
    ///
    /// As [`Partitions::run`].
    pub async fn call_script(
        &self,
        script: &Script,
        keys: &[String],
        args: &[&str],
    ) -> Result<Vec<String>, FenceError> {
        let started = Instant::now();
        let answer = self.answer(script, keys, args).await;
        let error = answer.as_ref().err().map(FenceError::label);
        self.metrics.script(script.name(), started.elapsed(), error);
        answer
    }

    async fn answer(
        &self,
        script: &Script,
        keys: &[String],
        args: &[&str],
    ) -> Result<Vec<String>, FenceError> {
        let mut connection = self.connection.clone();
        let answer: Vec<Word> = script.call(keys, args).invoke_async(&mut connection).await?;
        unfenced(answer.into_iter().map(|word| word.0).collect())
    }

    /// These partitions behind a connection of the caller's own: for what may block it.
    pub fn on(&self, connection: Connection) -> Self {
        Self { connection, ..self.clone() }
    }

    /// Runs a script that takes no arguments once for each of these keys, and then waits until `replicas` have
    /// everything up to there, `wait_ms` at most: all of it on one connection in one go, which it blocks.
    /// Returns what each call came to, and how many replicas have it.
    ///
    /// # Errors
    ///
    /// When Redis is away, or refuses one of the calls.
    pub async fn run_and_wait(
        &self,
        script: &Script,
        calls: &[(Epoch, String)],
        (replicas, wait_ms): (u32, u64),
    ) -> Result<(Vec<Result<(), FenceError>>, u32), FenceError> {
        let mut pipeline = ::redis::pipe();
        for (epoch, key) in calls {
            let caller = format!("{epoch} {}", self.deployment);
            pipeline.add_command(script.whole_call(std::slice::from_ref(key), &[&caller]));
        }
        pipeline.cmd("WAIT").arg(replicas).arg(wait_ms);
        let started = Instant::now();
        let answered: Result<Vec<Value>, _> =
            pipeline.query_async(&mut self.connection.clone()).await;
        let answered = answered.map_err(FenceError::from);
        let error = answered.as_ref().err().map(FenceError::label);
        self.metrics.script(script.name(), started.elapsed(), error);
        let mut answers = answered?;
        let waited = answers.pop().unwrap_or(Value::Nil);
        let reached = ::redis::from_redis_value(waited).map_err(RedisError::from)?;
        let answers = answers.into_iter().map(|answer| {
            let answer = ::redis::from_redis_value(answer).map_err(RedisError::from)?;
            expect(unfenced(answer)?, &["ok"])
        });
        Ok((answers.collect(), reached))
    }

    /// Whether Redis answers at all.
    ///
    /// # Errors
    ///
    /// `Unavailable` when it does not.
    pub async fn ping(&self) -> Result<(), FenceError> {
        let pong: Result<String, _> =
            ::redis::cmd("PING").query_async(&mut self.connection()).await;
        pong.map(drop).map_err(|source| FenceError::Unavailable { applied: Applied::No, source })
    }
}

/// A word of a script's answer; what is not UTF-8 in it is replaced, since entries may hold anything.
struct Word(String);

impl FromRedisValue for Word {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        if let Value::BulkString(bytes) = value {
            return Ok(Self(String::from_utf8_lossy(&bytes).into_owned()));
        }
        String::from_redis_value(value).map(Self)
    }
}

/// Takes an answer of which only its status counts, one of these.
///
/// # Errors
///
/// `Malformed` when it is another one.
pub fn expect(answer: Vec<String>, statuses: &[&str]) -> Result<(), FenceError> {
    let known = answer.first().is_some_and(|status| statuses.contains(&status.as_str()));
    if known { Ok(()) } else { Err(FenceError::Malformed(answer)) }
}

/// A script's answer, unless it says that its partition is fenced.
fn unfenced(answer: Vec<String>) -> Result<Vec<String>, FenceError> {
    match answer.as_slice() {
        [status, reason] if status == "fenced" => {
            Err(FenceError::Fenced(FenceReason::from_word(reason)))
        }
        [] => Err(FenceError::Malformed(answer)),
        [_, ..] => Ok(answer),
    }
}
