//! The stores as designs 1 to 4 use them.

use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime};
use redis::{AsyncConnectionConfig, Client, aio::MultiplexedConnection};
use tokio_postgres::{NoTls, types::ToSql};
use uuid::Uuid;

use crate::{designs::Refusal, measure::stores::Stores};

/// The product that is sold.
pub(crate) const PRODUCT: &str = "sneaker-42";

/// The connections to Postgres that designs 1 to 4 may open. The original opens 5 on two cores.
const CONNECTIONS: usize = 10;
/// How long a call of designs 1 to 4 waits for one of them; as long as a transaction of the original.
const CONNECTION_WAIT: Duration = Duration::from_secs(2);

/// Designs 1 to 4 use this schema. As in the original, no constraint limits the stock.
const SCHEMA: &str = "
    CREATE TABLE products (id text PRIMARY KEY, stock bigint NOT NULL);
    CREATE TABLE orders (id uuid PRIMARY KEY, product_id text NOT NULL, user_id text NOT NULL,
                         created_at timestamptz NOT NULL DEFAULT clock_timestamp());";

/// A connection to Redis that waits for each answer as long as needed, because workers block theirs.
pub(crate) async fn connect_redis(stores: &Stores) -> anyhow::Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(stores.redis_url())?;
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

/// Postgres as designs 1 to 4 use it: as with most ORMs, each statement takes a connection from the pool and is a
/// transaction of its own.
#[derive(Clone)]
pub(crate) struct Database(Pool);

impl Database {
    /// Creates the schema, with `supply` units of the product.
    pub(crate) async fn create(stores: &Stores, supply: i64) -> anyhow::Result<Self> {
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(stores.postgres_url().parse()?, NoTls, config);
        let pool = Pool::builder(manager).max_size(CONNECTIONS).runtime(Runtime::Tokio1);
        let pool = pool.wait_timeout(Some(CONNECTION_WAIT)).build()?;
        let connection = pool.get().await?;
        connection.batch_execute(SCHEMA).await?;
        let product = "INSERT INTO products (id, stock) VALUES ($1, $2)";
        connection.execute(product, &[&PRODUCT, &supply]).await?;
        drop(connection);
        Ok(Self(pool))
    }

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
