//! What this process believes of each partition, and the one way to run a script on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use redis::aio::ConnectionManager;
use uuid::Uuid;

use super::{Applied, Connection, FenceError, FenceReason, Script};
use crate::{
    domain::{Epoch, Partition, PartitionCount},
    keys::Keys,
    telemetry::Metrics,
};

/// A handle on every partition; clones share what is known.
#[derive(Clone)]
pub struct Partitions {
    connection: ConnectionManager,
    keys: Keys,
    count: PartitionCount,
    deployment: Uuid,
    metrics: Metrics,
    /// 0: not known to be open.
    epochs: Arc<[AtomicU32]>,
}

impl Partitions {
    /// Partitions behind one connection, none known to be open yet.
    pub fn new(
        connection: ConnectionManager,
        keys: Keys,
        (deployment, count): (Uuid, PartitionCount),
        metrics: Metrics,
    ) -> Self {
        let epochs = count.all().map(|_| AtomicU32::new(0)).collect();
        Self { connection, keys, count, deployment, metrics, epochs }
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
    pub fn connection(&self) -> Connection {
        Connection::new(self.connection.clone(), self.metrics.clone())
    }

    /// Believe that a partition is open in this epoch, or (`None`) that it is not open.
    pub fn set_epoch(&self, partition: Partition, epoch: Option<Epoch>) {
        self.epochs[partition.index()].store(epoch.map_or(0, |epoch| epoch.0), Ordering::Release);
    }

    /// The epoch believed in.
    ///
    /// # Errors
    ///
    /// `Fenced` when the partition is not known to be open.
    pub fn epoch(&self, partition: Partition) -> Result<Epoch, FenceError> {
        match self.epochs[partition.index()].load(Ordering::Acquire) {
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
        self.run_unfenced(script, keys, &all).await
    }

    /// Runs a script that is not fenced by an epoch: opening a new partition, and only that.
    ///
    /// # Errors
    ///
    /// As [`Partitions::run`].
    pub async fn run_unfenced(
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
        let answer: Vec<String> = script.call(keys, args).invoke_async(&mut connection).await?;
        match answer.as_slice() {
            [status, reason] if status == "fenced" => {
                Err(FenceError::Fenced(FenceReason::from_word(reason)))
            }
            [] => Err(FenceError::Malformed(answer)),
            [_, ..] => Ok(answer),
        }
    }

    /// Whether Redis answers at all.
    ///
    /// # Errors
    ///
    /// `Unavailable` when it does not.
    pub async fn ping(&self) -> Result<(), FenceError> {
        let pong: Result<String, _> = redis::cmd("PING").query_async(&mut self.connection()).await;
        pong.map(drop).map_err(|source| FenceError::Unavailable { applied: Applied::No, source })
    }
}
