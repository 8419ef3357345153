//! A test's own key prefix and database, on shared servers or on its own.
//!
//! With `TEST_REDIS=cluster`, the shared Redis is a cluster of three masters, and so is a Redis that a test restarts.

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::{net::TcpListener, sync::Mutex};
use tokio_postgres::{Client, NoTls, error::SqlState};
use tokio_util::task::TaskTracker;
use yoink::{
    app::{App, Listeners, Role, Stores},
    audit::{Report, Verdict},
    config::Config,
    domain::{NewProduct, Price, ProductStatus, Sale},
    servers::{AppendFsync, PostgresServer, RedisServer},
};

use super::{
    Authority, Cli, ClusterOptions, RedisCluster, Sentinels, Service, eventually, scratch_dir,
    servers::{POSTGRES_SETTINGS, shared_cluster},
    shared, succeeds,
};

/// The stores of a test.
pub struct TestEnv {
    pub prefix: String,
    pub database: String,
    /// How many partitions it has; changed before the first process starts.
    pub partitions: u16,
    pub redis: Option<RedisServer>,
    /// In place of the shared Redis.
    pub shared_cluster: Option<&'static RedisCluster>,
    /// In place of `redis`.
    pub redis_cluster: Option<RedisCluster>,
    /// In place of `redis`.
    pub sentinels: Option<Sentinels>,
    /// The authority of the Redis that speaks TLS, for the settings.
    pub redis_ca_file: Option<String>,
    pub postgres: Option<PostgresServer>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);
/// One database is copied at a time.
static COPYING: Mutex<bool> = Mutex::const_new(false);

impl TestEnv {
    /// On the shared servers.
    pub async fn new() -> Self {
        tokio::task::spawn_blocking(shared).await.unwrap();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let shared_cluster = if on_cluster() { Some(shared_cluster().await) } else { None };
        let env = Self {
            // The user of the service may use keys that begin with `yoink:`.
            prefix: format!("yoink:test{n}"),
            database: format!("test{n}"),
            partitions: 2,
            redis: None,
            shared_cluster,
            redis_cluster: None,
            sentinels: None,
            redis_ca_file: None,
            postgres: None,
        };
        let mut made = COPYING.lock().await;
        if !*made {
            let create = || shared().postgres.create_database("template_yoink").unwrap();
            tokio::task::spawn_blocking(create).await.unwrap();
            let owner = shared().postgres.owner_url("template_yoink");
            yoink::ledger::migrate(&owner.parse().unwrap()).await.unwrap();
            *made = true;
        }
        let admin = connect(&shared().postgres.superuser_url("postgres")).await;
        let name = &env.database;
        // A copy has the tables and their privileges, and not those of the database.
        let copy = format!("CREATE DATABASE {name} TEMPLATE template_yoink OWNER yoink_owner");
        admin.batch_execute(&copy).await.unwrap();
        let rights = format!(
            "REVOKE ALL ON DATABASE {name} FROM PUBLIC;
             GRANT CONNECT ON DATABASE {name} TO yoink_serve, yoink_read"
        );
        admin.batch_execute(&rights).await.unwrap();
        env
    }

    /// With its own Redis, for faults.
    pub async fn with_own_redis() -> Self {
        let mut env = Self::new().await;
        let dir = scratch_dir("redis");
        let start = move || RedisServer::start(&dir, AppendFsync::Always).unwrap();
        env.redis = Some(tokio::task::spawn_blocking(start).await.unwrap());
        env
    }

    /// With its own Redis, which is restarted or killed by [`TestEnv::restart_redis`] and [`TestEnv::kill_redis`].
    pub async fn with_restarted_redis() -> Self {
        if !on_cluster() {
            return Self::with_own_redis().await;
        }
        let cluster = RedisCluster::start(ClusterOptions::default()).await;
        Self { redis_cluster: Some(cluster), ..Self::new().await }
    }

    /// With its own Redis Cluster of three masters. It has four partitions, so that each master has one at least.
    pub async fn with_redis_cluster(replicas: bool) -> Self {
        Self::with_cluster(ClusterOptions { replicas, ..ClusterOptions::default() }).await
    }

    /// The same, with more options.
    pub async fn with_cluster(options: ClusterOptions<'_>) -> Self {
        let redis_cluster = Some(RedisCluster::start(options).await);
        let redis_ca_file = options.tls.map(Authority::file);
        Self { partitions: 4, redis_cluster, redis_ca_file, ..Self::new().await }
    }

