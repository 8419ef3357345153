//! What is read from the Redis of a deployment: one, or the masters of a cluster.

use anyhow::Context as _;
use redis::{Client, aio::MultiplexedConnection};

/// Each Redis of a deployment.
pub(crate) struct RedisServers {
    connections: Vec<MultiplexedConnection>,
    pids: Vec<u32>,
}

fn info_number(info: &str, name: &str) -> anyhow::Result<u64> {
    let number = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(number.with_context(|| format!("INFO has no {name}"))?.trim().parse()?)
}

async fn info(connection: &MultiplexedConnection, section: &str) -> anyhow::Result<String> {
    let mut info = redis::cmd("INFO");
    Ok(info.arg(section).query_async(&mut connection.clone()).await?)
}

impl RedisServers {
    pub(crate) async fn connect(urls: &[String]) -> anyhow::Result<Self> {
        let (mut connections, mut pids) = (Vec::new(), Vec::new());
        for url in urls {
            let client = Client::open(url.as_str())?;
            let connection = client.get_multiplexed_async_connection().await?;
            let pid = info_number(&info(&connection, "server").await?, "process_id")?;
            pids.push(u32::try_from(pid)?);
            connections.push(connection);
        }
        Ok(Self { connections, pids })
    }

    /// Their processes.
    pub(crate) fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// The sum of what a command returns for each stream.
    pub(crate) async fn sum_of_streams(&self, name: &str, words: &[&str]) -> anyhow::Result<u64> {
        let mut sum = 0;
        for connection in &self.connections {
            let (mut connection, mut cursor) = (connection.clone(), 0_u64);
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg(&["TYPE", "stream", "COUNT", "1000"]);
                let (next, keys): (u64, Vec<String>) = scan.query_async(&mut connection).await?;
                for key in keys {
                    let mut command = redis::cmd(name);
                    command.arg(words).arg(key);
                    sum += command.query_async::<Option<u64>>(&mut connection).await?.unwrap_or(0);
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(sum)
    }

    /// Bytes that all streams use together.
    pub(crate) async fn stream_bytes(&self) -> anyhow::Result<u64> {
        self.sum_of_streams("MEMORY", &["USAGE"]).await
    }

    /// Bytes that they use.
    pub(crate) async fn bytes(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for connection in &self.connections {
            bytes += info_number(&info(connection, "memory").await?, "used_memory")?;
        }
        Ok(bytes)
    }

    /// Sets `appendfsync` while they run.
    pub(crate) async fn set_appendfsync(&self, value: &str) -> anyhow::Result<()> {
        let mut set = redis::cmd("CONFIG");
        set.arg(&["SET", "appendfsync", value]);
        for connection in &self.connections {
            let () = set.query_async(&mut connection.clone()).await?;
        }
        Ok(())
    }
}
