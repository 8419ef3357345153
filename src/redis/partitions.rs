//! What this process knows of each partition, and the one way to run a script on it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use ::redis::{RedisError, Value};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use uuid::Uuid;

use super::{Applied, Commands, Connection, FenceReason, Key, RedisCallError, Script, Topology};
use crate::domain::{Epoch, Partition, PartitionCount, PartitionEpoch};

/// A handle on every partition; clones share what is known. A script that fails with `Fenced` or
/// `Unavailable { applied: No }` has done nothing.
#[derive(Clone)]
pub struct Partitions {
    topology: Topology,
    /// One for all partitions, or one for each.
    connections: Arc<[Connection]>,
    key_prefix: Arc<str>,
    count: PartitionCount,
    deployment: Uuid,
    /// 0: not known to be open.
    epochs: Arc<[AtomicU32]>,
    /// The last epoch known to be open and its highest seq seen, as epoch and 36 bits of seq; 0: none yet.
    marks: Arc<[AtomicU64]>,
    /// Whether selling is forbidden, even from open partitions.
    forbidden: Arc<AtomicBool>,
    /// Whether this process is taking units now.
    selling: Arc<[AtomicBool]>,
}

const SEQ_BITS: u32 = 36;

/// Held while units are taken from a partition.
pub struct SellingGuard<'a>(&'a AtomicBool);

impl Drop for SellingGuard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Partitions {
    /// Partitions behind these connections of the topology, none known to be open yet.
    pub fn new(
        topology: Topology,
        connections: Vec<Connection>,
        key_prefix: &str,
        deployment: Uuid,
    ) -> Self {
        let count = topology.partitions();
        let epochs = count.all().map(|_| AtomicU32::new(0)).collect();
        let marks = count.all().map(|_| AtomicU64::new(0)).collect();
        let selling = count.all().map(|_| AtomicBool::new(false)).collect();
        let forbidden = Arc::default();
        let (key_prefix, connections) = (key_prefix.into(), connections.into());
        Self {
            topology,
            connections,
            key_prefix,
            count,
            deployment,
            epochs,
            marks,
            forbidden,
            selling,
        }
    }

    /// How many there are.
    pub fn count(&self) -> PartitionCount {
        self.count
    }

    /// The name of a key of a partition.
    pub fn key(&self, partition: Partition, key: Key) -> String {
        key.name(&self.key_prefix, partition)
    }

    /// A connection for plain commands on a partition that change no stock; never for a blocking one.
    pub fn connection(&self, partition: Partition) -> Commands {
        Commands(self.connection_of(partition).clone())
    }

    fn connection_of(&self, partition: Partition) -> &Connection {
        &self.connections[self.connection_index(partition)]
    }

    /// Which of the connections leads to the partition; partitions that share one have the same index.
    pub fn connection_index(&self, partition: Partition) -> usize {
        if self.connections.len() == 1 { 0 } else { partition.index() }
    }

    /// How many connections there are.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Whether the masters are found; otherwise the settings name the only one.
    pub fn is_discovered(&self) -> bool {
        self.topology.is_discovered()
    }

    /// Whether the partitions may be on several masters.
    pub fn is_cluster(&self) -> bool {
        self.topology.is_cluster()
    }

    /// The masters, each with its name (empty if the settings name it) and its partitions.
    pub fn masters(&self) -> Vec<(String, Vec<Partition>)> {
        self.topology.masters()
    }

    /// The name of the master of a partition: its address, if it was found.
    pub fn master(&self, partition: Partition) -> String {
        self.topology.master(partition)
    }

    /// Sets the epoch in which a partition is known to be open; `None`: it is not known to be open.
    pub fn set_epoch(&self, partition: Partition, epoch: Option<Epoch>) {
        if let Some(epoch) = epoch {
            self.record_mark(partition, epoch, 0);
        }
        self.epochs[partition.index()].store(epoch.map_or(0, |epoch| epoch.0), Ordering::SeqCst);
    }

