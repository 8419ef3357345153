//! Connections to Redis for tests, as redis-cli has them: without the client's own time limits, which are half a second
//! and one second, and pass on a busy machine.

use futures_util::FutureExt as _;
use redis::{
    Arg, AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError,
    RedisFuture, RedisResult, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
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

/// What Redis answers to a command, if it can be reached and does not refuse: a Sentinel closes each connection to the
/// servers of a failover.
pub async fn try_redis_command<T: FromRedisValue>(url: &str, words: &[&str]) -> RedisResult<T> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut try_redis_cli(url).await?).await
}

/// What Redis answers to a command.
pub async fn redis_command<T: FromRedisValue>(url: &str, words: &[&str]) -> T {
    try_redis_command(url, words).await.unwrap()
}

/// What is asked of every node of a cluster.
const EVERYWHERE: [&[u8]; 4] = [b"CONFIG", b"FLUSHALL", b"KEYS", b"SCRIPT"];

/// A connection to one Redis, or to each node of a cluster: a request is answered by the node that has its keys.
pub struct Cli(Vec<MultiplexedConnection>);

impl Cli {
    pub async fn to(urls: &[String]) -> Self {
        let mut nodes = Vec::new();
        for url in urls {
            nodes.push(redis_cli(url).await);
        }
        Self(nodes)
    }

    /// The lists that every node answers with, in one; of other answers the last one.
    async fn ask_every_node(&mut self, command: &Cmd) -> RedisResult<Value> {
        let (mut all, mut last) = (Vec::new(), None);
        for node in &mut self.0 {
            let answer = node.req_packed_command(command).await?.extract_error()?;
            if let Value::Array(items) = answer {
                all.extend(items);
            } else {
                last = Some(answer);
            }
        }
        Ok(last.unwrap_or(Value::Array(all)))
    }
}

/// Whether another node has the keys of this request.
fn is_elsewhere(error: &RedisError) -> bool {
    let kinds = [ServerErrorKind::Moved, ServerErrorKind::ExecAbort].map(ErrorKind::Server);
    kinds.contains(&error.kind())
}

impl ConnectionLike for Cli {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        async move {
            let name = command.args_iter().next();
            if self.0.len() > 1
                && matches!(name, Some(Arg::Simple(name)) if EVERYWHERE.contains(&name))
            {
                return self.ask_every_node(command).await;
            }
            let mut refused = None;
            for node in &mut self.0 {
                match node.req_packed_command(command).await?.extract_error() {
                    Err(error) if is_elsewhere(&error) => refused = Some(error),
                    answer => return answer,
                }
            }
            Err(refused.unwrap())
        }
        .boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        async move {
            let mut refused = None;
            for node in &mut self.0 {
                let answers = node.req_packed_commands(pipeline, offset, count).await;
                let errors = answers.iter().flatten().filter_map(|answer| {
                    let Value::ServerError(error) = answer else { return None };
                    Some(RedisError::from(error.clone()))
                });
                match errors.chain(answers.as_ref().err().cloned()).next() {
                    Some(error) if is_elsewhere(&error) => refused = Some(error),
                    Some(_) | None => return answers,
                }
            }
            Err(refused.unwrap())
        }
        .boxed()
    }

    fn get_db(&self) -> i64 {
        0
    }
}
