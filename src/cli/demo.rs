//! `yoink demo`: a flash sale against a temporary service.

use std::{
    collections::HashSet,
    fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    dev::{PLENTIFUL_PRODUCT, SCARCE_PRODUCT, Servers, create_catalogue},
    output, progress,
    tables::{Column, Stored, audit_table, sale_table},
};
use crate::{
    app::{App, Listeners, Role, Stores},
    audit::{self, Verdict},
    config::Config,
    ledger::Ledger,
    load::{self, Plan},
    telemetry,
};

/// How long storing the last orders may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);
/// How many connections the buyers share.
const CONNECTIONS: u64 = 8;

/// Replaces what a settings file may say: the buyers and the service are one process.
const WITHOUT_TLS: [(&str, &str); 5] = [
    ("tls_cert_file", ""),
    ("tls_key_file", ""),
    ("tls_client_ca_file", ""),
    ("grpc_client_auth", "none"),
    ("http_client_auth", "none"),
];

/// How large the sale is.
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// Attempts at each product.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    attempts: u64,
    /// Units of the scarce product.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(i64).range(1..=10_000_000))]
    units: i64,
    /// Buyers at the same time.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    buyers: u64,
}

/// A directory that is removed when this is dropped; drop it after everything that uses it.
struct TempDir(PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        // If this fails, the operating system removes the files when it cleans its temporary directory.
        drop(fs::remove_dir_all(&self.0));
    }
}

pub(super) async fn run(
    args: DemoArgs,
    settings: impl Fn(&[(&'static str, String)]) -> anyhow::Result<Config>,
    shutdown: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let quiet = ("log_filter", "warn".to_owned());
    let traces = telemetry::init(&settings(std::slice::from_ref(&quiet))?)?;
    let dir = std::env::temp_dir().join(format!("yoink-demo-{}", Uuid::new_v4().simple()));
    // Other users may not list it, but a Postgres that runs as another user must pass through it.
    let made = fs::DirBuilder::new().mode(0o711).create(&dir);
    made.with_context(|| format!("cannot create {}", dir.display()))?;
    let temp_dir = TempDir(dir);
    output::line("Starting a temporary Redis and a temporary Postgres.")?;
    let servers = Servers::start(&temp_dir.0).await?;
    let free_port = || "127.0.0.1:0".to_owned();
    let mut more = vec![quiet, ("grpc_listen", free_port()), ("http_listen", free_port())];
    more.extend(servers.settings());
    more.extend(WITHOUT_TLS.map(|(name, value)| (name, value.to_owned())));
    let config = settings(&more)?;
    let app = App::build(&config, Role::All, Listeners::bind(&config)?).await?;
    create_catalogue(&app, args.units).await?;
    let (address, stores) = (app.listeners.grpc.local_addr()?, app.stores().clone());

    let (tasks, stop_app) = (TaskTracker::new(), CancellationToken::new());
    let serving = tasks.spawn(app.run(stop_app.clone()));
    let holds = sell_and_audit(&args, address, &stores, &shutdown).await;
    stop_app.cancel();
    serving.await??;
    traces.finish().await;
    drop(stores);
    tokio::task::spawn_blocking(move || drop((servers, temp_dir))).await?;
    if shutdown.is_cancelled() {
        output::line("Interrupted.")?;
        return Ok(ExitCode::from(130));
    }
    Ok(if holds? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn sell_and_audit(
    args: &DemoArgs,
    address: SocketAddr,
    stores: &Stores,
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let scarce = sell(SCARCE_PRODUCT, args, address, stop).await?;
    let plentiful = sell(PLENTIFUL_PRODUCT, args, address, stop).await?;
    if stop.is_cancelled() {
        return Ok(false);
    }
    let Some(report) = stop.run_until_cancelled(settled_report(stores)).await.transpose()? else {
        return Ok(false);
    };
    let columns = [
        column(SCARCE_PRODUCT, scarce, &report, &stores.ledger).await?,
        column(PLENTIFUL_PRODUCT, plentiful, &report, &stores.ledger).await?,
    ];
    let exact = columns.iter().all(|Column { load, stored, .. }| {
        stored.oversold == 0 && stored.lost == 0 && stored.confirmed == load.accepted()
    });
    output::line(sale_table(&columns))?;
    output::line(audit_table(&report))?;
    let audit_holds = report.verdict() == Verdict::Holds;
    output::line(match (audit_holds, exact) {
        (true, true) => "The audit holds: nothing was sold twice, nothing was lost.",
        (true, false) => {
            "THE ANSWERS TO BUYERS DIFFER FROM WHAT IS STORED, although the audit holds: see the first table."
        }
        (false, _) => "THE AUDIT DOES NOT HOLD: see the lines above.",
    })?;
    Ok(audit_holds && exact)
}

async fn sell(
    product: &str,
    args: &DemoArgs,
    address: SocketAddr,
    stop: &CancellationToken,
) -> anyhow::Result<load::Report> {
    let mut plan = Plan::new(address.to_string(), [product]);
    let connections = CONNECTIONS.min(args.buyers);
    plan.connections = usize::try_from(connections)?;
    plan.streams = usize::try_from(args.buyers.div_ceil(connections))?;
    (plan.calls, plan.duration) = (Some(args.attempts), None);
    plan.keep_accepted_ids = true;
    let done = Arc::new(AtomicU64::new(0));
    let counted = done.clone();
    let work = load::run(plan, stop.clone(), move |second| {
        counted.fetch_add(second.outcomes.total(), Ordering::Relaxed);
    });
    Ok(progress::show(product, args.attempts, done, work).await??)
}

/// Audits until every order is stored, or until the audit is violated.
async fn settled_report(stores: &Stores) -> anyhow::Result<audit::Report> {
    let started = Instant::now();
    loop {
        let report = stores.auditor.audit().await;
        let waiting = report.products.iter().any(|units| units.in_orders + units.in_dead > 0);
        if !waiting && report.unknown.is_empty() || report.verdict() == Verdict::Violated {
            return Ok(report);
        }
        if started.elapsed() > STORE_TIMEOUT {
            bail!("orders are still not stored after {STORE_TIMEOUT:?}: {:?}", report.unknown);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Compares each accepted reservation with what the ledger holds.
async fn column(
    product: &str,
    load: load::Report,
    report: &audit::Report,
    ledger: &Ledger,
) -> anyhow::Result<Column> {
    let (mut confirmed, mut after) = (HashSet::new(), None);
    let id = product.parse()?;
    loop {
        let page = ledger.list(Some(&id), None, after, 5000).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id.to_uuid());
        confirmed.extend(page.iter().map(|reservation| reservation.id.to_string()));
    }
    let units = report.products.iter().find(|units| units.product.as_str() == product);
    let units = units.map_or(0, |units| units.supply);
    let lost = load.accepted_ids.iter().filter(|id| !confirmed.contains(*id)).count();
    let confirmed = confirmed.len() as u64;
    let oversold = confirmed.saturating_sub(u64::try_from(units)?);
    let stored = Stored { confirmed, lost: lost as u64, oversold };
    Ok(Column { product: product.to_owned(), units, load, stored })
}