    /// Sets whether units may be sold from any partition: not while the settings of Redis are unsafe.
    pub fn set_selling_allowed(&self, allowed: bool) {
        self.forbidden.store(!allowed, Ordering::Release);
    }

    /// The epoch to sell in; `Fenced` when the partition is not known to be open, or nothing may be sold.
    pub fn selling_epoch(&self, partition: Partition) -> Result<Epoch, RedisCallError> {
        if self.forbidden.load(Ordering::Acquire) {
            return Err(RedisCallError::Fenced(FenceReason::Settings));
        }
        self.epoch(partition)
    }

    /// Records that Redis reported an accept with this seq to this process.
    pub fn record_mark(&self, partition: Partition, epoch: Epoch, seq: u64) {
        debug_assert!(seq < 1 << SEQ_BITS, "seq {seq} does not fit");
        let mark = u64::from(epoch.0) << SEQ_BITS | seq;
        self.marks[partition.index()].fetch_max(mark, Ordering::SeqCst);
    }

    /// The last epoch that this process knew to be open, and the highest seq it saw of it.
    pub fn mark(&self, partition: Partition) -> Option<(Epoch, u64)> {
        let mark = self.marks[partition.index()].load(Ordering::SeqCst);
        let epoch = u32::try_from(mark >> SEQ_BITS).ok().filter(|epoch| *epoch > 0)?;
        Some((Epoch(epoch), mark & ((1 << SEQ_BITS) - 1)))
    }

