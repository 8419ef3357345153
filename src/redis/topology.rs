//! Which Redis holds each partition: one server, the master that Sentinels name, or the master of the partition's slot in a
//! Redis Cluster. The addresses are read at the start, and again twice a second.
//!
//! Must never: decide by itself whether a master holds the right data. The fence (R1) does that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use ::redis::{Client, ConnectionAddr, RedisResult};
use arc_swap::ArcSwap;
use futures_util::future::try_join_all;

use super::{
    Connection, Key,
    connection::{RECONNECT_INTERVAL, Target},
    nodes::{Master, Masters, NodeTls, Nodes, Source, TopologyError},
    slots::{Node, slot_of},
};
use crate::{
    domain::{Partition, PartitionCount},
    telemetry::Metrics,
    tls::Reloaded,
};

/// How often the addresses are read again.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A handle; clones share the addresses.
#[derive(Clone)]
pub struct Topology(Arc<Shared>);

struct Shared {
    nodes: Nodes,
    count: PartitionCount,
    /// Of each partition.
    slots: Vec<u16>,
    masters: ArcSwap<Masters>,
}

impl Topology {
    /// The topology, after the addresses were read for the first time.
    pub async fn discover(
        source: Source,
        tls: Arc<Reloaded<NodeTls>>,
        count: PartitionCount,
        metrics: Metrics,
    ) -> Result<Self, TopologyError> {
        // The prefix has no hash tag.
        let slot = |partition| slot_of(&Key::Meta.name("", partition));
        let slots: Vec<u16> = count.all().map(slot).collect();
        let nodes = Nodes::new(source, tls, metrics);
        let masters = ArcSwap::from_pointee(nodes.read(&slots, &[]).await?);
        Ok(Self(Arc::new(Shared { nodes, count, slots, masters })))
    }