    /// With its own Postgres, for faults.
    pub async fn with_own_postgres() -> Self {
        Self::with_postgres(&POSTGRES_SETTINGS).await
    }

    /// With its own Postgres, which flushes commits to its disk.
    pub async fn with_durable_postgres() -> Self {
        Self::with_postgres(&["max_connections=500"]).await
    }

    async fn with_postgres(settings: &'static [&'static str]) -> Self {
        let dir = scratch_dir("postgres");
        let start = move || PostgresServer::start(&dir, settings).unwrap();
        let postgres = tokio::task::spawn_blocking(start).await.unwrap();
        let mut env = Self::new().await;
        postgres.create_database(&env.database).unwrap();
        yoink::ledger::migrate(&postgres.owner_url(&env.database).parse().unwrap()).await.unwrap();
        env.postgres = Some(postgres);
        env
    }

    pub fn redis(&self) -> &RedisServer {
        self.redis.as_ref().unwrap_or(&shared().redis)
    }

    pub fn postgres(&self) -> &PostgresServer {
        self.postgres.as_ref().unwrap_or(&shared().postgres)
    }

    /// For the user of the service.
    pub fn redis_url(&self) -> String {
        match (self.cluster(), &self.sentinels) {
            (_, Some(sentinels)) => sentinels.url(),
            (Some(cluster), None) => cluster.url(),
            (None, None) => self.redis().url(),
        }
    }

    /// The cluster that is used, the test's own or the shared one.
    fn cluster(&self) -> Option<&RedisCluster> {
        let shared = self.shared_cluster.filter(|_| self.redis.is_none());
        self.redis_cluster.as_ref().or(shared)
    }

    /// The servers of the test's own Redis: one, or all nodes of its cluster.
    fn redis_servers(&mut self) -> &mut [RedisServer] {
        match &mut self.redis_cluster {
            Some(cluster) => cluster.nodes_mut(),
            None => self.redis.as_mut_slice(),
        }
    }

    /// Restarts the test's own Redis, with its data.
    pub fn restart_redis(&mut self) {
        for server in self.redis_servers() {
            server.restart().unwrap();
        }
    }

    /// Kills the test's own Redis, as a crash does.
    pub fn kill_redis(&mut self) {
        self.redis_servers().iter_mut().for_each(RedisServer::kill);
    }

    /// The cluster of a test that has one.
    pub fn redis_cluster(&self) -> &RedisCluster {
        self.redis_cluster.as_ref().unwrap()
    }

    pub fn redis_cluster_mut(&mut self) -> &mut RedisCluster {
        self.redis_cluster.as_mut().unwrap()
    }

    /// The Sentinels of a test that has them.
    pub fn sentinels(&self) -> &Sentinels {
        self.sentinels.as_ref().unwrap()
    }

    /// For the role of the service.
    pub fn postgres_url(&self) -> String {
        self.postgres().url(&self.database)
    }

    /// For the owner of the database, who migrates it.
    pub fn owner_url(&self) -> String {
        self.postgres().owner_url(&self.database)
    }

    /// For a test that changes the schema or the server.
    pub fn superuser_url(&self) -> String {
        self.postgres().superuser_url(&self.database)
    }

    /// The settings for these stores, and `more`.
    pub fn settings(&self, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        let mut settings = vec![
            ("redis_url", self.redis_url()),
            ("postgres_url", self.postgres_url()),
            ("key_prefix", self.prefix.clone()),
            ("grpc_listen", "127.0.0.1:0".to_owned()),
            ("http_listen", "127.0.0.1:0".to_owned()),
            ("partitions", self.partitions.to_string()),
            ("log_filter", "warn".to_owned()),
        ];
        settings.extend(self.redis_ca_file.clone().map(|file| ("redis_ca_file", file)));
        settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        settings
    }

    pub fn config(&self, more: &[(&'static str, &str)]) -> Config {
        Config::load(Path::new("no-such-file.toml"), false, &self.settings(more)).unwrap()
    }

    /// A service that is built and does not run: the test calls its loops.
    pub async fn app(&self, more: &[(&'static str, &str)]) -> App {
        let bind = || TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners { grpc: bind().await.unwrap(), http: bind().await.unwrap() };
        App::build(&self.config(more), Role::All, listeners).await.unwrap()
    }

    /// A running service.
    pub async fn serve(&self, role: Role, more: &[(&'static str, &str)]) -> Service {
        // On the heap: a test that starts several services would copy this future until its stack is full.
        Box::pin(Service::start(&self.config(more), role)).await
    }

    /// Both stores, independent of a running service; after a fault, once both can be reached.
    pub async fn stores(&self) -> Stores {
        succeeds("both stores can be reached", async || {
            let stores = Box::pin(Stores::connect(&self.config(&[]))).await?;
            stores.load_epochs().await?;
            anyhow::Ok(stores)
        })
        .await
    }

    /// A product's name that is sold from a certain partition.
    pub async fn product_in(&self, partition: u16) -> String {
        let partitions = self.stores().await.deployment.partitions;
        let mut names = (0..1_000).map(|n| format!("item-{n}"));
        let there = |name: &String| partitions.of(&name.parse().unwrap()).number() == partition;
        names.find(there).unwrap()
    }

    /// A connection of the superuser to the database; after a fault, once it accepts connections.
    pub async fn sql(&self) -> Client {
        connect(&self.superuser_url()).await
    }

    /// A connection of an administrator to Redis.
    pub async fn cli(&self) -> Cli {
        let servers = match self.cluster() {
            Some(cluster) => cluster.nodes(),
            None => std::slice::from_ref(self.redis()),
        };
        let urls: Vec<String> = servers.iter().map(RedisServer::admin_url).collect();
        Cli::to(&urls).await
    }

    /// One number from the database, as soon as it can be asked.
    pub async fn count(&self, sql: &str) -> i64 {
        eventually("the database answers", async || {
            match self.sql().await.query_one(sql, &[]).await {
                Ok(row) => Some(row.get(0)),
                Err(error) => {
                    // A fault may end the connection that was made a moment ago; nothing else may fail.
                    assert!(is_broken(&error), "{sql}: {error:?}");
                    None
                }
            }
        })
        .await
    }

    /// Sets when an API key expires, with a new version, as the commands do.
    pub async fn expire_key(&self, key: &str, at: std::time::SystemTime) {
        let (sql, id) = (self.sql().await, key.split('_').nth(1).unwrap());
        let expire = "UPDATE api_keys SET expires_at = $1::timestamptz WHERE key_id = $2";
        assert_eq!(sql.execute(expire, &[&at, &id]).await.unwrap(), 1);
        sql.execute("UPDATE api_key_version SET version = gen_random_uuid()", &[]).await.unwrap();
    }

    /// The audit as it is now.
    pub async fn audit(&self) -> Report {
        let stores = self.stores().await;
        stores.auditor.audit().await
    }

    /// Waits until everything accepted is settled; the audit must hold then, and never be violated.
    pub async fn assert_audit_holds(&self) -> Report {
        let stores = self.stores().await;
        let auditor = &stores.auditor;
        eventually("everything accepted is settled, and the audit holds", async || {
            // A connection that a fault has broken is replaced.
            stores.load_epochs().await.ok()?;
            let report = auditor.audit().await;
            assert_ne!(report.verdict(), Verdict::Violated, "{report:#?}");
            let waiting = report.products.iter().any(|units| units.in_orders + units.in_dead > 0);
            (!waiting && report.verdict() == Verdict::Holds).then_some(report)
        })
        .await
    }
}

/// Whether the tests use a cluster where they can.
fn on_cluster() -> bool {
    std::env::var("TEST_REDIS").is_ok_and(|kind| kind == "cluster")
}

/// Waits until a Postgres accepts connections: after a fault it may still be recovering.
async fn connect(url: &str) -> Client {
    let connect = async || tokio_postgres::connect(url, NoTls).await;
    let (client, connection) = succeeds("Postgres accepts connections", connect).await;
    // It ends with its client.
    TaskTracker::new().spawn(connection);
    client
}

/// Whether the connection has ended, rather than that the query failed.
fn is_broken(error: &tokio_postgres::Error) -> bool {
    let ended = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW];
    error.code().is_none_or(|code| ended.contains(code))
}

/// A product on sale, without window or limit.
pub fn product(id: &str, units: i64) -> NewProduct {
    let sale = Sale {
        name: format!("Product {id}"),
        price: Price::parse("19.99", "EUR").unwrap(),
        opens_at_ms: None,
        closes_at_ms: None,
        per_user_limit: None,
        status: ProductStatus::OnSale,
    };
    NewProduct { id: id.parse().unwrap(), sale, units }
}
