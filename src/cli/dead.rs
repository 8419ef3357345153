//! `yoink dead`: orders that could not be stored.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use comfy_table::Table;
use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use super::output;
use crate::{
    app::Stores, config::Config, desk::Settled, domain::ReservationId, ledger::DeadAction,
    stream::DeadEntry,
};

const PAGE: usize = 500;

#[derive(Debug, Subcommand)]
pub(super) enum DeadCommand {
    /// Every dead entry.
    List,
    /// One of them, whole.
    Show {
        /// Which.
        reservation_id: ReservationId,
    },
    /// Stores orders after all.
    Retry(Chosen),
    /// Voids orders and gives their units back.
    Release(Chosen),
}

/// Which, by whom and why.
#[derive(Debug, clap::Args)]
pub(super) struct Chosen {
    /// These.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    reservation_ids: Vec<ReservationId>,
    /// Every one.
    #[arg(long)]
    all: bool,
    /// Why, for the record.
    #[arg(long, default_value = "")]
    reason: String,
}

pub(super) async fn run(config: &Config, command: DeadCommand) -> anyhow::Result<ExitCode> {
    let stores = Stores::connect(config, &TaskTracker::new()).await?;
    stores.believe_ledger().await?;
    match command {
        DeadCommand::List => list(&stores).await?,
        DeadCommand::Show { reservation_id } => {
            let dead = stores.desk.find(reservation_id).await?;
            let dead = dead.with_context(|| format!("{reservation_id} is not among the dead"))?;
            for (name, value) in &dead.entry.fields {
                output::line(format!("{name} = {value:?}"))?;
            }
        }
        DeadCommand::Retry(chosen) => {
            return settle(&stores, &chosen, async |dead, action| {
                stores.desk.retry(dead, action).await
            })
            .await;
        }
        DeadCommand::Release(chosen) => {
            return settle(&stores, &chosen, async |dead, action| {
                stores.desk.replay(dead, action).await
            })
            .await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn all(stores: &Stores) -> anyhow::Result<Vec<DeadEntry>> {
    let mut found = Vec::new();
    for partition in stores.deployment.partitions.all() {
        let mut after: Option<String> = None;
        loop {
            let page = stores.desk.list(partition, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.dead_id().to_owned());
            found.extend(page);
        }
    }
    Ok(found)
}

async fn list(stores: &Stores) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.set_header(["reservation", "product", "buried at", "SQLSTATE", "reason"]);
    for dead in all(stores).await? {
        let buried_at = Timestamp::from_millisecond(dead.buried_at_ms())?.to_string();
        let product = dead.entry.field("p").unwrap_or_default();
        table.add_row([dead.named(), product, &buried_at, dead.sqlstate(), dead.reason()]);
    }
    output::line(table)?;
    Ok(())
}

async fn settle(
    stores: &Stores,
    chosen: &Chosen,
    work: impl AsyncFn(&DeadEntry, &DeadAction) -> Result<Settled, crate::desk::DeskError>,
) -> anyhow::Result<ExitCode> {
    let entries = if chosen.all {
        all(stores).await?
    } else {
        let mut entries = Vec::new();
        for id in &chosen.reservation_ids {
            let Some(dead) = stores.desk.find(*id).await? else {
                bail!("{id} is not among the dead; nothing was done");
            };
            entries.push(dead);
        }
        entries
    };
    let action = DeadAction { actor: "command line".to_owned(), reason: chosen.reason.clone() };
    let mut refused = false;
    for dead in &entries {
        let settled = work(dead, &action).await?;
        refused |= matches!(settled, Settled::Refused | Settled::Stranger);
        let told = match settled {
            Settled::Released => "voided, its unit went back",
            Settled::Stored => "stored",
            Settled::Before => "had been settled before",
            Settled::Refused => "refused again, it stays",
            Settled::Stranger => "is none of ours, it stays",
        };
        output::line(format!("{} {told}", dead.named()))?;
    }
    Ok(ExitCode::from(u8::from(refused)))
}