    /// Reads the addresses again and again, until the last handle is dropped.
    pub fn watch(&self) -> impl Future<Output = ()> + Send + use<> {
        watch(Arc::downgrade(&self.0))
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> PartitionCount {
        self.0.count
    }

    /// Whether the masters are found; otherwise the settings name the only one.
    pub fn is_discovered(&self) -> bool {
        !self.0.nodes.is_server()
    }

    /// Whether the partitions may be on several masters.
    pub fn is_cluster(&self) -> bool {
        matches!(self.0.nodes.source, Source::Cluster(_))
    }

    /// One connection for all partitions, or one for each where they may be on several masters. `name` is their purpose.
    /// Only a server that the settings name is connected at once: of several masters, one may be down.
    pub async fn connect(
        &self,
        name: &'static str,
        response_timeout: Duration,
    ) -> RedisResult<Vec<Connection>> {
        let indexes = 0..if self.is_cluster() { self.0.slots.len() } else { 1 };
        let connections = indexes.map(|index| self.connect_at(index, name, response_timeout));
        try_join_all(connections).await
    }

    /// A connection to the master of one partition.
    pub async fn connect_to(
        &self,
        partition: Partition,
        name: &'static str,
        response_timeout: Duration,
    ) -> RedisResult<Connection> {
        self.connect_at(self.index_of(partition), name, response_timeout).await
    }

    async fn connect_at(
        &self,
        index: usize,
        name: &'static str,
        response_timeout: Duration,
    ) -> RedisResult<Connection> {
        let metrics = self.0.nodes.metrics.clone();
        let Source::Server(info) = &self.0.nodes.source else {
            let target = Target::Master { topology: self.clone(), index };
            return Ok(Connection::unconnected(target, name, response_timeout, metrics));
        };
        let target = Target::Server { info: Box::new(info.clone()), tls: self.0.nodes.tls.clone() };
        Connection::unconnected(target, name, response_timeout, metrics).connect().await
    }

    /// The masters, each with its name and its partitions. A server that the settings name has an empty name.
    pub fn masters(&self) -> Vec<(String, Vec<Partition>)> {
        let mut masters = BTreeMap::<String, Vec<Partition>>::new();
        for partition in self.0.count.all() {
            masters.entry(self.master(partition)).or_default().push(partition);
        }
        masters.into_iter().collect()
    }

    /// The name of the master of a partition: its address, if it was found.
    pub fn master(&self, partition: Partition) -> String {
        if self.is_discovered() {
            self.address(self.index_of(partition)).to_string()
        } else {
            String::new()
        }
    }

    /// Where the master of a partition is among the masters.
    fn index_of(&self, partition: Partition) -> usize {
        if self.is_cluster() { partition.index() } else { 0 }
    }

    /// The address of a master.
    pub(super) fn address(&self, index: usize) -> Arc<ConnectionAddr> {
        self.0.masters.load()[index].address.clone()
    }

    pub(super) fn client(&self, address: Option<&ConnectionAddr>) -> RedisResult<Client> {
        let login = self.0.nodes.login();
        let address = address.unwrap_or_else(|| login.addr()).clone();
        self.0.nodes.tls.current().client(login.clone().set_addr(address))
    }

    pub(super) fn database(&self) -> i64 {
        self.0.nodes.login().redis_settings().db()
    }

    /// Records the address that a node has named in an error MOVED; `answered` is the address of that node. Returns
    /// whether the request may be sent there.
    pub(super) fn redirect(
        &self,
        index: usize,
        address: &str,
        answered: Option<&ConnectionAddr>,
    ) -> bool {
        let Some(node) = Node::parse(address) else { return false };
        let node = node.or_host(answered.map_or("", host_of));
        let to = Arc::new(self.0.nodes.address_of(&node));
        let before = self.0.masters.load()[index].clone();
        if before.address == to {
            return true;
        }
        let now = Instant::now();
        if !may_redirect(before.redirected, now) {
            tracing::debug!(partition = index, from = %before.address, %to, "two nodes name each other: the request is refused");
            return false;
        }
        tracing::info!(partition = index, from = %before.address, %to, "the partition is on another node of the cluster now");
        self.0.masters.rcu(|masters| {
            let mut masters = Masters::clone(masters);
            let claim = masters[index].claim.clone();
            masters[index] = Master { address: to.clone(), claim, redirected: Some(now) };
            masters
        });
        true
    }
}

/// Whether MOVED is followed. In a move that ended halfway two nodes may name each other, which would make a connection
/// for each request.
fn may_redirect(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= RECONNECT_INTERVAL)
}

async fn watch(shared: Weak<Shared>) {
    let mut failing = false;
    loop {
        let is_server = shared.upgrade().is_none_or(|shared| shared.nodes.is_server());
        if is_server {
            return;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        let before = shared.masters.load_full();
        match shared.nodes.read(&shared.slots, &before).await {
            Ok(masters) => {
                shared.replace(masters);
                if failing {
                    tracing::info!("the addresses of the masters of Redis are read again");
                }
                failing = false;
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the masters of Redis are not known: the last addresses stay in use"
                    );
                }
                failing = true;
            }
        }
    }
}

fn host_of(address: &ConnectionAddr) -> &str {
    match address {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
        ConnectionAddr::Unix(_) | _ => "",
    }
}

impl Shared {
    fn replace(&self, masters: Masters) {
        let before = self.masters.load();
        if **before == masters {
            return;
        }
        for (index, (from, to)) in before.iter().zip(&masters).enumerate() {
            let (from, to) = (&from.address, &to.address);
            if from == to {
                continue;
            }
            match &self.nodes.source {
                Source::Cluster(_) => {
                    tracing::info!(partition = index, from = %from, to = %to, "the partition is on another node of the cluster now");
                }
                Source::Server(_) | Source::Sentinel { .. } => {
                    tracing::info!(from = %from, to = %to, "the Sentinels name another master of Redis now");
                }
            }
        }
        self.masters.store(Arc::new(masters));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_that_name_each_other_are_not_followed_at_once() {
        let now = Instant::now();
        assert!(may_redirect(None, now));
        assert!(!may_redirect(Some(now), now));
        assert!(!may_redirect(Some(now), now + RECONNECT_INTERVAL / 2));
        assert!(may_redirect(Some(now), now + RECONNECT_INTERVAL));
    }
}
