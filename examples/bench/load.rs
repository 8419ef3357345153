//! A phase of a run: `yoink load` calls the service, and what that cost.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value as Json;

use crate::{
    deployment::{Deployment, Service},
    process::{Process, command, processor_time},
};

/// Calls that are not counted are made for this time first.
const WARM_UP: Duration = Duration::from_millis(400);

/// What is called.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    /// A health check, which does nothing.
    Empty,
    /// Buys one of the products with this prefix, and of this number.
    Reserve { prefix: &'static str, products: u32, request_ids: bool, ack: Option<&'static str> },
}

impl Call {
    /// Buys one product, without request ids.
    pub(crate) const fn reserve(prefix: &'static str) -> Self {
        Self::Reserve { prefix, products: 1, request_ids: false, ack: None }
    }

    /// Buys one of several products.
    pub(crate) const fn reserve_of(prefix: &'static str, products: u32) -> Self {
        Self::Reserve { prefix, products, request_ids: false, ack: None }
    }

    /// The same with a request id on each call.
    pub(crate) const fn with_request_ids(self) -> Self {
        match self {
            Self::Empty => self,
            Self::Reserve { prefix, products, ack, .. } => {
                Self::Reserve { prefix, products, request_ids: true, ack }
            }
        }
    }

    /// The same, answered at this ack level.
    pub(crate) const fn with_ack(self, level: &'static str) -> Self {
        match self {
            Self::Empty => self,
            Self::Reserve { prefix, products, request_ids, .. } => {
                Self::Reserve { prefix, products, request_ids, ack: Some(level) }
            }
        }
    }
}

/// How many call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Callers {
    pub(crate) connections: u32,
    pub(crate) streams: u32,
}

impl Callers {
    /// Callers on 8 connections.
    pub(crate) const fn on_few_connections(streams: u32) -> Self {
        Self { connections: 8, streams }
    }
}

/// How many calls are in progress on each of 8 connections.
pub(crate) const STREAMS: u32 = 50;
/// When calls are made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// Each caller waits for its answer; after a warm-up, for this time.
    Closed(Duration),
    /// Each caller waits for its answer, until this many calls are made; without a warm-up.
    Calls(u64),
    /// This many calls a second; after a warm-up, for this time.
    Open { rate: f64, time: Duration },
}

/// What a phase measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Phase {
    pub(crate) name: String,
    /// Calls that were answered a second.
    pub(crate) rate: f64,
    pub(crate) p99_us: f64,
    pub(crate) calls: u64,
    /// Calls that were accepted; of empty calls, those that were answered.
    pub(crate) succeeded: u64,
    pub(crate) sold_out: u64,
    /// Calls that were refused because too many orders wait.
    pub(crate) backlog_full: u64,
    /// Calls with another answer or none.
    pub(crate) others: u64,
    /// Attempts to connect that failed, and connections that ended with an error.
    pub(crate) failed_connections: u64,
    /// With an open pace: calls that did not start in time, because every caller was busy.
    pub(crate) not_started: u64,
    /// Processor time of the service for each call, in microseconds.
    pub(crate) service_us: f64,
    /// That of Redis.
    pub(crate) redis_us: f64,
    /// That of the load generator.
    pub(crate) load_us: f64,
}

impl Phase {
    /// Processor time of service, Redis and load generator together for each call, in microseconds.
    pub(crate) fn cost_us(&self) -> f64 {
        self.service_us + self.redis_us + self.load_us
    }

    /// Fails without a call, and if a call or a connection failed.
    fn without_failure(self) -> anyhow::Result<Self> {
        ensure!(self.calls > 0, "no call was made: {self:?}");
        ensure!(self.others == 0, "calls failed: {self:?}");
        ensure!(self.failed_connections == 0, "connections failed: {self:?}");
        Ok(self)
    }

    /// Fails if a call was neither accepted nor refused because the product was sold out.
    pub(crate) fn checked(self) -> anyhow::Result<Self> {
        ensure!(self.backlog_full == 0, "calls were refused, too many orders wait: {self:?}");
        self.without_failure()
    }

    /// Fails unless each call was accepted.
    pub(crate) fn all_accepted(self) -> anyhow::Result<Self> {
        ensure!(self.sold_out + self.backlog_full == 0, "calls were not accepted: {self:?}");
        self.without_failure()
    }

    /// Fails unless calls were accepted, and each of the others was refused because too many orders wait. A connection may
    /// end: in a long phase the service closes each one at its age.
    pub(crate) fn accepted_or_backlog_full(self) -> anyhow::Result<Self> {
        ensure!(self.succeeded > 0, "no call was accepted: {self:?}");
        ensure!(self.others + self.sold_out == 0, "calls failed: {self:?}");
        Ok(self)
    }
}

