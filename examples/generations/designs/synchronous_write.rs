//! Design 3: Redis takes the unit, and the same call stores the order in Postgres.
//!
//! Its fault: if the write fails, the unit is gone from Redis and in no order. Adding it again after an error is no cure,
//! because an error does not show whether Postgres has committed.

use redis::{AsyncCommands as _, aio::MultiplexedConnection};
use uuid::Uuid;

use super::{
    Design, Refusal,
    redis_stock::{RedisStock, Take, key},
};
use crate::database::{Database, PRODUCT};

pub(super) struct SynchronousWrite {
    stock: RedisStock,
    database: Database,
}

impl SynchronousWrite {
    /// With `supply` units in Redis.
    pub(super) async fn start(
        mut redis: MultiplexedConnection,
        database: Database,
        supply: i64,
    ) -> anyhow::Result<Self> {
        let () = redis.set(key(PRODUCT), supply).await?;
        Ok(Self { stock: RedisStock::new(redis), database })
    }
}

#[tonic::async_trait]
impl Design for SynchronousWrite {
    async fn reserve(&self, product: &str, user: &str) -> Result<Uuid, Refusal> {
        match self.stock.take(product).await? {
            Take::Taken => {
                let id = Uuid::new_v4();
                self.database.insert_order(id, product, user).await?;
                Ok(id)
            }
            Take::SoldOut | Take::Missing => Err(Refusal::SoldOut),
        }
    }

    async fn stock(&self, product: &str) -> Result<i64, Refusal> {
        Ok(self.stock.stock(product).await?.unwrap_or(0))
    }
}
