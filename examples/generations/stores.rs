//! The private Redis and the private Postgres of one run, and what Postgres holds at its end.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime};
use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection};
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tokio_postgres::{NoTls, Row, types::ToSql};
use uuid::Uuid;
use yoink::servers::{AppendFsync, PostgresServer, RedisServer};

use crate::designs::Refusal;

/// The product that is sold.
pub(crate) const PRODUCT: &str = "sneaker-42";

const DATABASE: &str = "generations";
/// The connections to Postgres that designs 1 to 4 may open. The original opens 5 on two cores.
const CONNECTIONS: usize = 10;
/// How long a call of designs 1 to 4 waits for one of them; as long as a transaction of the original.
const CONNECTION_WAIT: Duration = Duration::from_secs(2);

/// Designs 1 to 4 use this schema. As in the original, no constraint limits the stock.
const SCHEMA: &str = "
    CREATE TABLE products (id text PRIMARY KEY, stock bigint NOT NULL);
    CREATE TABLE orders (id uuid PRIMARY KEY, product_id text NOT NULL, user_id text NOT NULL,
                         created_at timestamptz NOT NULL DEFAULT clock_timestamp());";

/// The private servers of one run.
pub(crate) struct Stores {
    redis: RedisServer,
    postgres: Arc<Mutex<PostgresServer>>,
    postgres_url: String,
    /// Removed after the servers have ended: fields are dropped in this order.
    dir: TempDir,
}

/// An order in Postgres.
pub(crate) struct StoredOrder {
    pub(crate) id: Uuid,
    /// When it was stored, in milliseconds since 1970.
    pub(crate) at_ms: i64,
}

impl Stores {
    /// Starts both servers with an empty database.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        spawn_blocking(|| {
            let mut dir = tempfile::Builder::new();
            // A Postgres that runs as another user must pass through it.
            let dir = dir.prefix("yoink-generations-").permissions(Permissions::from_mode(0o711));
            let dir = dir.tempdir()?;
            let redis = RedisServer::start(&dir.path().join("redis"), AppendFsync::Everysec)?;
            let postgres = PostgresServer::start(&dir.path().join("postgres"), &[])?;
            postgres.create_database(DATABASE)?;
            let postgres_url = postgres.url(DATABASE);
            Ok(Self { redis, postgres: Arc::new(Mutex::new(postgres)), postgres_url, dir })
        })
        .await?
    }

    pub(crate) fn redis_url(&self) -> String {
        self.redis.url()
    }

    pub(crate) fn postgres_url(&self) -> &str {
        &self.postgres_url
    }

    /// A file that does not exist.
    pub(crate) fn no_file(&self) -> PathBuf {
        self.dir.path().join("none")
    }

    /// A connection to Redis that waits for each answer as long as needed, because workers block theirs.
    pub(crate) async fn connect_redis(&self) -> anyhow::Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let client = Client::open(self.redis_url())?;
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// The database of designs 1 to 4, with `supply` units of the product.
    pub(crate) async fn database(&self, supply: i64) -> anyhow::Result<Database> {
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(self.postgres_url.parse()?, NoTls, config);
        let pool = Pool::builder(manager).max_size(CONNECTIONS).runtime(Runtime::Tokio1);
        let pool = pool.wait_timeout(Some(CONNECTION_WAIT)).build()?;
        let connection = pool.get().await?;
        connection.batch_execute(SCHEMA).await?;
        let product = "INSERT INTO products (id, stock) VALUES ($1, $2)";
        connection.execute(product, &[&PRODUCT, &supply]).await?;
        Ok(Database(pool))
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
        let postgres = self.postgres.clone();
        let work = move || {
            let mut postgres = postgres.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            work(&mut postgres)
        };
        spawn_blocking(work).await?
    }

    /// Every order that Postgres holds, by a statement that returns its id and its time in milliseconds.
    pub(crate) async fn orders(&self, sql: &str) -> anyhow::Result<Vec<StoredOrder>> {
        let (client, connection) = tokio_postgres::connect(&self.postgres_url, NoTls).await?;
        let read = async {
            let rows = client.query(sql, &[]).await;
            drop(client);
            rows
        };
        let (rows, ended) = tokio::join!(read, connection);
        ended?;
        let order = |row: &Row| StoredOrder { id: row.get(0), at_ms: row.get(1) };
        Ok(rows?.iter().map(order).collect())
    }
}

/// Postgres as designs 1 to 4 use it: as with most ORMs, each statement takes a connection from the pool and is a
/// transaction of its own.
#[derive(Clone)]
pub(crate) struct Database(Pool);

impl Database {
    pub(crate) async fn execute(
        &self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Refusal> {
        let connection = self.0.get().await?;
        let statement = connection.prepare_cached(sql).await?;
        Ok(connection.execute(&statement, values).await?)
    }

    /// The stock of a product, as Postgres has it.
    pub(crate) async fn stock(&self, product: &str) -> Result<i64, Refusal> {
        let connection = self.0.get().await?;
        let sql = "SELECT stock FROM products WHERE id = $1";
        let statement = connection.prepare_cached(sql).await?;
        Ok(connection.query_one(&statement, &[&product]).await?.get(0))
    }

    /// Stores an order.
    pub(crate) async fn insert_order(
        &self,
        id: Uuid,
        product: &str,
        user: &str,
    ) -> Result<(), Refusal> {
        let sql = "INSERT INTO orders (id, product_id, user_id) VALUES ($1, $2, $3)";
        self.execute(sql, &[&id, &product, &user]).await.map(drop)
    }
}

impl From<PoolError> for Refusal {
    fn from(error: PoolError) -> Self {
        Self::NoConnection(error.to_string())
    }
}

impl From<tokio_postgres::Error> for Refusal {
    fn from(error: tokio_postgres::Error) -> Self {
        // Class 57 is the end of a connection by an operator, such as a shutdown.
        let ended = error.code().is_some_and(|code| code.code().starts_with("57"));
        if ended || error.is_closed() || error.code().is_none() {
            return Self::NoConnection(error.to_string());
        }
        Self::Failed(error.to_string())
    }
}

impl From<redis::RedisError> for Refusal {
    fn from(error: redis::RedisError) -> Self {
        if error.is_io_error() || error.is_timeout() {
            return Self::NoConnection(error.to_string());
        }
        Self::Failed(error.to_string())
    }
}
