//! One connection to Redis at a time, replaced as soon as it is useless: it was closed, it is silent, or it leads to
//! a replica. The address is resolved again for each. Requests that are under way on a connection that is replaced
//! still get their answers from it.
//!
//! Must never: send a request twice.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult,
    ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use arc_swap::ArcSwap;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};

use super::drop_reason::{DropReason, in_answer, in_error};
use crate::telemetry::Metrics;

/// How long making a connection may take, with the name's look-up and Redis's first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The least time from one connection to the next: a connection that fails at once is not made again at once.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(250);
/// A connection that proves useless so soon, for the reason of the one before, is no news.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How long a start goes on asking a Redis that is slow to answer, or fails over.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Asks again, for some seconds, where Redis did not answer in time, cannot be reached, or loads its data: a process that
/// starts must not end because the disk of Redis is slow for a moment, or because Redis fails over after the process
/// has connected. Only for what changes nothing.
///
/// # Errors
///
/// When Redis refuses, or does not answer in this time.
pub async fn retry_at_start<T, F: Future<Output = RedisResult<T>>>(
    ask: impl Fn() -> F,
) -> RedisResult<T> {
    retry(ask, is_passing).await
}

/// Whether another attempt may succeed at a Redis that has answered before.
fn is_passing(error: &RedisError) -> bool {
    let starting =
        [ServerErrorKind::BusyLoading, ServerErrorKind::MasterDown].map(ErrorKind::Server);
    error.is_timeout() || error.is_io_error() || starting.contains(&error.kind())
}

async fn retry<T, F: Future<Output = RedisResult<T>>>(
    ask: impl Fn() -> F,
    passes: impl Fn(&RedisError) -> bool,
) -> RedisResult<T> {
    let end = Instant::now() + START_LIMIT;
    loop {
        match ask().await {
            Err(error) if passes(&error) && Instant::now() < end => {
                tracing::warn!(%error, "Redis does not answer at the start; asking again");
                tokio::time::sleep(RECONNECT_INTERVAL).await;
            }
            answered => return answered,
        }
    }
}

/// A handle on one connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Settings>,
    link: Arc<ArcSwap<Link>>,
}

struct Settings {
    client: Client,
    config: AsyncConnectionConfig,
    response_timeout: Duration,
    /// What it is for, in log lines.
    name: &'static str,
    metrics: Metrics,
}

type Connecting = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

/// One connection, from the moment when it is wanted.
struct Link {
    connecting: Connecting,
    made: Instant,
    /// How many requests Redis has answered on it.
    answered: AtomicU64,
    /// Set by the first request that finds it useless; whoever comes next replaces it.
    useless: OnceLock<DropReason>,
    /// What the one before was.
    before: Option<DropReason>,
}

impl Link {
    fn new(settings: &Arc<Settings>, before: Option<DropReason>) -> Self {
        let settings = settings.clone();
        let connecting = async move {
            settings.client.get_multiplexed_async_connection_with_config(&settings.config).await
        };
        Self {
            connecting: connecting.boxed().shared(),
            made: Instant::now(),
            answered: AtomicU64::new(0),
            useless: OnceLock::new(),
            before,
        }
    }
}

impl Connection {
    /// Connects. `name` says what the connection is for; a request that is not answered within `response_timeout`
    /// fails.
    ///
    /// # Errors
    ///
    /// When Redis cannot be reached, or has not answered for some seconds.
    pub async fn open(
        client: &Client,
        name: &'static str,
        response_timeout: Duration,
        metrics: Metrics,
    ) -> RedisResult<Self> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(response_timeout));
        let client = client.clone();
        let shared = Arc::new(Settings { client, config, response_timeout, name, metrics });
        let connect = || {
            let link = Link::new(&shared, None);
            async move { link.connecting.clone().await.map(|_connection| link) }
        };
        // One that refuses is away: whoever has reached it before uses `retry_at_start`.
        let connected = retry(connect, RedisError::is_timeout);
        let link = Arc::new(ArcSwap::from_pointee(connected.await?));
        Ok(Self { shared, link })
    }

    /// The connection to use now.
    fn current(&self) -> Arc<Link> {
        let link = self.link.load_full();
        match link.useless.get() {
            Some(useless) if link.made.elapsed() >= RECONNECT_INTERVAL => {
                let new = Arc::new(Link::new(&self.shared, Some(*useless)));
                let found = self.link.compare_and_swap(&link, new.clone());
                // Somebody else may have replaced it meanwhile.
                if Arc::ptr_eq(&found, &link) { new } else { Arc::clone(&found) }
            }
            _ => link,
        }
    }

    async fn connected(&self) -> RedisResult<(Arc<Link>, MultiplexedConnection)> {
        let link = self.current();
        match link.connecting.clone().await {
            Ok(connection) => Ok((link, connection)),
            Err(error) => {
                self.drop_link(&link, DropReason::Unreachable, &error);
                Err(not_sent(error))
            }
        }
    }

    /// Judges a connection by what became of a request. `answered` is how many requests had been answered when this
    /// one was sent.
    fn judge<T>(
        &self,
        (link, answered): (&Arc<Link>, u64),
        answer: &RedisResult<T>,
        in_answer: impl FnOnce(&T) -> Option<DropReason>,
    ) {
        let useless = match answer {
            Ok(answer) => in_answer(answer),
            Err(error) => in_error(error, link.answered.load(Ordering::Relaxed) == answered),
        };
        // A refusal of Redis is an answer, too.
        if answer.as_ref().err().is_none_or(|error| error.code().is_some()) {
            link.answered.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(useless) = useless {
            match answer {
                Ok(_) => self.drop_link(link, useless, &"a script was refused by a replica"),
                Err(error) => self.drop_link(link, useless, error),
            }
        }
    }

    /// Nobody uses it from now on. Counted and logged once.
    fn drop_link(&self, link: &Link, useless: DropReason, error: &dyn std::fmt::Display) {
        if link.useless.set(useless).is_err() {
            return;
        }
        let Settings { name, metrics, response_timeout, .. } = &*self.shared;
        metrics.redis_connection_dropped(useless.label());
        let timeout_ms = u64::try_from(response_timeout.as_millis()).unwrap_or(u64::MAX);
        if link.before == Some(useless) && link.made.elapsed() < LOG_INTERVAL {
            tracing::debug!(connection = name, %error, timeout_ms, "{useless}: connecting again");
        } else {
            tracing::warn!(connection = name, %error, timeout_ms, "{useless}: connecting again");
        }
    }
}

/// Where there was no connection, nothing was sent: the library calls that a refused connection.
fn not_sent(error: RedisError) -> RedisError {
    if error.is_io_error() {
        io::Error::new(io::ErrorKind::ConnectionRefused, error).into()
    } else {
        error
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        async move {
            let (link, mut connection) = self.connected().await?;
            let answered = link.answered.load(Ordering::Relaxed);
            let answer = connection.send_packed_command(command).await;
            self.judge((&link, answered), &answer, in_answer);
            answer
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
            let (link, mut connection) = self.connected().await?;
            let answered = link.answered.load(Ordering::Relaxed);
            let answers = connection.send_packed_commands(pipeline, offset, count).await;
            self.judge((&link, answered), &answers, |answers| answers.iter().find_map(in_answer));
            answers
        }
        .boxed()
    }

    fn get_db(&self) -> i64 {
        self.shared.client.get_connection_info().redis_settings().db()
    }
}