    /// Records that units are being taken from the partition, until the guard is dropped. One task per partition does so.
    pub fn begin_selling(&self, partition: Partition) -> SellingGuard<'_> {
        let flag = &self.selling[partition.index()];
        flag.store(true, Ordering::SeqCst);
        SellingGuard(flag)
    }

    /// Whether units are being taken. While no epoch is known to be open, no task begins to.
    pub fn is_selling(&self, partition: Partition) -> bool {
        self.selling[partition.index()].load(Ordering::SeqCst)
    }

    /// The epoch in which the partition is known to be open; else `Fenced`.
    pub fn epoch(&self, partition: Partition) -> Result<Epoch, RedisCallError> {
        match self.epochs[partition.index()].load(Ordering::SeqCst) {
            0 => Err(RedisCallError::Fenced(FenceReason::Unknown)),
            epoch => Ok(Epoch(epoch)),
        }
    }

    /// Runs a script under the epoch in which the partition is known to be open.
    pub async fn run<T>(
        &self,
        partition: Partition,
        script: &Script<T>,
        args: &[&str],
    ) -> Result<T, RedisCallError> {
        let epoch = self.epoch(partition)?;
        self.run_in_epoch(PartitionEpoch { partition, epoch }, script, args).await
    }

    /// Runs a script under an epoch that the caller knows.
    pub async fn run_in_epoch<T>(
        &self,
        at: PartitionEpoch,
        script: &Script<T>,
        args: &[&str],
    ) -> Result<T, RedisCallError> {
        self.run_with_keys(at, script, &[], args).await
    }

    /// Runs a script under an epoch that the caller knows, on these keys in addition to its own.
    pub async fn run_with_keys<T>(
        &self,
        at: PartitionEpoch,
        script: &Script<T>,
        keys: &[Key],
        args: &[&str],
    ) -> Result<T, RedisCallError> {
        let caller = self.caller(at.epoch);
        let mut all = Vec::with_capacity(args.len() + 1);
        all.push(caller.as_str());
        all.extend_from_slice(args);
        let keys = script.keys.iter().chain(keys);
        let keys: Vec<String> = keys.map(|key| self.key(at.partition, *key)).collect();
        self.call(at.partition, script, &keys, &all).await
    }

    /// Runs a script that is not fenced by an epoch: for reading what Redis holds of a partition.
    pub async fn call_script<T>(
        &self,
        partition: Partition,
        script: &Script<T>,
        args: &[&str],
    ) -> Result<T, RedisCallError> {
        let keys = script.keys.iter().map(|key| self.key(partition, *key));
        self.call(partition, script, &keys.collect::<Vec<_>>(), args).await
    }

    async fn call<T>(
        &self,
        partition: Partition,
        script: &Script<T>,
        keys: &[String],
        args: &[&str],
    ) -> Result<T, RedisCallError> {
        let started = Instant::now();
        let mut connection = self.connection_of(partition).clone();
        let reply = script.call(&mut connection, keys, args).await;
        let parsed = reply.map_err(RedisCallError::from).and_then(|reply| script.parse(&reply));
        let error = parsed.as_ref().err().map(RedisCallError::label);
        connection.metrics().record_script(script.name, started.elapsed(), error);
        parsed
    }

    /// The caller, in the form in which every fenced script gets it.
    fn caller(&self, epoch: Epoch) -> String {
        format!("{epoch} {}", self.deployment)
    }

    /// These partitions behind other connections of the same topology: for calls that may block them.
    pub fn on(&self, connections: Vec<Connection>) -> Self {
        Self { connections: connections.into(), ..self.clone() }
    }

    /// Runs a script that takes no arguments once for each of these partitions, and then waits, at most for `timeout_ms`,
    /// until this many replicas have everything up to there: all in one pipeline on one connection, which it blocks. So
    /// the partitions must have the same connection.
    /// Returns the result of each call, and how many replicas have it. Fails if Redis refuses one of the calls.
    pub async fn run_and_wait<T>(
        &self,
        script: &Script<T>,
        calls: &[PartitionEpoch],
        replicas: u32,
        timeout_ms: u64,
    ) -> Result<(Vec<Result<T, RedisCallError>>, u32), RedisCallError> {
        let mut pipeline = ::redis::pipe();
        for at in calls {
            let keys = script.keys.iter().map(|key| self.key(at.partition, *key));
            let call = script.eval(&keys.collect::<Vec<_>>(), &[&self.caller(at.epoch)]);
            pipeline.add_command(call);
        }
        pipeline.cmd("WAIT").arg(replicas).arg(timeout_ms);
        let Some(first) = calls.first() else { return Ok((Vec::new(), 0)) };
        debug_assert!(calls.iter().all(
            |at| self.connection_index(at.partition) == self.connection_index(first.partition)
        ));
        let started = Instant::now();
        let mut connection = self.connection_of(first.partition).clone();
        let replies: Result<Vec<Value>, _> = pipeline.query_async(&mut connection).await;
        let replies = replies.map_err(RedisCallError::from);
        let error = replies.as_ref().err().map(RedisCallError::label);
        connection.metrics().record_script(script.name, started.elapsed(), error);
        let mut replies = replies?;
        let reached = replies.pop().unwrap_or(Value::Nil);
        let reached = ::redis::from_redis_value(reached).map_err(RedisError::from)?;
        Ok((replies.iter().map(|reply| script.parse(reply)).collect(), reached))
    }

    /// Whether Redis answers at all; of several masters, whether one does. Ends at the first answer.
    pub async fn ping(&self) -> Result<(), RedisCallError> {
        let pings = self.masters().into_iter().filter_map(|(_, partitions)| {
            let first = partitions.into_iter().next()?;
            Some(async move {
                let ping = ::redis::cmd("PING");
                let pong: Result<String, _> = ping.query_async(&mut self.connection(first)).await;
                pong.map(drop)
                    .map_err(|source| RedisCallError::Unavailable { applied: Applied::No, source })
            })
        });
        let (mut pings, mut last) = (pings.collect::<FuturesUnordered<_>>(), Ok(()));
        while let Some(answer) = pings.next().await {
            last = answer;
            if last.is_ok() {
                break;
            }
        }
        last
    }
}
