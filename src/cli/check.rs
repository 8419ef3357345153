//! `yoink config check`.

use std::process::ExitCode;

use super::output;
use crate::{
    app::{Inspection, check_descriptor_limit, inspect},
    config::Config,
};

/// How much is checked.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// Also connects to both stores and prints what they are; changes nothing. Exits 0, 1 (a start would be refused)
    /// or 2 (a store could not be reached).
    #[arg(long)]
    connect: bool,
}

pub(super) async fn run(config: &Config, args: CheckArgs) -> anyhow::Result<ExitCode> {
    check_descriptor_limit(config)?;
    output::line(config)?;
    if let Some(note) = config.ignored.kubernetes() {
        output::line(format!("# {note}"))?;
    }
    if !args.connect {
        return Ok(ExitCode::SUCCESS);
    }
    let Inspection { found, warnings, refusals, failures } = inspect(config).await;
    for (lines, kind) in [
        (&found, ""),
        (&warnings, "warning: "),
        (&refusals, "a start is refused: "),
        (&failures, "cannot check: "),
    ] {
        for line in lines {
            output::line(format!("# {kind}{line}"))?;
        }
    }
    Ok(ExitCode::from(match (failures.is_empty(), refusals.is_empty()) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }))
}
