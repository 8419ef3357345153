//! Asks Sentinels, or the nodes of a Redis Cluster, for the addresses of the masters.

use std::{
    collections::BTreeMap,
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult, ServerErrorKind,
    TlsCertificates, Value, cmd, pipe,
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};

use super::{
    Connection,
    connection::Target,
    slots::{Node, is_ok, parse_addresses, parse_members},
    views::{Claim, View, newest, owner, usable},
};
use crate::{telemetry::Metrics, tls::Reloaded};

/// How long one node may take to answer, without connecting; and all of them, with it, if another one has answered.
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
    /// The Sentinels that answer name a master with a lower epoch than the one in use.
    #[error(
        "each Sentinel that answers names an earlier master than the one in use: restart this program if the Sentinels \
         were set up anew"
    )]
    Older,
    /// The nodes that answer do not know most of the masters in use.
    #[error(
        "the nodes that answer belong to another Redis Cluster: restart this program if the cluster was set up anew"
    )]
    OtherCluster,
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
            Self::UnknownMaster(_) | Self::Older | Self::OtherCluster => false,
            Self::NoMaster { .. } => true,
        }
    }
}

/// A master, as it is used now.
#[derive(Clone, PartialEq)]
pub(super) struct Master {
    pub(super) address: Arc<ConnectionAddr>,
    /// The newest answer that was used.
    pub(super) claim: Option<Claim>,
    /// When a node last answered MOVED.
    pub(super) redirected: Option<Instant>,
}

