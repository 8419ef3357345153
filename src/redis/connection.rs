//! One connection to Redis at a time, replaced as soon as it cannot be used: it was closed, Redis does not answer on it,
//! its server is a replica, or the topology has another address for its partition. The address is resolved again for
//! each. Requests that are in progress on a connection that is replaced still get their answers from it.
//!
//! A node of a cluster that no longer has the slot of a request answers MOVED, and has not executed it. Only then the
//! request is sent again, once, to the node that the answer names.
//!
//! Must never: send a request twice, unless the answer to the first was MOVED.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ::redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError,
    RedisFuture, RedisResult, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use arc_swap::ArcSwap;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};

use super::{
    NodeTls, Topology,
    drop_reason::{DropReason, in_answer, in_error},
};
use crate::{telemetry::Metrics, tls::Reloaded};

/// How long connecting may take, with resolving the name and Redis's first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The least time from one connection to the next, also where a connection fails at once.
pub(super) const RECONNECT_INTERVAL: Duration = Duration::from_millis(250);
/// A connection that is dropped this soon, for the same reason as the one before, is logged at debug level.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How long a start retries at a Redis that is slow to answer, or fails over.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Retries, for some seconds, while Redis does not answer in time, cannot be reached, loads its data, or is a node of a
/// cluster that is down or moves a slot: a process that starts must not end because the disk of Redis is slow for a moment,
/// or because Redis fails over after the process has connected. Only for reads.
pub async fn retry_at_start<T, F: Future<Output = RedisResult<T>>>(
    read: impl Fn() -> F,
) -> RedisResult<T> {
    retry(read, is_transient).await
}

/// Whether another attempt may succeed at a Redis that has answered before.
fn is_transient(error: &RedisError) -> bool {
    let passing = [
        ServerErrorKind::BusyLoading,
        ServerErrorKind::MasterDown,
        // A node of a cluster gives these while it starts, fails over or moves a slot.
        ServerErrorKind::ClusterDown,
        ServerErrorKind::Moved,
        ServerErrorKind::Ask,
        ServerErrorKind::TryAgain,
    ];
    let passing = passing.map(ErrorKind::Server);
    error.is_timeout() || error.is_io_error() || passing.contains(&error.kind())
}

async fn retry<T, F: Future<Output = RedisResult<T>>>(
    call: impl Fn() -> F,
    is_transient: impl Fn(&RedisError) -> bool,
) -> RedisResult<T> {
    let end = Instant::now() + START_LIMIT;
    loop {
        match call().await {
            Err(error) if is_transient(&error) && Instant::now() < end => {
                tracing::warn!(%error, "Redis is not ready at the start: retrying");
                tokio::time::sleep(RECONNECT_INTERVAL).await;
            }
            result => return result,
        }
    }
}

/// A handle on one connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Settings>,
    link: Arc<ArcSwap<Link>>,
}

/// What a connection leads to.
pub(super) enum Target {
    /// Always this server.
    Server { info: Box<ConnectionInfo>, tls: Arc<Reloaded<NodeTls>> },
    /// The master that the topology has at this index.
    Master { topology: Topology, index: usize },
}

impl Target {
    /// The address now, where it may change.
    fn address(&self) -> Option<Arc<ConnectionAddr>> {
        match self {
            Self::Server { .. } => None,
            Self::Master { topology, index } => Some(topology.address(*index)),
        }
    }

    /// Whether a connection to this address leads to the target no longer.
    fn has_moved(&self, from: Option<&Arc<ConnectionAddr>>) -> bool {
        match (self, from) {
            (Self::Master { topology, index }, Some(from)) => *topology.address(*index) != **from,
            _ => false,
        }
    }

    async fn connect(
        &self,
        address: Option<&ConnectionAddr>,
        config: &AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let client = match self {
            Self::Server { info, tls } => tls.current().client((**info).clone())?,
            Self::Master { topology, .. } => topology.client(address)?,
        };
        client.get_multiplexed_async_connection_with_config(config).await
    }
}

struct Settings {
    target: Target,
    config: AsyncConnectionConfig,
    response_timeout: Duration,
    /// Its purpose, for log lines.
    name: &'static str,
    metrics: Metrics,
}

type Connecting = Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>;

/// One connection, from the moment when connecting begins.
struct Link {
    connecting: Connecting,
    /// Where it leads, if that may change.
    address: Option<Arc<ConnectionAddr>>,
    made: Instant,
    /// How many requests Redis has answered on it.
    answered: AtomicU64,
    /// Set by the first request that finds that it cannot be used; the next request replaces it.
    drop_reason: OnceLock<DropReason>,
    /// Why the one before was dropped.
    previous: Option<DropReason>,
}

impl Link {
    fn new(settings: &Arc<Settings>, previous: Option<DropReason>) -> Self {
        let (settings, address) = (settings.clone(), settings.target.address());
        let to = address.clone();
        let connecting =
            async move { settings.target.connect(to.as_deref(), &settings.config).await };
        Self {
            connecting: connecting.boxed().shared(),
            address,
            made: Instant::now(),
            answered: AtomicU64::new(0),
            drop_reason: OnceLock::new(),
            previous,
        }
    }
}

