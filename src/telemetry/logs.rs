//! Logs: one line an event that matters.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{LevelFilter, Targets},
    fmt,
    prelude::*,
};

use super::traces::{TARGET, Traces};
use crate::config::{Config, LogFormat};

/// Libraries whose finer levels would print what buyers send, whatever the settings say.
const MUTED_TARGETS: [&str; 3] = ["tokio_postgres=info", "h2=info", "opentelemetry=warn"];

/// Sends log lines to standard error and spans to a collector, as the settings say.
///
/// # Errors
///
/// When the filter or the collector's address is wrong, or a subscriber is set already.
pub fn init(config: &Config) -> anyhow::Result<Traces> {
    let traces = Traces::new(config)?;
    let tracer = traces.tracer();
    let mut filter =
        EnvFilter::try_new(&config.log).context("`log` is no filter such as `info`")?;
    for quiet in MUTED_TARGETS {
        filter = filter.add_directive(quiet.parse()?);
    }
    // A line of a call that is traced names its trace; without traces there are no spans at all.
    let calls = if tracer.is_some() { "info" } else { "off" };
    filter = filter.add_directive(format!("{TARGET}={calls}").parse()?);
    let spans = tracer.map(|tracer| {
        let ours = Targets::new().with_target(TARGET, LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    });
    let colours = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colours);
    let lines = match config.log_format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(spans).with(lines);
    subscriber.try_init().context("logging is set up already")?;
    if let Some(warning) = config.ignored.warning() {
        tracing::warn!("{warning}");
    }
    if let Some(note) = config.ignored.kubernetes() {
        tracing::info!("{note}");
    }
    Ok(traces)
}