/// The masters by index: one, or one for each partition.
pub(super) type Masters = Vec<Master>;

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

    /// The masters: one, or one for each of these slots. The one from before stays while no node has the slot, or each
    /// names an earlier one.
    pub(super) async fn read(
        &self,
        slots: &[u16],
        before: &[Master],
    ) -> Result<Masters, TopologyError> {
        let claims: Vec<_> = before.iter().map(|master| master.claim.clone()).collect();
        let found = match &self.source {
            Source::Server(_) => return Ok(Vec::new()),
            Source::Sentinel { sentinels, master, .. } => {
                let before = claims.first().and_then(Option::as_ref);
                vec![Some(self.ask_sentinels(sentinels, master, before).await?)]
            }
            Source::Cluster(seeds) => {
                let views = self.ask_cluster(seeds, &claims).await?;
                let before = |partition| claims.get(partition).and_then(Option::as_ref);
                let slots = slots.iter().enumerate();
                slots.map(|(partition, &slot)| owner(slot, &views, before(partition))).collect()
            }
        };
        let master = |(partition, claim): (usize, Option<Claim>)| {
            let before = before.get(partition);
            match (claim, before) {
                (Some(claim), _) => Ok(Master {
                    address: Arc::new(self.address_of(&claim.node)),
                    redirected: before.and_then(|before| before.redirected),
                    claim: Some(claim),
                }),
                (None, Some(before)) => Ok(before.clone()),
                (None, None) => Err(TopologyError::NoMaster { slot: slots[partition], partition }),
            }
        };
        found.into_iter().enumerate().map(master).collect()
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

    /// The newest master: a Sentinel that was cut off from the others may name a former one.
    async fn ask_sentinels(
        &self,
        sentinels: &[ConnectionInfo],
        master: &str,
        before: Option<&Claim>,
    ) -> Result<Claim, TopologyError> {
        let connections = self.connections_to(sentinels.iter(), "Sentinel");
        let asked =
            connections.into_iter().map(|(_, sentinel)| ask_sentinel(sentinel, master.to_owned()));
        let claims = answers(asked).await;
        let claims = claims.map_err(|error| TopologyError::NoAnswer("Sentinels", error))?;
        let claims: Vec<Claim> = claims.into_iter().flatten().collect();
        if claims.is_empty() {
            return Err(TopologyError::UnknownMaster(master.to_owned()));
        }
        newest(claims, before).ok_or(TopologyError::Older)
    }

    /// The views to use of those of the nodes that answer. A node that belongs to no cluster yet has no slots in its view.
    async fn ask_cluster(
        &self,
        seeds: &[ConnectionInfo],
        before: &[Option<Claim>],
    ) -> Result<Vec<View>, TopologyError> {
        let asked = self.connections_to(seeds.iter(), "Cluster node").into_iter();
        let asked = asked.map(|(node, connection)| ask_node(connection, node.host));
        let views = answers(asked).await;
        let views =
            views.map_err(|error| TopologyError::NoAnswer("nodes of the Redis Cluster", error))?;
        let views = usable(views, before);
        if views.is_empty() {
            return Err(TopologyError::OtherCluster);
        }
        self.keep_connections(seeds, &views);
        Ok(views)
    }

    /// Keeps connections to the nodes of these views and to those of the settings, and to no others.
    fn keep_connections(&self, seeds: &[ConnectionInfo], views: &[View]) {
        let login = self.login();
        let found = views.iter().flat_map(|view| view.addresses.values());
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

/// The answers, or an error if no node answered. After `POLL_TIMEOUT` only the first one is waited for, because some nodes may
/// be away.
async fn answers<T, F: Future<Output = RedisResult<T>>>(
    asked: impl Iterator<Item = F>,
) -> RedisResult<Vec<T>> {
    let mut asked: FuturesUnordered<F> = asked.collect();
    let no_nodes = RedisError::from(io::Error::from(io::ErrorKind::NotConnected));
    let (mut answers, mut failure) = (Vec::new(), no_nodes);
    let started = Instant::now();
    let mut late = pin!(tokio::time::sleep(POLL_TIMEOUT));
    loop {
        tokio::select! {
            biased;
            answer = asked.next() => match answer {
                Some(Ok(answer)) => answers.push(answer),
                Some(Err(error)) => failure = error,
                None => break,
            },
            () = &mut late, if !answers.is_empty() => break,
        }
    }
    if !answers.is_empty() {
        return Ok(answers);
    }
    // A connection that is not made in time fails like one that is refused.
    let is_late = started.elapsed() >= POLL_TIMEOUT && failure.code().is_none();
    Err(if is_late { io::Error::from(io::ErrorKind::TimedOut).into() } else { failure })
}

/// The master, if the Sentinel knows it.
async fn ask_sentinel(mut sentinel: Connection, master: String) -> RedisResult<Option<Claim>> {
    let mut address = cmd("SENTINEL");
    address.arg("GET-MASTER-ADDR-BY-NAME").arg(&master);
    let address: Option<(String, u16)> = address.query_async(&mut sentinel).await?;
    let Some((host, port)) = address else { return Ok(None) };
    let mut state = cmd("SENTINEL");
    let state: BTreeMap<String, String> =
        state.arg("MASTER").arg(&master).query_async(&mut sentinel).await?;
    let epoch = state.get("config-epoch").and_then(|epoch| epoch.parse().ok());
    let epoch = epoch.ok_or_else(|| unreadable("SENTINEL MASTER"))?;
    Ok(Some(Claim { epoch, id: String::new(), node: Node { host, port } }))
}

/// What a node with this host reports of its cluster.
async fn ask_node(mut node: Connection, host: String) -> RedisResult<View> {
    let mut asked = pipe();
    asked.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("NODES").cmd("CLUSTER").arg("SLOTS");
    let (info, members, slots): (String, String, Value) = asked.query_async(&mut node).await?;
    let (me, members) = parse_members(&members).ok_or_else(|| unreadable("CLUSTER NODES"))?;
    let addresses = parse_addresses(&slots, &host).ok_or_else(|| unreadable("CLUSTER SLOTS"))?;
    Ok(View { me, is_ok: is_ok(&info), members, addresses })
}

fn unreadable(answer: &'static str) -> RedisError {
    RedisError::from((
        ErrorKind::UnexpectedReturnType,
        "an answer cannot be read",
        answer.to_owned(),
    ))
}