impl Connection {
    /// A connection that is made by its first request. `name` is its purpose, for log lines; a request that is not
    /// answered within `response_timeout` fails.
    pub(super) fn unconnected(
        target: Target,
        name: &'static str,
        response_timeout: Duration,
        metrics: Metrics,
    ) -> Self {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(response_timeout));
        let shared = Arc::new(Settings { target, config, response_timeout, name, metrics });
        let link = Arc::new(ArcSwap::from_pointee(Link::new(&shared, None)));
        Self { shared, link }
    }

    /// Connects. A Redis that is silent is retried for some seconds.
    pub(super) async fn connect(self) -> RedisResult<Self> {
        let connect = || {
            let link = Link::new(&self.shared, None);
            async move { link.connecting.clone().await.map(|_connection| link) }
        };
        // A refused connection is not retried here; a caller that has reached Redis before uses `retry_at_start`.
        let connected = retry(connect, RedisError::is_timeout);
        self.link.store(Arc::new(connected.await?));
        Ok(self)
    }

    /// Whether the topology finds its server; otherwise the settings name it.
    pub(crate) fn is_discovered(&self) -> bool {
        matches!(self.shared.target, Target::Master { .. })
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The connection to use now.
    fn current(&self) -> Arc<Link> {
        let link = self.link.load_full();
        let reason = match link.drop_reason.get() {
            Some(reason) if link.made.elapsed() >= RECONNECT_INTERVAL => Some(*reason),
            // The topology has logged it.
            _ => self.shared.target.has_moved(link.address.as_ref()).then_some(DropReason::Moved),
        };
        let Some(reason) = reason else { return link };
        let new = Arc::new(Link::new(&self.shared, Some(reason)));
        let found = self.link.compare_and_swap(&link, new.clone());
        // Another request may have replaced it meanwhile.
        if Arc::ptr_eq(&found, &link) { new } else { Arc::clone(&found) }
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

    /// Takes the address from an error MOVED on this link, for the next request; returns whether there was one.
    fn follow(&self, link: &Link, answer: &RedisResult<Value>) -> bool {
        let Target::Master { topology, index } = &self.shared.target else { return false };
        let error = match answer {
            Ok(Value::ServerError(error)) => error.clone().into(),
            Ok(_) => return false,
            Err(error) => error.clone(),
        };
        let address = link.address.as_deref();
        error.kind() == ErrorKind::Server(ServerErrorKind::Moved)
            && error.redirect_node().is_some_and(|(to, _)| topology.redirect(*index, to, address))
    }

    /// Sends a request, and drops the connection if the result shows that it cannot be used. Fails without a connection;
    /// otherwise returns the link and its answer.
    async fn send<T, F: Future<Output = RedisResult<T>>>(
        &self,
        send: impl FnOnce(MultiplexedConnection) -> F,
        in_answer: impl FnOnce(&T) -> Option<DropReason>,
    ) -> RedisResult<(Arc<Link>, RedisResult<T>)> {
        let (link, connection) = self.connected().await?;
        let answered = link.answered.load(Ordering::Relaxed);
        let answer = send(connection).await;
        let reason = match &answer {
            Ok(answer) => in_answer(answer),
            Err(error) => in_error(error, link.answered.load(Ordering::Relaxed) == answered),
        };
        // A refusal by Redis is an answer, too.
        if answer.as_ref().err().is_none_or(|error| error.code().is_some()) {
            link.answered.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(reason) = reason {
            match &answer {
                Ok(_) => self.drop_link(&link, reason, &"a script was refused by a replica"),
                Err(error) => self.drop_link(&link, reason, error),
            }
        }
        Ok((link, answer))
    }

    /// No request uses it from now on. Counted and logged once.
    fn drop_link(&self, link: &Link, reason: DropReason, error: &dyn std::fmt::Display) {
        if link.drop_reason.set(reason).is_err() {
            return;
        }
        let Settings { name, metrics, response_timeout, .. } = &*self.shared;
        metrics.record_dropped_connection(reason.label());
        // A u64, because a JSON log writes a u128 as a string.
        let timeout_ms = u64::try_from(response_timeout.as_millis()).unwrap_or(u64::MAX);
        let address = link.address.as_deref().map(tracing::field::display);
        if link.previous == Some(reason) && link.made.elapsed() < LOG_INTERVAL {
            tracing::debug!(connection = name, address, %error, timeout_ms, "{reason}: connecting again");
        } else {
            tracing::warn!(connection = name, address, %error, timeout_ms, "{reason}: connecting again");
        }
    }
}

/// Without a connection nothing was sent, which the library calls a refused connection.
fn not_sent(error: RedisError) -> RedisError {
    if error.is_io_error() {
        io::Error::new(io::ErrorKind::ConnectionRefused, error).into()
    } else {
        error
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let send = move |mut connection: MultiplexedConnection| async move {
            connection.send_packed_command(command).await
        };
        async move {
            let (link, answer) = self.send(send, in_answer).await?;
            if self.follow(&link, &answer) {
                // In memory of its own, because it is rare.
                return Box::pin(self.send(send, in_answer)).await?.1;
            }
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
        let send = move |mut connection: MultiplexedConnection| async move {
            connection.send_packed_commands(pipeline, offset, count).await
        };
        async move {
            let in_answers = |answers: &Vec<_>| answers.iter().find_map(in_answer);
            let (link, answers) = self.send(send, in_answers).await?;
            let answers = answers?;
            // Other commands of the pipeline may have been executed, so it is not sent again.
            for answer in &answers {
                if let Value::ServerError(error) = answer {
                    self.follow(&link, &Err(error.clone().into()));
                }
            }
            Ok(answers)
        }
        .boxed()
    }

    fn get_db(&self) -> i64 {
        match &self.shared.target {
            Target::Server { info, .. } => info.redis_settings().db(),
            Target::Master { topology, .. } => topology.database(),
        }
    }
}
