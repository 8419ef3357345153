//! A Redis Cluster of private servers: three masters, and what a test needs beside them.

use futures_util::future::join_all;
use redis::RedisResult;
use yoink::servers::{AppendFsync, RedisServer};

use super::{
    Authority, cluster_bus::ClusterBus, eventually, redis_command, scratch_dir, succeeds,
    tls_server::start_with_tls, try_redis_command,
};

const MASTERS: usize = 3;
/// The slots of the masters.
const SLOTS: [(&str, &str); MASTERS] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

/// What a cluster has beside its masters.
#[derive(Clone, Copy, Default)]
pub struct ClusterOptions<'a> {
    /// Each master has a replica.
    pub replicas: bool,
    /// A master can be cut off from the other nodes.
    pub separable: bool,
    /// The nodes also speak TLS, with a certificate of this authority.
    pub tls: Option<&'a Authority>,
}

/// The masters first, then their replicas in the same order. Failovers change the roles.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    /// Where each of them speaks TLS, if they do.
    tls_ports: Option<Vec<u16>>,
    bus: Option<ClusterBus>,
}

/// What a node answers, if it can be reached and does not refuse.
async fn ask<T: redis::FromRedisValue>(node: &RedisServer, words: &[&str]) -> RedisResult<T> {
    try_redis_command(&node.admin_url(), words).await
}

/// A field of INFO replication, if the node answers.
async fn replication(node: &RedisServer, field: &str) -> Option<String> {
    let info: String = ask(node, &["INFO", "replication"]).await.ok()?;
    info.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.to_owned()))
}

async fn id(node: &RedisServer) -> String {
    redis_command(&node.admin_url(), &["CLUSTER", "MYID"]).await
}

