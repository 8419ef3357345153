//! What to call, how often, and for how long.

use std::{fmt, str::FromStr, time::Duration};

use super::{choice::COUNT_MAX, credential::Credential};
use crate::{
    grpc::pb,
    tls::{ClientTls, TlsError},
};

/// More connections than this are a mistake.
const CONNECTIONS_MAX: usize = 100_000;
/// HTTP/2 allows a client 2^30 calls on a connection; more than this at the same time are a mistake.
const STREAMS_MAX: usize = 100_000;
/// More calls per second than this cannot be started.
const RATE_MAX: f64 = 10_000_000.0;

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `yoink.v1.InventoryService/ReserveUnit`.
    ReserveUnit,
    /// `grpc.health.v1.Health/Check`: the cost of a call that does nothing.
    HealthCheck,
}

/// When a call starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// When its caller's last call is answered.
    Closed,
    /// At this rate, whether or not earlier calls are answered. A call that finds every caller busy starts late, and its
    /// latency counts from the time at which it was to start.
    Open {
        /// Calls per second, over all connections.
        rate: f64,
    },
}

/// Which one of several is chosen for a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// Always the first.
    Hot,
    /// Each as often as the others.
    Uniform,
    /// The nth in proportion to 1 / n^exponent.
    Zipf {
        /// Above 0; the larger, the more often the first ones are chosen.
        exponent: f64,
    },
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hot => f.write_str("hot"),
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf { exponent } => write!(f, "zipf:{exponent}"),
        }
    }
}

impl FromStr for Choice {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let zipf = || {
            let exponent = text.strip_prefix("zipf:")?.parse().ok()?;
            Some(Self::Zipf { exponent })
        };
        match text {
            "hot" => Ok(Self::Hot),
            "uniform" => Ok(Self::Uniform),
            _ => zipf().ok_or("is not hot, uniform or zipf:EXPONENT, such as zipf:1.1"),
        }
    }
}

/// The users who buy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Users {
    /// A new user for each call.
    New,
    /// These many users; the same in every run.
    Of {
        /// How many.
        count: usize,
        /// Which one makes a call.
        choice: Choice,
    },
}

/// A run of the load generator.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The address of the service: `host:port`. `http://` or `https://` in front is allowed and changes nothing.
    pub target: String,
    /// How connections to the service use TLS, if they do.
    pub tls: Option<ClientTls>,
    /// What each call authenticates with, if it does.
    pub credential: Option<Credential>,
    /// What is called.
    pub call: Call,
    /// When calls start.
    pub pace: Pace,
    /// Connections to the service.
    pub connections: usize,
    /// Calls at the same time on one connection. Connections × streams are the callers.
    pub streams: usize,
    /// The run ends after this many calls, those of the warm-up not counted.
    pub calls: Option<u64>,
    /// The run ends after this time, the warm-up not counted.
    pub duration: Option<Duration>,
    /// The run begins with this time, in which calls are made and not counted.
    pub warm_up: Duration,
    /// A call without an answer is given up after this time.
    pub timeout: Duration,
    /// Threads that make the calls; never more than there are connections.
    pub threads: usize,
    /// The products to buy; not used by [`Call::HealthCheck`].
    pub products: Vec<String>,
    /// Which product a call buys.
    pub product_choice: Choice,
    /// The users who buy.
    pub users: Users,
    /// Whether each call has a request id of its own.
    pub request_ids: bool,
    /// What an answer waits for.
    pub ack: pb::Ack,
    /// The `/metrics` of the service (`http://host:port/metrics`, or `https://` with the files of `tls`), from which the backlog is read
    /// once a second.
    pub metrics_url: Option<String>,
    /// Whether [`Report::accepted_ids`](super::Report::accepted_ids) is filled: 36 bytes and more for each accepted call.
    pub keep_accepted_ids: bool,
}

