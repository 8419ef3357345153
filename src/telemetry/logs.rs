//! Logs: one line for each event that matters.

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

/// Libraries whose lower levels would print what buyers send, and h2 also a warning for each frame of a client that it does
/// not expect; the settings cannot raise them.
const MUTED_TARGETS: [&str; 3] = ["tokio_postgres=info", "h2=error", "opentelemetry=warn"];

/// Writes log lines to standard error and sends spans to the collector, as the settings define. Logging can be set up
/// only once.
pub fn init(config: &Config) -> anyhow::Result<Traces> {
    let traces = Traces::new(config)?;
    let tracer = traces.tracer();
    let mut filter = EnvFilter::try_new(&config.log_filter)
        .context("`log_filter` must be a filter such as `info`")?;
    for muted in MUTED_TARGETS {
        filter = filter.add_directive(muted.parse()?);
    }
    // The log line of a traced call names its trace. Without a collector no span is made.
    let calls = if tracer.is_some() { "info" } else { "off" };
    filter = filter.add_directive(format!("{TARGET}={calls}").parse()?);
    let spans = tracer.map(|tracer| {
        let traced = Targets::new().with_target(TARGET, LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(traced)
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
    if let Some(ignored) = config.ignored.kubernetes() {
        tracing::info!("{ignored}");
    }
    Ok(traces)
}
