//! Asks Sentinels, or the nodes of a Redis Cluster, for the addresses of the masters.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult, ServerErrorKind,
    TlsCertificates, Value, cmd,
};
use futures_util::future::join_all;

use super::{
    Connection,
    connection::Target,
    slots::{Node, SlotRange, epoch_of, parse_slots},
};
use crate::{telemetry::Metrics, tls::Reloaded};

/// How long one node may take to answer, with connecting.
const POLL_TIMEOUT: Duration = Duration::from_millis(500);

/// Where the addresses come from.
#[derive(Clone)]
pub enum Source {
    /// One server, which holds every partition.
    Server(ConnectionInfo),
    /// The master that these Sentinels have under this name, which holds every partition.
    Sentinel {
        /// Each with the login of the Sentinels.
        sentinels: Vec<ConnectionInfo>,
        /// The name.
        master: String,
        /// The login of the master, and its database; its address is not used.
        login: ConnectionInfo,
    },
    /// Nodes of a cluster, each with the login of all nodes.
    Cluster(Vec<ConnectionInfo>),
}

/// The TLS of all nodes; none without certificates.
pub struct NodeTls(pub Option<TlsCertificates>);

impl NodeTls {
    /// A client without any connection yet.
    pub fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        match &self.0 {
            None => Client::open(info),
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
        }
    }
}

/// Why the masters are not known.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// Each of them is away, or refuses the question.
    #[error("none of the {0} named the masters")]
    NoAnswer(&'static str, #[source] RedisError),
    /// The Sentinels answer, and none has the name.
    #[error("no Sentinel knows a master with the name {0}")]
    UnknownMaster(String),
    /// The nodes answer, and none has this slot.
    #[error("no node of the Redis Cluster has slot {slot}, which partition {partition} needs")]
    NoMaster {
        /// The slot.
        slot: u16,
        /// The partition.
        partition: usize,
    },
}

impl TopologyError {
    /// Whether another attempt may succeed: no node answered in time, or a failover is under way. A refusal, such as a
    /// wrong password, lasts.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer(_, error) => {
                let is_loading = error.kind() == ErrorKind::Server(ServerErrorKind::BusyLoading);
                error.is_timeout() || is_loading
            }
            Self::UnknownMaster(_) => false,
            Self::NoMaster { .. } => true,
        }
    }
}

/// The addresses by index: one, or one for each partition.
pub(super) type Masters = Vec<Arc<ConnectionAddr>>;

/// The nodes that are asked.
pub(super) struct Nodes {
    pub(super) source: Source,
    pub(super) tls: Arc<Reloaded<NodeTls>>,
    pub(super) metrics: Metrics,
    /// Connections to the Sentinels, or to every known node of the cluster.
    connections: Mutex<BTreeMap<Node, Connection>>,
}

impl Nodes {
    pub(super) fn new(source: Source, tls: Arc<Reloaded<NodeTls>>, metrics: Metrics) -> Self {
        Self { source, tls, metrics, connections: Mutex::default() }
    }

    pub(super) fn is_server(&self) -> bool {
        matches!(self.source, Source::Server(_))
    }

    /// The login of the masters.
    pub(super) fn login(&self) -> &ConnectionInfo {
        match &self.source {
            Source::Server(login) | Source::Sentinel { login, .. } => login,
            // The parser of the setting accepts no empty list.
            Source::Cluster(nodes) => &nodes[0],
        }
    }

    /// The address of a node, with TLS if the login has it.
    pub(super) fn address_of(&self, Node { host, port }: &Node) -> ConnectionAddr {
        let (host, port) = (host.clone(), *port);
        if matches!(self.login().addr(), ConnectionAddr::TcpTls { .. }) {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        }
    }

    /// The addresses of the masters: one, or one for each of these slots. While no node has a slot, its address from
    /// before stays.
    pub(super) async fn read(
        &self,
        slots: &[u16],
        before: &[Arc<ConnectionAddr>],
    ) -> Result<Masters, TopologyError> {
        match &self.source {
            Source::Server(_) => Ok(Vec::new()),
            Source::Sentinel { sentinels, master, .. } => {
                let found = self.ask_sentinels(sentinels, master).await?;
                Ok(vec![Arc::new(self.address_of(&found))])
            }
            Source::Cluster(seeds) => {
                let ranges = self.ask_cluster(seeds).await?;
                let master = |(partition, &slot): (usize, &u16)| {
                    let range = ranges.iter().find(|range| range.contains(slot));
                    match (range.and_then(|range| range.nodes.first()), before.get(partition)) {
                        (Some(node), _) => Ok(Arc::new(self.address_of(node))),
                        (None, Some(before)) => Ok(before.clone()),
                        (None, None) => Err(TopologyError::NoMaster { slot, partition }),
                    }
                };
                slots.iter().enumerate().map(master).collect()
            }
        }
    }