/// The processor time that service and Redis have used.
pub(crate) fn processor_times(
    deployment: &Deployment,
    service: &Service,
) -> anyhow::Result<[Duration; 2]> {
    let redis = deployment.redis.pids().iter().map(|pid| processor_time(*pid));
    Ok([processor_time(service.pid())?, redis.sum::<anyhow::Result<Duration>>()?])
}

/// A phase that has begun; dropping it kills `yoink load`.
pub(crate) struct Running<'a> {
    deployment: &'a Deployment,
    service: &'a Service,
    name: String,
    process: Process,
    /// Where `yoink load` writes its report.
    report: PathBuf,
    /// What service and Redis had used before.
    before: [Duration; 2],
}

/// Starts `yoink load`.
pub(crate) fn start<'a>(
    deployment: &'a Deployment,
    service: &'a Service,
    name: &str,
    call: Call,
    (callers, pace): (Callers, Pace),
) -> anyhow::Result<Running<'a>> {
    let mut command = command(&deployment.programs.load);
    let report = deployment.file("json");
    command.args(["load", "--target", &service.address, "--json"]).arg(&report);
    command.args(&service.caller_flags);
    let mut flag = |name: &str, value: String| {
        command.arg(format!("--{name}")).arg(value);
    };
    flag("connections", callers.connections.to_string());
    flag("streams", callers.streams.to_string());
    let time_of = |time: Duration| format!("{}ms", time.as_millis());
    match pace {
        Pace::Calls(calls) => flag("calls", calls.to_string()),
        Pace::Closed(time) | Pace::Open { time, .. } => {
            flag("duration", time_of(time));
            flag("warm-up", time_of(WARM_UP));
        }
    }
    if let Pace::Open { rate, .. } = pace {
        flag("rate", format!("{rate:.0}"));
    }
    match call {
        Call::Empty => {
            command.arg("--empty");
        }
        Call::Reserve { prefix, products, request_ids, ack } => {
            flag("product-prefix", prefix.to_owned());
            flag("product-count", products.to_string());
            if let Some(ack) = ack {
                flag("ack", ack.to_owned());
            }
            if !request_ids {
                command.arg("--no-request-ids");
            }
        }
    }
    let before = processor_times(deployment, service)?;
    let process = Process::start("yoink load", command, &deployment.file("log"))?;
    Ok(Running { deployment, service, name: name.to_owned(), process, report, before })
}

impl Running<'_> {
    /// Waits for its end; returns what it measured.
    pub(crate) async fn ended(mut self) -> anyhow::Result<Phase> {
        let status = self.process.ended().await?;
        ensure!(status.success(), "yoink load failed ({status}) in the phase \"{}\"", self.name);
        let after = processor_times(self.deployment, self.service)?;
        let report: Json = serde_json::from_slice(&fs::read(&self.report)?)?;
        let whole = |value: &Json| value.as_u64().with_context(|| format!("no number: {report}"));
        let number = |value: &Json| value.as_f64().with_context(|| format!("no number: {report}"));
        let made = number(&report["calls"])? + number(&report["warm_up_calls"])?;
        let each = |index: usize| (after[index] - self.before[index]).as_secs_f64() * 1e6 / made;
        let outcomes = report["outcomes"].as_array().context("the load has no outcomes")?;
        let count = |name: &str| -> u64 {
            let named = outcomes.iter().filter(|outcome| outcome["name"] == name);
            named.filter_map(|outcome| outcome["count"].as_u64()).sum()
        };
        let (calls, succeeded) = (whole(&report["calls"])?, count("accepted") + count("ok"));
        let (sold_out, backlog_full) = (count("SOLD_OUT"), count("BACKLOG_FULL"));
        let connections = &report["connections"];
        let not_started = whole(&report["not_started"])?;
        if not_started > 0 {
            let name = &self.name;
            crate::progress(&format!("{name}: {not_started} calls did not start in time"));
        }
        Ok(Phase {
            name: self.name.clone(),
            rate: number(&report["rate"])?,
            p99_us: number(&report["latency_us"]["p99"])?,
            calls,
            succeeded,
            sold_out,
            backlog_full,
            others: calls - succeeded - sold_out - backlog_full,
            failed_connections: whole(&connections["failed"])? + whole(&connections["lost"])?,
            not_started,
            service_us: each(0),
            redis_us: each(1),
            load_us: number(&report["cpu_us_per_call"])?,
        })
    }
}

/// Runs a phase.
pub(crate) async fn run(
    deployment: &Deployment,
    service: &Service,
    name: &str,
    call: Call,
    paced: (Callers, Pace),
) -> anyhow::Result<Phase> {
    start(deployment, service, name, call, paced)?.ended().await
}
