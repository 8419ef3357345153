//! How the time of an audit grows with stored orders: without checkpoints, with them, and of all rows.
//!
//! `make bench-audit` prints a table; `ROWS=1000000,10000000 make bench-audit` chooses its sizes (10 million rows need 6 GB
//! of disk). The orders of each row were accepted within 30 days, so the last tenth has request ids that are remembered.
#![expect(clippy::print_stdout, reason = "it prints a table")]

#[path = "stored/mod.rs"]
mod stored;

use std::time::Instant;

use anyhow::ensure;
use stored::Bench;
use yoink::{
    audit::{Report, Verdict},
    servers::{PostgresServer, RedisServer},
};

const SIZES: &str = "10000,100000,1000000";
/// Entries in the orders stream in the last column.
const WAITING: i64 = 100_000;
const MONTH_MS: f64 = 30.0 * 86_400_000.0;

async fn timed(audit: impl Future<Output = Report>) -> anyhow::Result<String> {
    let started = Instant::now();
    let report = audit.await;
    let took = started.elapsed().as_secs_f64();
    ensure!(report.verdict() == Verdict::Holds, "{report:#?}");
    Ok(format!("{took:.3} s"))
}

async fn measure(
    (redis, postgres): (&RedisServer, &PostgresServer),
    size: i64,
) -> anyhow::Result<Vec<String>> {
    let bench = Bench::new(redis, postgres, &format!("audit_{size}"), None).await?;
    #[expect(clippy::cast_precision_loss, reason = "a number of rows")]
    let apart_ms = MONTH_MS / size as f64;
    bench.store(1..size + 1, 0, apart_ms).await?;
    bench.rebuild().await?;
    bench.stores.load_epochs().await?;
    let auditor = bench.stores.auditor.clone().covering_from(1);
    let mut cells = vec![timed(auditor.audit()).await?, timed(auditor.audit_and_cover()).await?];
    cells.push(timed(auditor.audit()).await?);
    cells.push(timed(auditor.audit_in_full()).await?);
    bench.accept(WAITING).await?;
    cells.push(timed(auditor.audit()).await?);
    let partition = bench.row().await?.partition;
    let mut connection = bench.stores.stock.partitions().connection(partition);
    let () = redis::cmd("FLUSHALL").query_async(&mut connection).await?;
    Ok(cells)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let sizes = std::env::var("ROWS").unwrap_or_else(|_| SIZES.to_owned());
    let sizes: Vec<i64> = sizes.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let servers = stored::servers("bench-audit").await?;
    println!(
        "{:>10} {:>14} {:>14} {:>14} {:>14} {:>14}",
        "rows", "no checkpoint", "first one", "ordinary", "in full", "100,000 wait"
    );
    for size in sizes {
        let cells = measure((&servers.0, &servers.1), size).await?;
        let cells: Vec<_> = cells.iter().map(|cell| format!("{cell:>14}")).collect();
        println!("{size:>10} {}", cells.join(" "));
    }
    stored::stop(servers).await
}
