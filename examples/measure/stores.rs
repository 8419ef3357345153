//! The private Redis, or the private Redis Cluster, and the private Postgres of one run.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex},
};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tokio_postgres::{NoTls, Row};
use yoink::servers::{AppendFsync, PostgresServer, RedisServer};

use super::cluster;

/// Which Redis a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Redis {
    One,
    /// Three masters.
    Cluster,
}

/// The private servers of one run.
pub(crate) struct Stores {
    /// One, or the masters of a cluster. They end before the directory is removed: fields are dropped in this order.
    redis: Vec<RedisServer>,
    /// An interrupted stop or restart of Postgres holds it as well, until its end.
    kept: Arc<Kept>,
    postgres_url: String,
}

/// Postgres and the directory of all servers.
struct Kept {
    postgres: Mutex<PostgresServer>,
    /// Removed after Postgres has ended: fields are dropped in this order.
    dir: TempDir,
}

impl Stores {
    /// Starts both servers, with an empty database of this name.
    pub(crate) async fn start(name: &'static str) -> anyhow::Result<Self> {
        Self::start_with(name, Redis::One).await
    }

    /// The same, with this Redis.
    pub(crate) async fn start_with(name: &'static str, redis: Redis) -> anyhow::Result<Self> {
        let mut this = spawn_blocking(move || {
            let mut dir = tempfile::Builder::new();
            let prefix = format!("yoink-{name}-");
            // A Postgres that runs as another user must pass through it.
            let dir = dir.prefix(&prefix).permissions(Permissions::from_mode(0o711)).tempdir()?;
            let mut servers = Vec::new();
            if redis == Redis::One {
                let path = dir.path().join("redis");
                servers.push(RedisServer::start(&path, AppendFsync::Everysec)?);
            }
            let postgres = PostgresServer::start(&dir.path().join("postgres"), &[])?;
            postgres.create_database(name)?;
            let postgres_url = postgres.superuser_url(name);
            let kept = Arc::new(Kept { postgres: Mutex::new(postgres), dir });
            anyhow::Ok(Self { redis: servers, kept, postgres_url })
        })
        .await??;
        if redis == Redis::Cluster {
            this.redis = cluster::start(this.dir()).await?;
        }
        Ok(this)
    }

    /// Stops both servers and removes their data.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        // Dropping it waits for the end of the servers.
        spawn_blocking(move || drop(self)).await.context("the servers cannot be stopped")
    }

    /// The address of each Redis.
    pub(crate) fn redis_urls(&self) -> Vec<String> {
        self.redis.iter().map(RedisServer::admin_url).collect()
    }

    /// For the setting `redis_url`.
    pub(crate) fn redis_url(&self) -> String {
        let url = self.redis[0].admin_url();
        if self.redis.len() == 1 { url } else { url.replacen("://", "+cluster://", 1) }
    }

    pub(crate) fn postgres_url(&self) -> &str {
        &self.postgres_url
    }

    /// Where the servers have their data; removed with them.
    pub(crate) fn dir(&self) -> &Path {
        self.kept.dir.path()
    }

    /// Stops Postgres and closes every connection.
    pub(crate) async fn stop_postgres(&self) -> anyhow::Result<()> {
        self.with_postgres(|postgres| {
            postgres.stop();
            Ok(())
        })
        .await
    }

    /// Starts Postgres again, with its data.
    pub(crate) async fn restart_postgres(&self) -> anyhow::Result<()> {
        self.with_postgres(PostgresServer::restart).await
    }

    async fn with_postgres(
        &self,
        work: impl FnOnce(&mut PostgresServer) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let kept = self.kept.clone();
        let work = move || {
            let mut postgres =
                kept.postgres.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            work(&mut postgres)
        };
        spawn_blocking(work).await?
    }

    /// The rows that a statement returns, on a connection of its own.
    pub(crate) async fn query(&self, sql: &str) -> anyhow::Result<Vec<Row>> {
        let (client, connection) = tokio_postgres::connect(&self.postgres_url, NoTls).await?;
        let read = async {
            let rows = client.query(sql, &[]).await;
            drop(client);
            rows
        };
        let (rows, ended) = tokio::join!(read, connection);
        ended?;
        Ok(rows?)
    }
}
