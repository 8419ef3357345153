//! The figures of the table: what each one is, and its goal.

use serde::{Serialize, Serializer};

use crate::measure::number::rounded;

/// A figure of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    EmptyRate,
    AcceptedRate,
    SoldOutRate,
    AcceptedToEmpty,
    SoldOutToEmpty,
    AcceptedToEmptyMany,
    SoldOutToEmptyMany,
    FsyncAlways,
    StoredRate,
    StoredToEmpty,
    AckLedger,
    ManyProducts,
    RequestIds,
    ApiKeys,
    Jwts,
    Tls,
    P99ToEmpty,
    OrderBytes,
    StreamBytesLeft,
    MemoryPeak,
    MemoryGrowth,
    DrainSeconds,
    RestAcceptedRate,
    RestSoldOutRate,
    RestToGrpc,
    SpreadRate,
    SpreadToOne,
    SpreadEvenness,
    SpreadAckLedger,
    ClusterRate,
    ClusterToOne,
}

/// What a figure is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// The figure depends on the machine.
    None,
}

impl Goal {
    /// Whether a value meets it; `None` without a goal.
    pub(crate) fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(value >= least),
            Self::AtMost(most) => Some(value <= most),
            Self::None => None,
        }
    }

    pub(crate) fn value(self) -> Option<f64> {
        match self {
            Self::AtLeast(value) | Self::AtMost(value) => Some(value),
            Self::None => None,
        }
    }
}

/// How a figure is written.
#[derive(Debug, Clone, Copy)]
enum Unit {
    Ratio,
    PerSecond,
    Bytes,
    Megabytes,
    Seconds,
}

impl Figure {
    pub(crate) const ALL: [Self; 31] = [
        Self::EmptyRate,
        Self::AcceptedRate,
        Self::SoldOutRate,
        Self::AcceptedToEmpty,
        Self::SoldOutToEmpty,
        Self::AcceptedToEmptyMany,
        Self::SoldOutToEmptyMany,
        Self::FsyncAlways,
        Self::StoredRate,
        Self::StoredToEmpty,
        Self::AckLedger,
        Self::ManyProducts,
        Self::RequestIds,
        Self::ApiKeys,
        Self::Jwts,
        Self::Tls,
        Self::P99ToEmpty,
        Self::OrderBytes,
        Self::StreamBytesLeft,
        Self::MemoryPeak,
        Self::MemoryGrowth,
        Self::DrainSeconds,
        Self::RestAcceptedRate,
        Self::RestSoldOutRate,
        Self::RestToGrpc,
        Self::SpreadRate,
        Self::SpreadToOne,
        Self::SpreadEvenness,
        Self::SpreadAckLedger,
        Self::ClusterRate,
        Self::ClusterToOne,
    ];

    fn described(self) -> (&'static str, Unit, Goal) {
        use Goal::{AtLeast, AtMost};
        use Unit::{Bytes, Megabytes, PerSecond, Ratio, Seconds};
        match self {
            Self::EmptyRate => ("empty calls, 400 callers", PerSecond, Goal::None),
            Self::AcceptedRate => ("accepted, 400 callers", PerSecond, Goal::None),
            Self::SoldOutRate => ("sold out, 400 callers", PerSecond, Goal::None),
            Self::AcceptedToEmpty => ("accepted ÷ empty calls", Ratio, AtLeast(0.70)),
            Self::SoldOutToEmpty => ("sold out ÷ empty calls", Ratio, AtLeast(0.90)),
            Self::AcceptedToEmptyMany => {
                ("accepted ÷ empty calls, 1,000 connections", Ratio, AtLeast(0.85))
            }
            Self::SoldOutToEmptyMany => {
                ("sold out ÷ empty calls, 1,000 connections", Ratio, AtLeast(0.90))
            }
            Self::FsyncAlways => ("appendfsync always ÷ everysec", Ratio, AtLeast(0.95)),
            Self::StoredRate => ("accepted and stored, role all", PerSecond, Goal::None),
            Self::StoredToEmpty => {
                ("accepted and stored, role all ÷ empty calls", Ratio, AtLeast(0.35))
            }
            Self::AckLedger => ("ack = ledger ÷ ack = memory", Ratio, AtLeast(0.75)),
            Self::ManyProducts => ("10,000 products ÷ one", Ratio, AtLeast(0.90)),
            Self::RequestIds => ("with request ids ÷ without", Ratio, AtLeast(0.90)),
            Self::ApiKeys => ("accepted with API keys ÷ without", Ratio, AtLeast(0.95)),
            Self::Jwts => ("accepted with JWTs ÷ without", Ratio, AtLeast(0.90)),
            Self::Tls => ("accepted with TLS ÷ without", Ratio, Goal::None),
            Self::P99ToEmpty => {
                ("p99 at half the rate ÷ p99 of empty calls at that rate", Ratio, AtMost(3.0))
            }
            Self::OrderBytes => ("memory of Redis for each order in flight", Bytes, AtMost(250.0)),
            Self::StreamBytesLeft => {
                ("of it, left in the streams when all are stored", Bytes, AtMost(1.0))
            }
            Self::MemoryPeak => {
                ("memory of the service, 1,000 connections, peak", Megabytes, AtMost(80.0))
            }
            Self::MemoryGrowth => ("its growth in the second half", Megabytes, AtMost(4.0)),
            Self::DrainSeconds => ("stored after Postgres was away", Seconds, AtMost(30.0)),
            Self::RestAcceptedRate => {
                ("accepted over REST, 100 connections", PerSecond, Goal::None)
            }
            Self::RestSoldOutRate => ("sold out over REST, 100 connections", PerSecond, Goal::None),
            Self::RestToGrpc => ("accepted over REST ÷ over gRPC", Ratio, AtLeast(0.50)),
            Self::SpreadRate => {
                ("accepted and stored, 2 api and 2 worker processes", PerSecond, Goal::None)
            }
            Self::SpreadToOne => {
                ("2 api and 2 worker processes ÷ one of each", Ratio, AtLeast(0.95))
            }
            Self::SpreadEvenness => {
                ("orders of the worker that stored fewer ÷ of the other", Ratio, AtLeast(0.80))
            }
            Self::SpreadAckLedger => {
                ("ack = ledger, 2 processes of role all ÷ one", Ratio, AtLeast(0.75))
            }
            Self::ClusterRate => ("accepted, a Redis Cluster of 3 masters", PerSecond, Goal::None),
            Self::ClusterToOne => {
                ("accepted, a Redis Cluster of 3 masters ÷ one Redis", Ratio, AtLeast(0.85))
            }
        }
    }

    pub(crate) fn title(self) -> &'static str {
        self.described().0
    }

    pub(crate) fn goal(self) -> Goal {
        self.described().2
    }

    /// A value of it for people.
    pub(crate) fn written(self, value: f64) -> String {
        match self.described().1 {
            Unit::Ratio => format!("{value:.2}"),
            Unit::PerSecond => format!("{}/s", rounded(value)),
            Unit::Bytes => format!("{} bytes", rounded(value)),
            Unit::Megabytes => format!("{} MB", rounded(value)),
            Unit::Seconds => format!("{value:.1} s"),
        }
    }

    /// Its goal for people.
    pub(crate) fn written_goal(self) -> String {
        match self.goal() {
            Goal::AtLeast(value) => format!("≥ {}", self.written(value)),
            Goal::AtMost(value) => format!("≤ {}", self.written(value)),
            Goal::None => String::new(),
        }
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.title())
    }
}
