//! What a service costs that no client calls, by its number of partitions: most of it is reads that wait for orders, and checks of
//! each partition.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    deployment::{Deployment, Products, Programs},
    load::processor_times,
    measure::stores::Redis,
};

/// The work of a start has ended after this time.
const SETTLE_TIME: Duration = Duration::from_secs(5);

/// What is measured.
#[derive(Debug, clap::Args)]
pub(crate) struct IdleArgs {
    /// Numbers of partitions.
    #[arg(long, value_delimiter = ',', default_values_t = [4_u16, 8, 64])]
    partitions: Vec<u16>,
    /// How long each service is observed.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Where idle.json and idle.md are written.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

/// The cost of one service in role `all`.
#[derive(Debug, Serialize)]
struct Point {
    redis: Redis,
    partitions: u16,
    /// Processor time of the service, in percent of a core.
    service_percent: f64,
    /// That of each Redis together.
    redis_percent: f64,
}

async fn point(programs: &Programs, args: &IdleArgs, of: (Redis, u16)) -> anyhow::Result<Point> {
    let (redis, partitions) = of;
    let settings = [&*format!("partitions={partitions}")];
    let products = [Products::plenty("many-", 64)];
    let deployment = Deployment::create_on(redis, programs, &products, &settings).await?;
    let service = deployment.serve("all").await?;
    sleep(SETTLE_TIME).await;
    let (before, started) = (processor_times(&deployment, &service)?, Instant::now());
    sleep(Duration::from_secs_f64(args.seconds)).await;
    let (after, elapsed) = (processor_times(&deployment, &service)?, started.elapsed());
    deployment.finish(service).await?;
    let percent = |n: usize| (after[n] - before[n]).as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    Ok(Point { redis, partitions, service_percent: percent(0), redis_percent: percent(1) })
}

fn table(points: &[Point]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["Redis", "partitions", "service, % of a core", "Redis, % of a core"]);
    for point in points {
        let redis = match point.redis {
            Redis::One => "one",
            Redis::Cluster => "three masters",
        };
        table.add_row([
            redis.to_owned(),
            point.partitions.to_string(),
            format!("{:.1}", point.service_percent),
            format!("{:.1}", point.redis_percent),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Measures, prints the table and writes the report.
pub(crate) async fn run(args: IdleArgs, program: &std::path::Path) -> anyhow::Result<ExitCode> {
    let programs = Programs::same(program);
    let mut points = Vec::new();
    for redis in [Redis::One, Redis::Cluster] {
        for &partitions in &args.partitions {
            points.push(point(&programs, &args, (redis, partitions)).await?);
        }
    }
    let table = table(&points);
    fs::create_dir_all(&args.out)?;
    let report = serde_json::json!({
        "version": programs.version()?, "seconds": args.seconds, "points": points,
    });
    fs::write(args.out.join("idle.json"), serde_json::to_string_pretty(&report)? + "\n")?;
    fs::write(args.out.join("idle.md"), format!("{table}\n"))?;
    crate::progress(&format!("\n{table}\n\nThe report is in {}.", args.out.display()));
    Ok(ExitCode::SUCCESS)
}
