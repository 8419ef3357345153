//! The parts of a run. Each measures on a deployment of its own and ends with an audit, so that a part cannot change what
//! another one measures.

mod api;
mod away;
mod cluster;
mod credentials;
mod edge;
mod memory;
mod spread;
mod stored;

use std::time::Duration;

use serde::Serialize;

pub(crate) use self::stored::per_second;

use crate::{
    deployment::Programs,
    figure::Figure,
    load::{Callers, Phase, STREAMS},
};

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    /// Calls to a service in role api.
    Api,
    /// Calls with API keys, with JWTs and with TLS.
    Credentials,
    /// Calls over REST, through Envoy.
    Edge,
    /// Calls to a service in role all, until the last order is stored.
    Stored,
    /// Calls to one process of each role, and to two.
    Spread,
    /// Calls with one Redis, and with a Redis Cluster.
    Cluster,
    /// Calls while Postgres is away.
    Away,
    /// The memory of a service at full load; once in all.
    Memory,
}

/// How long and how large the parts are.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Sizes {
    /// How long each phase calls.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) seconds: f64,
    /// How often a run measures the phases of a ratio, in turn: the speed of a machine changes within a run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
    /// Orders that are accepted and stored.
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) orders: u64,
    /// Products of the phases with many.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) products: u32,
    /// Calls in progress on each of 8 connections.
    #[arg(long, default_value_t = STREAMS, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) streams: u32,
    /// Connections of the phases over REST.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rest_connections: u32,
    /// Connections of the phases with many.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// How long Postgres is away.
    #[arg(long, default_value_t = 30.0)]
    pub(crate) away_seconds: f64,
    /// How long the memory of the service is observed.
    #[arg(long, default_value_t = 600.0)]
    pub(crate) memory_seconds: f64,
}

impl Sizes {
    pub(crate) fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Callers on few connections.
    pub(crate) fn callers(&self) -> Callers {
        Callers::on_few_connections(self.streams)
    }
}

/// What a part measured.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Measured {
    pub(crate) figures: Vec<(Figure, f64)>,
    pub(crate) phases: Vec<Phase>,
}

impl Measured {
    fn add(&mut self, figure: Figure, value: f64) {
        self.figures.push((figure, value));
    }

    /// Keeps a phase; returns it.
    fn keep(&mut self, phase: Phase) -> Phase {
        self.phases.push(phase.clone());
        phase
    }
}

/// What a part needs to run.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) programs: Programs,
    pub(crate) sizes: Sizes,
}

impl Part {
    pub(crate) const ALL: [Self; 8] = [
        Self::Api,
        Self::Credentials,
        Self::Edge,
        Self::Stored,
        Self::Spread,
        Self::Cluster,
        Self::Away,
        Self::Memory,
    ];

    /// Whether each run has it.
    pub(crate) fn is_repeated(self) -> bool {
        self != Self::Memory
    }

    /// Measures; fails if a call fails or the audit is not clean. In the parts `away` and `memory`, a call may be refused
    /// because too many orders wait.
    pub(crate) async fn measure(self, setup: &Setup) -> anyhow::Result<Measured> {
        match self {
            Self::Api => api::measure(setup).await,
            Self::Credentials => credentials::measure(setup).await,
            Self::Edge => edge::measure(setup).await,
            Self::Stored => stored::measure(setup).await,
            Self::Spread => spread::measure(setup).await,
            Self::Cluster => cluster::measure(setup).await,
            Self::Away => away::measure(setup).await,
            Self::Memory => memory::measure(setup).await,
        }
    }
}
