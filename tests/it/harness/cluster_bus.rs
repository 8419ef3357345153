//! Proxies in front of the ports on which the nodes of a cluster talk to one another: a node can be cut off from the others
//! while clients reach all of them.

use std::{io, net::Ipv4Addr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::TaskTracker;

/// Of the first message of a connection (`clusterMsg` in Redis's `cluster.h`): the part up to the id of the node that sends
/// it, and that id.
const BEFORE_SENDER: usize = 40;
const SENDER: usize = 40;

/// The proxies of one cluster; they end with it.
pub(super) struct ClusterBus {
    /// The id of the node that is cut off.
    cut_off: watch::Sender<Option<String>>,
}

impl ClusterBus {
    pub(super) fn new() -> Self {
        Self { cut_off: watch::channel(None).0 }
    }

    /// Starts a proxy in front of the port of the node with this id; returns its own port.
    pub(super) async fn proxy(&self, id: String, port: u16) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        TaskTracker::new().spawn(accept(listener, id, port, self.cut_off.subscribe()));
        own
    }

    /// Closes each connection of the node with this id, and lets it make no new one.
    pub(super) fn cut_off(&self, id: String) {
        self.cut_off.send_replace(Some(id));
    }

    /// Lets every node reach the others.
    pub(super) fn join(&self) {
        self.cut_off.send_replace(None);
    }
}

async fn accept(
    listener: TcpListener,
    id: String,
    port: u16,
    mut cut_off: watch::Receiver<Option<String>>,
) {
    let connections = TaskTracker::new();
    let seen = cut_off.clone();
    tokio::select! {
        // The cluster has ended.
        _ = cut_off.wait_for(|_| false) => {}
        () = async {
            while let Ok((connection, _)) = listener.accept().await {
                connections.spawn(carry(connection, id.clone(), port, seen.clone()));
            }
        } => {}
    }
}

/// Carries one connection to the node with this id, until one of its ends is cut off.
async fn carry(
    mut from: TcpStream,
    id: String,
    port: u16,
    mut cut_off: watch::Receiver<Option<String>>,
) -> io::Result<()> {
    let mut first = [0; BEFORE_SENDER + SENDER];
    from.read_exact(&mut first).await?;
    let sender = String::from_utf8_lossy(&first[BEFORE_SENDER..]).into_owned();
    let is_cut_off =
        |node: &Option<String>| node.as_ref().is_some_and(|node| [&id, &sender].contains(&node));
    let carried = async {
        let mut to = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        to.write_all(&first).await?;
        copy_bidirectional(&mut from, &mut to).await
    };
    tokio::select! {
        _ = cut_off.wait_for(is_cut_off) => Ok(()),
        carried = carried => carried.map(drop),
    }
}