impl Plan {
    /// 400 callers on 8 connections, who buy for 10 seconds, each as a new user, and make the next call when the last one is
    /// answered.
    pub fn new<P: Into<String>>(
        target: impl Into<String>,
        products: impl IntoIterator<Item = P>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            target: target.into(),
            tls: None,
            credential: None,
            call: Call::ReserveUnit,
            pace: Pace::Closed,
            connections: 8,
            streams: 50,
            calls: None,
            duration: Some(Duration::from_secs(10)),
            warm_up: Duration::ZERO,
            timeout: Duration::from_secs(10),
            // The service and its stores often run on the same machine.
            threads: cores.div_ceil(2),
            products: products.into_iter().map(Into::into).collect(),
            product_choice: Choice::Uniform,
            users: Users::New,
            request_ids: true,
            ack: pb::Ack::Unspecified,
            metrics_url: None,
            keep_accepted_ids: false,
        }
    }

    /// The first mistake of the plan.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        let invalid = |field, problem| Err(LoadError::InvalidPlan { field, problem });
        if let Pace::Open { rate } = self.pace
            && !(rate > 0.0 && rate <= RATE_MAX)
        {
            return invalid("rate", "must be above 0 and at most 10,000,000 calls per second");
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return invalid("connections", "must be from 1 to 100,000");
        }
        if !(1..=STREAMS_MAX).contains(&self.streams) {
            return invalid("streams", "must be from 1 to 100,000");
        }
        if self.threads == 0 {
            return invalid("threads", "must be at least 1");
        }
        if self.calls.is_none() && self.duration.is_none() {
            return invalid("duration", "must be given, or a number of calls, or both");
        }
        if self.calls == Some(0) {
            return invalid("calls", "must be at least 1");
        }
        if self.duration == Some(Duration::ZERO) {
            return invalid("duration", "must be above 0");
        }
        if self.timeout.is_zero() {
            return invalid("timeout", "must be above 0");
        }
        if self.call == Call::ReserveUnit && self.products.is_empty() {
            return invalid("products", "must name at least one product");
        }
        if self.products.iter().any(String::is_empty) {
            return invalid("products", "must not contain an empty product id");
        }
        if let Users::Of { count, .. } = self.users
            && !(1..=COUNT_MAX).contains(&count)
        {
            return invalid("users", "must be from 1 to 10,000,000");
        }
        let user_choice = match self.users {
            Users::New => Choice::Uniform,
            Users::Of { choice, .. } => choice,
        };
        for choice in [self.product_choice, user_choice] {
            if let Choice::Zipf { exponent } = choice
                && !(exponent > 0.0 && exponent <= 10.0)
            {
                return invalid("zipf", "must have an exponent above 0 and at most 10");
            }
        }
        Ok(())
    }
}

/// Why a run did not begin.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A field of the plan is wrong.
    #[error("{field} {problem}")]
    InvalidPlan {
        /// The field.
        field: &'static str,
        /// What it must be.
        problem: &'static str,
    },
    /// The address cannot be read, or no host has this name.
    #[error(
        "the address {target} must be host:port, with an IP address or a name that can be resolved"
    )]
    InvalidAddress {
        /// The address.
        target: String,
        /// What the operating system answered.
        source: std::io::Error,
    },
    /// The service does not accept connections.
    #[error("cannot connect to {target}: {problem}; is the service running?")]
    Unreachable {
        /// The address.
        target: String,
        /// What happened instead.
        problem: String,
    },
    /// The files of TLS cannot be used.
    #[error("cannot use TLS")]
    Tls(#[from] TlsError),
    /// The page of metrics cannot be used.
    #[error("cannot read the backlog from {url}: {problem}")]
    Metrics {
        /// The URL.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// The host cannot be sent in a request.
    #[error("the address cannot be used in a request")]
    Head(#[from] http::Error),
    /// The operating system refused a thread of the generator its timer or its runtime.
    #[error("a thread of the load generator failed")]
    Thread(#[source] std::io::Error),
    /// A bug: the bounds of the histograms are fixed.
    #[error("cannot create a histogram")]
    Histogram(#[from] hdrhistogram::CreationError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(change: impl FnOnce(&mut Plan)) -> String {
        let mut plan = Plan::new("127.0.0.1:50051", ["shoe"]);
        change(&mut plan);
        plan.check().map_or_else(|error| error.to_string(), |()| "none".to_owned())
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_eq!(problem(|_| {}), "none");
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(problem(|plan| plan.pace = Pace::Open { rate }).starts_with("rate must"));
        }
        assert!(problem(|plan| plan.connections = 0).starts_with("connections must"));
        assert!(problem(|plan| plan.streams = 0).starts_with("streams must"));
        assert!(problem(|plan| plan.threads = 0).starts_with("threads must"));
        assert!(problem(|plan| plan.duration = None).starts_with("duration must be given"));
        assert!(problem(|plan| plan.calls = Some(0)).starts_with("calls must"));
        assert!(problem(|plan| plan.timeout = Duration::ZERO).starts_with("timeout must"));
        assert!(problem(|plan| plan.products.clear()).starts_with("products must name"));
        assert!(problem(|plan| plan.products.push(String::new())).contains("empty product id"));
        let choice = Choice::Zipf { exponent: 0.0 };
        assert!(problem(|plan| plan.product_choice = choice).starts_with("zipf must"));
        let users = Users::Of { count: 0, choice: Choice::Hot };
        assert!(problem(|plan| plan.users = users).starts_with("users must"));
    }

    #[test]
    fn choice_is_written_as_it_is_read() {
        for text in ["hot", "uniform", "zipf:1.1"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        for text in ["", "cold", "zipf", "zipf:", "zipf:x"] {
            assert!(text.parse::<Choice>().is_err(), "{text}");
        }
    }

    #[test]
    fn empty_call_needs_no_product() {
        let change = |plan: &mut Plan| {
            plan.call = Call::HealthCheck;
            plan.products.clear();
        };
        assert_eq!(problem(change), "none");
    }
}
