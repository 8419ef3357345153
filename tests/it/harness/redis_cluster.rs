//! A Redis Cluster of private servers: three masters, and a replica of each if the test needs them.

use futures_util::future::join_all;
use redis::RedisResult;
use yoink::servers::{AppendFsync, RedisServer};

use super::{eventually, redis_command, scratch_dir, succeeds, try_redis_cli};

const MASTERS: usize = 3;
/// The slots of the masters.
const SLOTS: [(&str, &str); MASTERS] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];

/// The masters first, then their replicas in the same order. Failovers change the roles.
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

/// What a node answers, if it can be reached and does not refuse.
async fn ask<T: redis::FromRedisValue>(node: &RedisServer, words: &[&str]) -> RedisResult<T> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut try_redis_cli(&node.admin_url()).await?).await
}

impl RedisCluster {
    pub async fn start(with_replicas: bool) -> Self {
        let count = if with_replicas { 2 * MASTERS } else { MASTERS };
        let starts = (0..count).map(|_| {
            let dir = scratch_dir("node");
            let start = move || RedisServer::start_node(&dir, AppendFsync::Always).unwrap();
            tokio::task::spawn_blocking(start)
        });
        let nodes = join_all(starts).await.into_iter().map(Result::unwrap).collect();
        let this = Self { nodes };
        this.meet().await;
        this
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
        for node in &self.nodes[1..] {
            let (port, bus) = (node.port().to_string(), node.bus_port().unwrap().to_string());
            let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus];
            let () = redis_command(&self.nodes[0].admin_url(), &meet).await;
        }
        for (replica, master) in self.nodes[MASTERS..].iter().zip(&self.nodes) {
            let id: String = redis_command(&master.admin_url(), &["CLUSTER", "MYID"]).await;
            // Until then it does not know the master.
            succeeds("the replica follows its master", async || {
                ask::<()>(replica, &["CLUSTER", "REPLICATE", &id]).await
            })
            .await;
        }
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
                if slaves != replicas || list.contains("handshake") {
                    return None;
                }
            }
            Some(())
        })
        .await;
        self.replicas_follow().await;
    }

    /// Waits until each replica has what its master has.
    async fn replicas_follow(&self) {
        for replica in &self.nodes[MASTERS..] {
            eventually("the replica is connected", async || {
                let info: String = ask(replica, &["INFO", "replication"]).await.ok()?;
                info.contains("master_link_status:up").then_some(())
            })
            .await;
        }
    }

    /// For the user of the service. Two nodes are named: the others are found.
    pub fn url(&self) -> String {
        let server = self.nodes[1].url();
        let (scheme, rest) = server.split_once("://").unwrap();
        format!("{scheme}+cluster://{rest},127.0.0.1:{}", self.nodes[0].port())
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
        let from = self.serving(prefix, partition).await.unwrap();
        let (from, to) = (&self.nodes[from], &self.nodes[to]);
        let key = format!("{prefix}:{{{partition}}}:meta");
        let slot: u64 = redis_command(&from.admin_url(), &["CLUSTER", "KEYSLOT", &key]).await;
        let slot = slot.to_string();
        let from_id: String = redis_command(&from.admin_url(), &["CLUSTER", "MYID"]).await;
        let to_id: String = redis_command(&to.admin_url(), &["CLUSTER", "MYID"]).await;
        let set = async |node: &RedisServer, words: &[&str]| {
            let words = [&["CLUSTER", "SETSLOT", &slot], words].concat();
            let () = redis_command(&node.admin_url(), &words).await;
        };
        set(to, &["IMPORTING", &from_id]).await;
        set(from, &["MIGRATING", &to_id]).await;
        let port = to.port().to_string();
        loop {
            let page = ["CLUSTER", "GETKEYSINSLOT", &slot, "2"];
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
        set(to, &["NODE", &to_id]).await;
        set(from, &["NODE", &to_id]).await;
    }
}
