//! How the time of a rebuild grows: with stored orders, with counts of buyers and request ids to restore, with a backlog to
//! drain.
//!
//! `make bench-rebuild` prints a table; `ROWS=1000,1000000 make bench-rebuild` chooses its sizes, and `LOADS=limited` its
//! columns. Each cell is a rebuild by the real steps on a private Redis and a private Postgres, the median of three.
#![expect(clippy::print_stdout, reason = "it prints a table")]

#[path = "stored/mod.rs"]
mod stored;

use stored::Bench;
use yoink::servers::{PostgresServer, RedisServer};

const SIZES: &str = "1000,10000,100000";
const LOADS: &str = "orders,limited,request_ids,backlog";
const RUNS: usize = 3;
const DAY_MS: i64 = 86_400_000;

async fn measure(
    (redis, postgres): (&RedisServer, &PostgresServer),
    load: &str,
    size: i64,
) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for run in 0..RUNS {
        let name = format!("{load}_{size}_{run}");
        let limit = (load == "limited").then_some(2);
        let bench = Bench::new(redis, postgres, &name, limit).await?;
        match load {
            // Older than any request id is remembered.
            "orders" | "limited" => bench.store(1..size + 1, 5 * DAY_MS, 0.0).await?,
            "request_ids" => bench.store(1..size + 1, 0, 0.0).await?,
            "backlog" => bench.accept(size).await?,
            _ => anyhow::bail!("LOADS are {LOADS}"),
        }
        times.push(bench.rebuild().await?);
        let partition = bench.row().await?.partition;
        let mut connection = bench.stores.stock.partitions().connection(partition);
        let () = redis::cmd("FLUSHALL").query_async(&mut connection).await?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let list =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let sizes = list("ROWS", SIZES);
    let sizes: Vec<i64> = sizes.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let loads = list("LOADS", LOADS);
    let loads: Vec<&str> = loads.split(',').collect();
    let servers = stored::servers("bench-rebuild").await?;
    let row = |first: &str, cells: &[String]| {
        let cells: Vec<_> = cells.iter().map(|cell| format!("{cell:>14}")).collect();
        println!("{first:>10} {}", cells.join(" "));
    };
    row("rows", &loads.iter().map(|load| (*load).to_owned()).collect::<Vec<_>>());
    for size in sizes {
        let mut cells = Vec::new();
        for load in &loads {
            let took = measure((&servers.0, &servers.1), load, size).await?;
            cells.push(format!("{took:.2} s"));
        }
        row(&size.to_string(), &cells);
    }
    stored::stop(servers).await
}
