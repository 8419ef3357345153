//! A private Redis Cluster of three masters.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use futures_util::future::join_all;
use redis::{Client, FromRedisValue};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use yoink::servers::{AppendFsync, RedisServer};

/// The slots of the masters.
const SLOTS: [(&str, &str); 3] = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
/// The masters know one another after this time, or have failed.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Starts the masters, each in a directory below this one.
pub(crate) async fn start(dir: &Path) -> anyhow::Result<Vec<RedisServer>> {
    let starts = (0..SLOTS.len()).map(|number| {
        let dir = dir.join(format!("redis-{number}"));
        spawn_blocking(move || RedisServer::start_node(&dir, AppendFsync::Everysec, &[]))
    });
    let mut nodes = Vec::new();
    for started in join_all(starts).await {
        nodes.push(started??);
    }
    for (number, (node, (first, last))) in nodes.iter().zip(SLOTS).enumerate() {
        let () = ask(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await?;
        let () = ask(node, &["CLUSTER", "ADDSLOTSRANGE", first, last]).await?;
    }
    for node in &nodes[1..] {
        let bus = node.bus_port().context("a node has a port for the others")?.to_string();
        let port = node.port().to_string();
        let () = ask(&nodes[0], &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await?;
    }
    let end = Instant::now() + START_TIMEOUT;
    for node in &nodes {
        while !ask::<String>(node, &["CLUSTER", "INFO"]).await?.contains("cluster_state:ok") {
            anyhow::ensure!(
                Instant::now() < end,
                "the nodes of the cluster do not find one another"
            );
            sleep(POLL_INTERVAL).await;
        }
    }
    Ok(nodes)
}

/// What a node answers to a command.
async fn ask<T: FromRedisValue>(node: &RedisServer, words: &[&str]) -> anyhow::Result<T> {
    let client = Client::open(node.admin_url())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut command = redis::cmd(words[0]);
    Ok(command.arg(&words[1..]).query_async(&mut connection).await?)
}
