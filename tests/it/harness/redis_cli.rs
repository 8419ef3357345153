//! Connections to Redis for tests, as redis-cli has them: without the client's own time limits, which are half a second
//! and one second, and pass on a busy machine.

use redis::{
    AsyncConnectionConfig, Client, FromRedisValue, RedisResult, aio::MultiplexedConnection,
};

/// A connection, if Redis accepts it.
pub async fn try_redis_cli(url: &str) -> RedisResult<MultiplexedConnection> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await
}

/// A connection to a Redis that is up.
pub async fn redis_cli(url: &str) -> MultiplexedConnection {
    try_redis_cli(url).await.unwrap()
}

/// What Redis answers to a command.
pub async fn redis_command<T: FromRedisValue>(url: &str, words: &[&str]) -> T {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut redis_cli(url).await).await.unwrap()
}
