//! `yoink rebuild`: rebuilds partitions in Redis from the ledger, or prints what that would do.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;

use super::output;
use crate::{
    app::Stores,
    config::Config,
    ledger::{PartitionRow, PartitionStatus},
};

/// Time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Which partitions are rebuilt: the fenced ones, unless some are named.
#[derive(Debug, clap::Args)]
pub(super) struct RebuildArgs {
    /// Rebuilds this partition, fenced or not; may be repeated. One that is open is closed first.
    #[arg(long = "partition", value_name = "N", conflicts_with = "all")]
    partitions: Vec<u16>,
    /// Rebuilds every partition, fenced or not.
    #[arg(long)]
    all: bool,
    /// Prints what a rebuild would do, and changes nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(config: &Config, args: RebuildArgs) -> anyhow::Result<ExitCode> {
    let stores = Stores::connect(config).await?;
    if !args.dry_run {
        stores.check_permissions().await?;
    }
    stores.load_epochs().await?;
    let recovery = stores.recovery();
    let fenced = recovery.fenced().await?;
    let rows = stores.ledger.partitions(stores.deployment.partitions).await?;
    // One that is new and fenced was open: the ledger lost that commit.
    let was_opened = |row: &PartitionRow| {
        let is_fenced = fenced.iter().any(|(fenced, _)| fenced.partition == row.partition);
        row.status != PartitionStatus::New || is_fenced
    };
    let chosen: Vec<PartitionRow> = if args.all {
        rows.into_iter().filter(was_opened).collect()
    } else if args.partitions.is_empty() {
        fenced.iter().map(|(row, _)| *row).collect()
    } else {
        named(&rows, &args.partitions, was_opened)?
    };
    if chosen.is_empty() {
        output::line("No partition is fenced.")?;
    }
    if !args.dry_run {
        return rebuild(&stores, chosen).await;
    }
    for row in chosen {
        let reason = fenced.iter().find(|(fenced, _)| fenced.partition == row.partition);
        for line in recovery.dry_run(row, reason.map(|(_, reason)| *reason)).await? {
            output::line(line)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn named(
    rows: &[PartitionRow],
    numbers: &[u16],
    was_opened: impl Fn(&PartitionRow) -> bool,
) -> anyhow::Result<Vec<PartitionRow>> {
    let mut chosen: Vec<PartitionRow> = Vec::new();
    for number in numbers {
        let Some(row) = rows.iter().find(|row| row.partition.number() == *number) else {
            bail!("partition {number} does not exist: there are {}, numbered from 0", rows.len());
        };
        if !was_opened(row) {
            bail!("partition {number} was never opened: start a service, which opens it");
        }
        if !chosen.contains(row) {
            chosen.push(*row);
        }
    }
    Ok(chosen)
}

async fn rebuild(stores: &Stores, rows: Vec<PartitionRow>) -> anyhow::Result<ExitCode> {
    let recovery = stores.recovery();
    let (mut all_open, mut opened) = (true, Vec::new());
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let mut rebuilds = std::pin::pin!(recovery.rebuild_all(rows));
    let rebuilt = loop {
        tokio::select! {
            rebuilt = &mut rebuilds => break rebuilt,
            _ = ticks.tick() => {
                for (partition, stage) in recovery.status().snapshot().stages {
                    output::line(format!("partition {partition}: {stage}"))?;
                }
            }
        }
    };
    for (partition, rebuilt) in rebuilt {
        let line = |text: String| output::line(format!("partition {partition}: {text}"));
        all_open &= matches!(rebuilt, Ok(Some(_)));
        match rebuilt {
            Ok(Some(rebuilt)) => {
                opened.push(partition);
                line(format!(
                    "rebuilt and open: {} orders from its streams were stored and {} voided",
                    rebuilt.stored, rebuilt.voided
                ))?;
                for lost in &rebuilt.lost {
                    line(lost.to_string())?;
                }
                let unnamed = rebuilt.lost_requests.saturating_sub(rebuilt.lost.len());
                if unnamed > 0 {
                    line(format!("{unnamed} more lost reservations are not shown"))?;
                }
            }
            Ok(None) => line("another process is rebuilding it".to_owned())?,
            Err(error) => {
                line(format!("{}: {:#}", error.summary(), anyhow::Error::from(error)))?;
            }
        }
    }
    for lost in recovery.count_lost(&opened).await? {
        output::line(lost)?;
    }
    Ok(if all_open { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