impl RedisCluster {
    pub async fn start(options: ClusterOptions<'_>) -> Self {
        let count = if options.replicas { 2 * MASTERS } else { MASTERS };
        let starts = (0..count).map(|_| async move {
            let fsync = AppendFsync::Always;
            let Some(authority) = options.tls else {
                let dir = scratch_dir("node");
                let start = move || RedisServer::start_node(&dir, fsync, &[]).unwrap();
                return (tokio::task::spawn_blocking(start).await.unwrap(), 0);
            };
            start_with_tls(authority, move |dir, options| {
                let line = format!(r#"exec "$@" {options}"#);
                RedisServer::start_node(dir, fsync, &["sh", "-c", &line, "sh"])
            })
            .await
        });
        let (nodes, tls_ports) = join_all(starts).await.into_iter().unzip();
        let tls_ports = options.tls.is_some().then_some(tls_ports);
        let this = Self { nodes, tls_ports, bus: options.separable.then(ClusterBus::new) };
        this.meet().await;
        this
    }

    /// Where the other nodes reach a node.
    async fn bus_port(&self, node: &RedisServer) -> u16 {
        let port = node.bus_port().unwrap();
        let Some(bus) = &self.bus else { return port };
        let proxy = bus.proxy(id(node).await, port).await;
        let set = ["CONFIG", "SET", "cluster-announce-bus-port", &proxy.to_string()];
        let () = redis_command(&node.admin_url(), &set).await;
        proxy
    }

    async fn meet(&self) {
        for (number, node) in self.nodes.iter().enumerate() {
            let epoch = (number + 1).to_string();
            let () =
                redis_command(&node.admin_url(), &["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await;
            if let Some((first, last)) = SLOTS.get(number) {
                let () =
                    redis_command(&node.admin_url(), &["CLUSTER", "ADDSLOTSRANGE", first, last])
                        .await;
            }
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let (port, bus) =
                (self.port(number).to_string(), self.bus_port(node).await.to_string());
            if number > 0 {
                let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus];
                let () = redis_command(&self.nodes[0].admin_url(), &meet).await;
            }
        }
        for (replica, master) in self.nodes[MASTERS..].iter().zip(&self.nodes) {
            let id = id(master).await;
            // Until then it does not know the master.
            succeeds("the replica follows its master", async || {
                ask::<()>(replica, &["CLUSTER", "REPLICATE", &id]).await
            })
            .await;
        }
        self.is_whole().await;
        for replica in MASTERS..self.nodes.len() {
            self.follows(replica).await;
        }
    }

    /// Waits until every node knows all the others, and every slot has a master.
    pub async fn is_whole(&self) {
        let replicas = self.nodes.len() - MASTERS;
        eventually("every node knows the whole cluster", async || {
            for node in &self.nodes {
                let info: String = ask(node, &["CLUSTER", "INFO"]).await.ok()?;
                let known = format!("cluster_known_nodes:{}\r\n", self.nodes.len());
                let whole = ["cluster_state:ok", "cluster_slots_ok:16384", &known];
                if !whole.iter().all(|line| info.contains(line)) {
                    return None;
                }
                let list: String = ask(node, &["CLUSTER", "NODES"]).await.ok()?;
                let slaves = list.lines().filter(|line| line.contains("slave ")).count();
                if slaves != replicas || list.contains("handshake") || list.contains("fail") {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// Waits until a node is a replica that is connected to its master.
    pub async fn follows(&self, replica: usize) {
        eventually("the replica is connected", async || {
            let link = replication(&self.nodes[replica], "master_link_status").await?;
            (link == "up").then_some(())
        })
        .await;
    }

    /// Waits until a node is a master.
    pub async fn is_promoted(&self, replica: usize) {
        eventually("the replica is promoted", async || {
            let role = replication(&self.nodes[replica], "role").await?;
            (role == "master").then_some(())
        })
        .await;
    }

    /// Waits until the replica of a master has everything that the master has.
    pub async fn is_copied(&self, master: usize) {
        eventually("the replica has everything", async || {
            let of = async |node: usize| replication(&self.nodes[node], "master_repl_offset").await;
            let (has, copied) = (of(master).await?, of(self.replica_of(master)).await?);
            (has == copied).then_some(())
        })
        .await;
    }

    /// The replica of one of the first masters.
    pub fn replica_of(&self, master: usize) -> usize {
        master + MASTERS
    }

    /// Ends the replication of a master: its replica is refused from now on, and keeps what it has.
    pub async fn stop_replication(&self, master: usize) {
        let replica = self.replica_of(master);
        self.set_masterauth(replica, "wrong").await;
        let () =
            redis_command(&self.nodes[master].admin_url(), &["CLIENT", "KILL", "TYPE", "replica"])
                .await;
        eventually("the replica is not connected", async || {
            let link = replication(&self.nodes[replica], "master_link_status").await?;
            (link == "down").then_some(())
        })
        .await;
    }

    async fn set_masterauth(&self, node: usize, password: &str) {
        let set = ["CONFIG", "SET", "masterauth", password];
        let () = redis_command(&self.nodes[node].admin_url(), &set).await;
    }

    /// Cuts a master off from all other nodes, also from its replica. Clients reach all of them.
    pub async fn cut_off(&self, master: usize) {
        self.stop_replication(master).await;
        self.bus.as_ref().unwrap().cut_off(id(&self.nodes[master]).await);
    }

    /// Ends [`RedisCluster::cut_off`].
    pub async fn join(&self, master: usize) {
        self.set_masterauth(self.replica_of(master), "private").await;
        self.bus.as_ref().unwrap().join();
    }

    /// For the user of the service, over TLS if the nodes speak it. Two nodes are named: the others are found.
    pub fn url(&self) -> String {
        let server = RedisServer::url_at(self.port(1));
        let (_, rest) = server.split_once("://").unwrap();
        let scheme = if self.tls_ports.is_some() { "rediss" } else { "redis" };
        format!("{scheme}+cluster://{rest},127.0.0.1:{}", self.port(0))
    }

    /// Where clients and other nodes reach a node.
    pub fn port(&self, number: usize) -> u16 {
        self.tls_ports.as_ref().map_or_else(|| self.nodes[number].port(), |ports| ports[number])
    }

    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    pub fn nodes_mut(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }

    pub fn node(&self, number: usize) -> &RedisServer {
        &self.nodes[number]
    }

    pub fn node_mut(&mut self, number: usize) -> &mut RedisServer {
        &mut self.nodes[number]
    }

    /// The node that serves a partition, if one does.
    pub async fn serving(&self, prefix: &str, partition: u16) -> Option<usize> {
        let key = format!("{prefix}:{{{partition}}}:meta");
        for (number, node) in self.nodes.iter().enumerate() {
            if ask::<u32>(node, &["EXISTS", &key]).await.is_ok() {
                return Some(number);
            }
        }
        None
    }

    /// Moves the slot of a partition, with its keys, as `redis-cli --cluster reshard` does.
    pub async fn move_partition(&self, prefix: &str, partition: u16, to: usize) {
        let moving = self.begin_move(prefix, partition, to).await;
        self.end_move(moving).await;
    }

    /// Begins to move the slot of a partition: its keys are still where they were.
    pub async fn begin_move(&self, prefix: &str, partition: u16, to: usize) -> Moving {
        let from = self.serving(prefix, partition).await.unwrap();
        let key = format!("{prefix}:{{{partition}}}:meta");
        let key_slot = ["CLUSTER", "KEYSLOT", &key];
        let slot: u64 = redis_command(&self.nodes[from].admin_url(), &key_slot).await;
        let moving = Moving { slot: slot.to_string(), from, to };
        self.set_slot(&moving, to, &["IMPORTING", &id(&self.nodes[from]).await]).await;
        self.set_slot(&moving, from, &["MIGRATING", &id(&self.nodes[to]).await]).await;
        moving
    }

    async fn set_slot(&self, moving: &Moving, node: usize, words: &[&str]) {
        let words = [&["CLUSTER", "SETSLOT", &moving.slot], words].concat();
        let () = redis_command(&self.nodes[node].admin_url(), &words).await;
    }

    /// Moves the keys, and then the slot.
    pub async fn end_move(&self, moving: Moving) {
        let Moving { slot, from, to } = &moving;
        let (from, to) = (&self.nodes[*from], &self.nodes[*to]);
        let port = to.port().to_string();
        loop {
            let page = ["CLUSTER", "GETKEYSINSLOT", slot, "2"];
            let keys: Vec<String> = redis_command(&from.admin_url(), &page).await;
            if keys.is_empty() {
                break;
            }
            let mut migrate =
                vec!["MIGRATE", "127.0.0.1", &port, "", "0", "60000", "AUTH2", "admin", "private"];
            migrate.push("KEYS");
            migrate.extend(keys.iter().map(String::as_str));
            let () = redis_command(&from.admin_url(), &migrate).await;
        }
        let to_id = id(to).await;
        for node in [moving.to, moving.from] {
            self.set_slot(&moving, node, &["NODE", &to_id]).await;
        }
    }
}

/// A slot that is being moved.
pub struct Moving {
    slot: String,
    from: usize,
    to: usize,
}
