//! Logs: one line for each event that matters.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, LevelFilter, Targets},
    fmt,
    layer::Filter,
    prelude::*,
};

use super::traces::{TARGET, Traces};
use crate::config::{Config, LogFormat};

/// Libraries whose lower levels would print what buyers send, and h2 also a warning for each frame of a client that it does
/// not expect; the settings cannot raise them.
const MUTED_TARGETS: [(&str, LevelFilter); 3] = [
    ("tokio_postgres", LevelFilter::INFO),
    ("h2", LevelFilter::ERROR),
    ("opentelemetry", LevelFilter::WARN),
];

/// The filter of the setting, which cannot raise the levels of some libraries or of their modules. Calls are logged at
/// `calls`.
fn filter<S: Subscriber>(setting: &str, calls: &str) -> anyhow::Result<impl Filter<S> + use<S>> {
    let written =
        EnvFilter::try_new(setting).context("`log_filter` must be a filter such as `info`")?;
    let written = written.add_directive(format!("{TARGET}={calls}").parse()?);
    let muted = Targets::new().with_default(LevelFilter::TRACE).with_targets(MUTED_TARGETS);
    Ok(written.and(muted))
}

/// Writes log lines to standard error and sends spans to the collector, as the settings define. Logging can be set up
/// only once.
pub fn init(config: &Config) -> anyhow::Result<Traces> {
    let traces = Traces::new(config)?;
    let tracer = traces.tracer();
    // The log line of a traced call names its trace. Without a collector no span is made.
    let calls = if tracer.is_some() { "info" } else { "off" };
    let filter = filter(&config.log_filter, calls)?;
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Seek as _},
        sync::Mutex,
    };

    use super::*;

    #[test]
    fn setting_does_not_raise_libraries_that_print_what_buyers_send() {
        let mut file = tempfile::tempfile().unwrap();
        let lines = fmt::layer().with_writer(Mutex::new(file.try_clone().unwrap()));
        let filter = filter("trace,h2=trace,tokio_postgres::query=trace", "off").unwrap();
        let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "tokio_postgres::query", "a statement");
            tracing::warn!(target: "h2", "a frame");
            tracing::info!(target: "opentelemetry", "a span");
            tracing::trace!("a line of this program");
        });
        file.rewind().unwrap();
        let mut written = String::new();
        file.read_to_string(&mut written).unwrap();
        assert!(written.contains("a line of this program"), "{written}");
        assert_eq!(written.lines().count(), 1, "{written}");
    }
}
