//! Commands that work on the stores directly, whether a service runs or not: migrate, restock, export, audit.

use std::process::ExitCode;

use anyhow::bail;
use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{output, tables::audit_table};
use crate::{
    app::{Stores, pools, postgres_address},
    audit::Verdict,
    config::Config,
    domain::{OperatorText, ProductId, RequestId, UNITS_MAX},
    ledger::{Ledger, Migrated, Restock, Restocked, check_schema},
    telemetry::Metrics,
};

pub(super) async fn migrate(config: &Config) -> anyhow::Result<ExitCode> {
    let migrated = crate::ledger::migrate(&postgres_address(config)?).await?;
    output::line(match migrated {
        Migrated::UpToDate(version) => format!("The schema is at version {version}."),
        Migrated::Newer { found, program } => format!(
            "The schema is at version {found}, newer than this program's {program}: nothing was changed."
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Connects to the ledger, which must have the schema of this program.
pub(super) async fn checked_ledger(config: &Config) -> anyhow::Result<Ledger> {
    let ledger = pools(config, &Metrics::new()?).await?.operators;
    check_schema(&ledger).await?;
    Ok(ledger)
}

/// Units to add to a product.
#[derive(Debug, clap::Args)]
pub(super) struct RestockArgs {
    /// The product.
    product: ProductId,
    /// How many, at least 1.
    units: i64,
    /// The same id adds units once: with one, the command can be repeated.
    #[arg(long)]
    request_id: Option<RequestId>,
    /// Why the units are added, for the record.
    #[arg(long, default_value = "")]
    reason: OperatorText,
}

pub(super) async fn restock(config: &Config, args: RestockArgs) -> anyhow::Result<ExitCode> {
    if args.units < 1 || args.units > UNITS_MAX {
        bail!("units must be 1 to {UNITS_MAX}");
    }
    let ledger = checked_ledger(config).await?;
    let request = args.request_id.map_or_else(|| Uuid::new_v4().to_string().parse(), Ok)?;
    let product = args.product.clone();
    let actor = "command line".to_owned();
    let reason = args.reason.to_string();
    let restock = Restock { product, units: args.units, request, actor, reason };
    match ledger.restock(&restock).await? {
        Restocked::Added(supply) => output::line(format!(
            "{} units added (request id {}); the supply is {supply} units. \
             A running service sells them within a second.",
            args.units, restock.request
        ))?,
        Restocked::AlreadyAdded(supply) => {
            output::line(format!(
                "An earlier call with this request id added these units; the supply is {supply} units."
            ))?;
        }
        Restocked::UnknownProduct => bail!("there is no product {}", args.product),
        Restocked::RequestReused => {
            bail!("this request id was used for another product or another number of units")
        }
        Restocked::TooMany => bail!("the supply would exceed {UNITS_MAX} units"),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn export(config: &Config) -> anyhow::Result<ExitCode> {
    let ledger = checked_ledger(config).await?;
    let mut rows = ledger.export().await?;
    let mut csv = csv::Writer::from_writer(std::io::stdout().lock());
    let columns = "reservation_id,state,product_id,user_id,units,request_id,reserved_at,recorded_at,\
                   void_reason";
    csv.write_record(columns.split(','))?;
    while let Some(row) = rows.try_next().await? {
        csv.write_record([
            row.reservation_id.to_string(),
            row.state,
            output::csv_text(row.product_id.unwrap_or_default()),
            output::csv_text(row.user_id.unwrap_or_default()),
            row.units.map(|units| units.to_string()).unwrap_or_default(),
            output::csv_text(row.request_id.unwrap_or_default()),
            Timestamp::from_millisecond(row.reserved_at_ms)?.to_string(),
            Timestamp::from_millisecond(row.recorded_at_ms)?.to_string(),
            output::csv_text(row.void_reason.unwrap_or_default()),
        ])?;
    }
    csv.flush()?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn audit(
    config: &Config,
    in_full: bool,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let stores = Stores::connect(config).await?;
    stores.load_epochs().await?;
    let auditor = &stores.auditor;
    let report = if in_full { auditor.audit_in_full().await } else { auditor.audit().await };
    let (word, code) = match report.verdict() {
        Verdict::Holds => ("holds", 0),
        Verdict::Violated => ("violated", 1),
        Verdict::Unknown => ("unknown", 3),
    };
    if as_json {
        let products = report.products.iter().map(|units| {
            json!({
                "product_id": units.product.as_str(), "supply": units.supply,
                "stock": units.stock, "in_orders": units.in_orders,
                "in_dead": units.in_dead, "confirmed": units.confirmed,
            })
        });
        let lost = report.lost.iter().map(|lost| {
            json!({
                "partition": lost.partition.number(), "epoch": lost.epoch.0,
                "count": lost.count, "exact": lost.exact,
            })
        });
        let report = json!({
            "verdict": word, "products": products.collect::<Vec<_>>(),
            "violations": report.violations, "unknown": report.unknown,
            "notes": report.notes, "lost": lost.collect::<Vec<_>>(),
        });
        output::line(serde_json::to_string_pretty(&report)?)?;
    } else {
        output::line(audit_table(&report))?;
        output::line(format!("Verdict of the audit: {word}."))?;
    }
    Ok(ExitCode::from(code))
}
