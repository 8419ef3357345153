//! Logs: one line an event that matters.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::{Config, LogFormat};

/// Libraries whose finer levels would print what buyers send, whatever the settings say.
const QUIET: [&str; 3] = ["tokio_postgres=info", "sqlx=warn", "h2=info"];

/// Sends log lines to standard error, as the settings say.
///
/// # Errors
///
/// When the filter is wrong, or a subscriber is set already.
pub fn init(config: &Config) -> anyhow::Result<()> {
    let mut filter =
        EnvFilter::try_new(&config.log).context("`log` is no filter such as `info`")?;
    for quiet in QUIET {
        filter = filter.add_directive(quiet.parse()?);
    }
    let registry = tracing_subscriber::registry().with(filter);
    let colours = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colours);
    match config.log_format {
        LogFormat::Text => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json()).try_init(),
    }
    .context("logging is set up already")
}
