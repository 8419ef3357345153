//! `yoink demo`: a flash sale against a throw-away service.

use std::{
    collections::HashSet,
    fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    dev::{PLENTIFUL_PRODUCT, SCARCE, Servers, create_catalogue},
    output, progress,
    sale::{self, Client, Sale, Tally},
    verdict::{Column, Stored, audit_table, sale_table},
};
use crate::{
    app::{App, Listeners, Role, Stores},
    audit::{Report, Verdict},
    config::Config,
    grpc::pb,
    ledger::{Ledger, ReservationFilter},
    telemetry,
};

/// How long the last orders may take to be stored.
const STORE_LIMIT: Duration = Duration::from_secs(60);
/// Connections that the buyers share.
const CONNECTIONS: usize = 8;

/// How large the sale is.
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Attempts at the scarce product.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    attempts: u64,
    /// Units of it.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(i64).range(1..=10_000_000))]
    units: i64,
    /// Buyers at the same time.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    buyers: u64,
}

/// A directory that goes when this is dropped, last.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to the operating system's own cleaning of its temporary files.
        drop(fs::remove_dir_all(&self.0));
    }
}

pub(super) async fn run(
    args: DemoArgs,
    settings: impl Fn(&[(&'static str, String)]) -> anyhow::Result<Config>,
    shutdown: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let quiet = ("log", "warn".to_owned());
    let traces = telemetry::init(&settings(std::slice::from_ref(&quiet))?)?;
    let dir = std::env::temp_dir().join(format!("yoink-demo-{}", Uuid::new_v4().simple()));
    // Nobody else may look in; a Postgres that runs as somebody else must pass.
    let made = fs::DirBuilder::new().mode(0o711).create(&dir);
    made.with_context(|| format!("cannot make {}", dir.display()))?;
    let scratch = Scratch(dir);
    output::line("Starting a Redis and a Postgres of our own.")?;
    let servers = Servers::start(&scratch.0).await?;
    let mut more = vec![quiet];
    more.extend(servers.settings());
    more.push(("grpc_listen", "127.0.0.1:0".to_owned()));
    more.push(("http_listen", "127.0.0.1:0".to_owned()));
    let config = settings(&more)?;
    let app = App::build(&config, Role::All, Listeners::bind(&config).await?).await?;
    create_catalogue(&app, args.units).await?;
    let (address, stores) = (app.grpc_address()?, app.stores().clone());

    let (tasks, stop_app) = (TaskTracker::new(), CancellationToken::new());
    let serving = tasks.spawn(app.run(stop_app.clone()));
    let finished = sell_and_judge(&args, address, &stores, &shutdown).await;
    stop_app.cancel();
    serving.await??;
    traces.finish().await;
    drop(stores);
    tokio::task::spawn_blocking(move || drop((servers, scratch))).await?;
    if shutdown.is_cancelled() {
        output::line("Interrupted.")?;
        return Ok(ExitCode::from(130));
    }
    Ok(if finished? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn sell_and_judge(
    args: &DemoArgs,
    address: SocketAddr,
    stores: &Stores,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let clients = sale::connect(&format!("http://{address}"), CONNECTIONS).await?;
    let (attempts, buyers) = (args.attempts, args.buyers);
    let scarce = sell(SCARCE, (attempts, buyers), &clients, stop).await?;
    let plenty = sell(PLENTIFUL_PRODUCT, (attempts, buyers), &clients, stop).await?;
    if stop.is_cancelled() {
        return Ok(false);
    }
    let Some(report) = stop.run_until_cancelled(settled_report(stores)).await.transpose()? else {
        return Ok(false);
    };
    let columns = [
        column(SCARCE, scarce, &report, &stores.ledger).await?,
        column(PLENTIFUL_PRODUCT, plenty, &report, &stores.ledger).await?,
    ];
    let exact = columns.iter().all(|column| {
        column.stored.is_some_and(|stored| {
            let accepted = u64::try_from(column.tally.accepted.len()).unwrap_or(u64::MAX);
            stored.oversold == 0 && stored.lost == 0 && stored.confirmed == accepted
        })
    });
    output::line(sale_table(&columns))?;
    output::line(audit_table(&report))?;
    let holds = exact && report.verdict() == Verdict::Holds;
    output::line(if holds {
        "The audit holds: nothing was sold twice, nothing was lost."
    } else {
        "THE AUDIT DOES NOT HOLD."
    })?;
    Ok(holds)
}

async fn sell(
    product: &str,
    (attempts, buyers): (u64, u64),
    clients: &[Client],
    stop: &CancellationToken,
) -> anyhow::Result<Tally> {
    let product = product.to_owned();
    let (product_id, run) = (product.clone(), "demo".to_owned());
    let sale = Sale { product: product_id, attempts, buyers, run, ack: pb::Ack::Unspecified };
    let done = Arc::new(AtomicU64::new(0));
    let work = sale::run(&sale, clients, done.clone(), stop);
    progress::show(&product, attempts, done, work).await?
}

/// The audit once everything is stored.
async fn settled_report(stores: &Stores) -> anyhow::Result<Report> {
    let auditor = stores.auditor();
    let started = Instant::now();
    loop {
        let report = auditor.audit().await;
        let waiting = report.products.iter().any(|units| units.in_orders + units.in_dead > 0);
        if !waiting && report.unknown.is_empty() || report.verdict() == Verdict::Violated {
            return Ok(report);
        }
        if started.elapsed() > STORE_LIMIT {
            bail!("orders still wait after {STORE_LIMIT:?}: {:?}", report.unknown);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Compares what the buyers were told with what the ledger holds, one by one.
async fn column(
    product: &str,
    tally: Tally,
    report: &Report,
    ledger: &Ledger,
) -> anyhow::Result<Column> {
    let (mut confirmed, mut after) = (HashSet::new(), None);
    let filter = ReservationFilter::Product(product.parse()?);
    loop {
        let page = ledger.list(&filter, after, 5000).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id.to_uuid());
        confirmed.extend(page.iter().map(|reservation| reservation.id.to_string()));
    }
    let units = report.products.iter().find(|units| units.product.as_str() == product);
    let units = units.map_or(0, |units| units.supply);
    let lost = tally.accepted.iter().filter(|id| !confirmed.contains(*id)).count();
    let sold = u64::try_from(confirmed.len())?;
    let stored = Stored {
        confirmed: sold,
        lost: u64::try_from(lost)?,
        oversold: sold.saturating_sub(u64::try_from(units)?),
    };
    Ok(Column { product: product.to_owned(), units, tally, stored: Some(stored) })
}
