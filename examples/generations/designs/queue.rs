//! Design 4: Redis takes the unit, a second command puts the order into a queue, and workers store it. This is the last
//! generation of the original.
//!
//! Its faults: the stock key expires and is loaded again from Postgres, which does not know the orders that wait. An order
//! that fails three times in a row is dropped after its buyer was accepted, also if Postgres was only down for a moment. And
//! a process that ends between the two commands takes a unit that no order has.

use std::{sync::Arc, time::Duration};

use redis::{AsyncCommands as _, Direction, aio::MultiplexedConnection};
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Design, Refusal,
    redis_stock::{RedisStock, Take, key},
};
use crate::database::Database;

/// How many orders are stored at the same time.
pub(super) const WORKERS: usize = 10;
const ATTEMPTS: u32 = 3;
/// Orders that no worker has, and orders that a worker has.
const WAITING: &str = "orders:waiting";
const ACTIVE: &str = "orders:active";
/// How long a worker waits for an order before it asks again, in seconds.
const POLL_SECONDS: f64 = 0.1;

const STORE: &str = "
    WITH stored AS (
        INSERT INTO orders (id, product_id, user_id) VALUES ($1, $2, $3) RETURNING product_id
    )
    UPDATE products SET stock = stock - 1 FROM stored WHERE products.id = stored.product_id";

struct Order<'a> {
    id: Uuid,
    product: &'a str,
    user: &'a str,
}

impl<'a> Order<'a> {
    /// Its text in the queue; no part has a space.
    fn to_job(&self) -> String {
        format!("{} {} {}", self.id, self.product, self.user)
    }

    fn of_job(job: &'a str) -> Option<Self> {
        let mut parts = job.split(' ');
        Some(Self { id: parts.next()?.parse().ok()?, product: parts.next()?, user: parts.next()? })
    }
}

pub(super) struct Queue {
    stock: RedisStock,
    database: Database,
    stock_expiry: Duration,
}

impl Queue {
    pub(super) fn new(
        redis: MultiplexedConnection,
        database: Database,
        stock_expiry: Duration,
    ) -> Self {
        Self { stock: RedisStock::new(redis), database, stock_expiry }
    }

    /// Takes a unit; loads the stock from Postgres if the key does not exist.
    async fn take(&self, product: &str) -> Result<Take, Refusal> {
        let taken = self.stock.take(product).await?;
        if !matches!(taken, Take::Missing) {
            return Ok(taken);
        }
        let stock = self.database.stock(product).await?;
        let expiry_ms = u64::try_from(self.stock_expiry.as_millis()).unwrap_or(u64::MAX);
        let mut load = redis::cmd("SET");
        load.arg(key(product)).arg(stock).arg("NX").arg("PX").arg(expiry_ms);
        let () = load.query_async(&mut self.stock.connection()).await?;
        Ok(self.stock.take(product).await?)
    }

    /// Stores orders until `stop`.
    pub(super) async fn work(
        self: Arc<Self>,
        mut redis: MultiplexedConnection,
        stop: CancellationToken,
    ) {
        while !stop.is_cancelled() {
            let next =
                redis.blmove(WAITING, ACTIVE, Direction::Right, Direction::Left, POLL_SECONDS);
            let next: Result<Option<String>, _> = next.await;
            let Ok(Some(job)) = next else { continue };
            let Some(order) = Order::of_job(&job) else { continue };
            // A worker of the original ignores errors of Redis as well.
            if !self.store(&order).await {
                let _units: Result<i64, _> = redis.incr(key(order.product), 1).await;
            }
            let _removed: Result<i64, _> = redis.lrem(ACTIVE, 1, &job).await;
        }
    }

    /// Whether one of the attempts stored the order. They follow one another without a delay.
    async fn store(&self, order: &Order<'_>) -> bool {
        for _ in 0..ATTEMPTS {
            let values: [&(dyn ToSql + Sync); 3] = [&order.id, &order.product, &order.user];
            if self.database.execute(STORE, &values).await.is_ok() {
                return true;
            }
        }
        false
    }
}

#[tonic::async_trait]
impl Design for Queue {
    async fn reserve(&self, product: &str, user: &str) -> Result<Uuid, Refusal> {
        match self.take(product).await? {
            Take::Taken => {
                let order = Order { id: Uuid::new_v4(), product, user };
                let () = self.stock.connection().lpush(WAITING, order.to_job()).await?;
                Ok(order.id)
            }
            Take::SoldOut | Take::Missing => Err(Refusal::SoldOut),
        }
    }

    async fn stock(&self, product: &str) -> Result<i64, Refusal> {
        match self.stock.stock(product).await? {
            Some(stock) => Ok(stock),
            None => self.database.stock(product).await,
        }
    }

    async fn waiting(&self) -> Result<u64, Refusal> {
        let mut redis = self.stock.connection();
        let waiting: u64 = redis.llen(WAITING).await?;
        let active: u64 = redis.llen(ACTIVE).await?;
        Ok(waiting + active)
    }
}
