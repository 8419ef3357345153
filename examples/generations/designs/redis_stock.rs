//! The stock of designs 3 and 4: a number in Redis, which a script reduces by one if it is not 0.

use redis::{AsyncCommands as _, RedisResult, Script, aio::MultiplexedConnection};

const TAKE: &str = "
    local stock = redis.call('GET', KEYS[1])
    if not stock then return 'missing' end
    if tonumber(stock) <= 0 then return 'sold out' end
    redis.call('DECR', KEYS[1])
    return 'taken'";

pub(super) enum Take {
    Taken,
    SoldOut,
    /// The key does not exist.
    Missing,
}

/// The script, and a connection on which it runs.
pub(super) struct RedisStock {
    redis: MultiplexedConnection,
    script: Script,
}

impl RedisStock {
    pub(super) fn new(redis: MultiplexedConnection) -> Self {
        Self { redis, script: Script::new(TAKE) }
    }

    pub(super) fn connection(&self) -> MultiplexedConnection {
        self.redis.clone()
    }

    /// Takes one unit, if one is left.
    pub(super) async fn take(&self, product: &str) -> RedisResult<Take> {
        let taken: String =
            self.script.key(key(product)).invoke_async(&mut self.connection()).await?;
        Ok(match taken.as_str() {
            "taken" => Take::Taken,
            "sold out" => Take::SoldOut,
            _ => Take::Missing,
        })
    }

    /// The units that are left; none without a key.
    pub(super) async fn stock(&self, product: &str) -> RedisResult<Option<i64>> {
        self.connection().get(key(product)).await
    }
}

/// The key of a product's stock.
pub(super) fn key(product: &str) -> String {
    format!("stock:{product}")
}