    /// Every connection, with new ones to those of these nodes that have none yet.
    fn connections_to<'a>(
        &self,
        infos: impl Iterator<Item = &'a ConnectionInfo>,
        name: &'static str,
    ) -> Vec<(Node, Connection)> {
        let mut nodes = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for info in infos {
            let Some(node) = node_of(info.addr()) else { continue };
            nodes.entry(node).or_insert_with(|| {
                let target = Target::Server { info: Box::new(info.clone()), tls: self.tls.clone() };
                Connection::unconnected(target, name, POLL_TIMEOUT, self.metrics.clone())
            });
        }
        nodes.iter().map(|(node, connection)| (node.clone(), connection.clone())).collect()
    }

    /// The address of the master with the highest configuration epoch: a Sentinel that was cut off from the others may
    /// name the former one.
    async fn ask_sentinels(
        &self,
        sentinels: &[ConnectionInfo],
        master: &str,
    ) -> Result<Node, TopologyError> {
        let connections = self.connections_to(sentinels.iter(), "Sentinel");
        let asked: Vec<_> = connections
            .into_iter()
            .map(|(_, sentinel)| ask_sentinel(sentinel, master.to_owned()))
            .collect();
        let (mut newest, mut unknown, mut failure) = (None, false, no_nodes());
        for answer in join_all(asked).await {
            match answer {
                Ok(Some(found)) => newest = newest.max(Some(found)),
                Ok(None) => unknown = true,
                Err(error) => failure = error,
            }
        }
        match newest {
            Some((_, node)) => Ok(node),
            None if unknown => Err(TopologyError::UnknownMaster(master.to_owned())),
            None => Err(TopologyError::NoAnswer("Sentinels", failure)),
        }
    }

    /// The slots in the newest view of the nodes that answer.
    async fn ask_cluster(&self, seeds: &[ConnectionInfo]) -> Result<Vec<SlotRange>, TopologyError> {
        let asked = self.connections_to(seeds.iter(), "Cluster node").into_iter();
        let asked: Vec<_> =
            asked.map(|(node, connection)| ask_node(connection, node.host)).collect();
        let (mut newest, mut unassigned) = (None::<(u64, Vec<SlotRange>)>, false);
        let mut failure = no_nodes();
        for answer in join_all(asked).await {
            match answer {
                // A node that belongs to no cluster yet, or no longer, knows no slot.
                Ok((_, ranges)) if ranges.is_empty() => unassigned = true,
                Ok((epoch, ranges)) => {
                    if newest.as_ref().is_none_or(|(newest, _)| epoch > *newest) {
                        newest = Some((epoch, ranges));
                    }
                }
                Err(error) => failure = error,
            }
        }
        let Some((_, ranges)) = newest else {
            if unassigned {
                return Ok(Vec::new());
            }
            return Err(TopologyError::NoAnswer("nodes of the Redis Cluster", failure));
        };
        self.keep_connections(seeds, &ranges);
        Ok(ranges)
    }

    /// Keeps connections to the nodes of this view and to those of the settings, and to no others.
    fn keep_connections(&self, seeds: &[ConnectionInfo], ranges: &[SlotRange]) {
        let login = self.login();
        let found = ranges.iter().flat_map(|range| &range.nodes);
        let found = found.map(|node| login.clone().set_addr(self.address_of(node)));
        let known: Vec<ConnectionInfo> = found.chain(seeds.iter().cloned()).collect();
        self.connections_to(known.iter(), "Cluster node");
        let mut nodes = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|node, _| known.iter().any(|it| node_of(it.addr()).as_ref() == Some(node)));
    }
}

fn node_of(address: &ConnectionAddr) -> Option<Node> {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some(Node { host: host.clone(), port: *port })
        }
        ConnectionAddr::Unix(_) | _ => None,
    }
}

fn no_nodes() -> RedisError {
    io::Error::from(io::ErrorKind::NotConnected).into()
}

/// The address of the master and its configuration epoch, if the Sentinel knows it.
async fn ask_sentinel(
    mut sentinel: Connection,
    master: String,
) -> RedisResult<Option<(u64, Node)>> {
    in_time(async {
        let mut address = cmd("SENTINEL");
        address.arg("GET-MASTER-ADDR-BY-NAME").arg(&master);
        let address: Option<(String, u16)> = address.query_async(&mut sentinel).await?;
        let Some((host, port)) = address else { return Ok(None) };
        let mut state = cmd("SENTINEL");
        let state: BTreeMap<String, String> =
            state.arg("MASTER").arg(&master).query_async(&mut sentinel).await?;
        let epoch = state.get("config-epoch").and_then(|epoch| epoch.parse().ok());
        Ok(Some((epoch.unwrap_or(0), Node { host, port })))
    })
    .await
}

/// The epoch of the view of a node with this host, and its slots.
async fn ask_node(mut node: Connection, host: String) -> RedisResult<(u64, Vec<SlotRange>)> {
    in_time(async {
        let mut info = cmd("CLUSTER");
        let info: String = info.arg("INFO").query_async(&mut node).await?;
        let mut slots = cmd("CLUSTER");
        let slots: Value = slots.arg("SLOTS").query_async(&mut node).await?;
        let ranges = parse_slots(&slots, &host).unwrap_or_default();
        Ok((epoch_of(&info).unwrap_or(0), ranges))
    })
    .await
}

async fn in_time<T>(answer: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let late = || RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
    tokio::time::timeout(POLL_TIMEOUT, answer).await.unwrap_or_else(|_| Err(late()))
}
