//! How the cost grows: with partitions, products, stored orders, and orders that wait.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::{
    deployment::{Deployment, Products, Programs},
    load::{self, Call, Callers, Pace, Phase, STREAMS},
    measure::{
        number::whole,
        plot::{self, Bar},
    },
    spread::Spread,
};

/// What the size of a point counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Dimension {
    /// Partitions, with 64 products.
    Partitions,
    /// Products, in 8 partitions.
    Products,
    /// Orders in Postgres before the run.
    Ledger,
    /// Orders that wait in Redis before the run, for one product.
    Backlog,
}

/// Which points are measured.
#[derive(Debug, clap::Args)]
pub(crate) struct GrowthArgs {
    /// How long each phase calls.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Calls in progress on each of 8 connections.
    #[arg(long, default_value_t = STREAMS, value_parser = clap::value_parser!(u32).range(1..))]
    streams: u32,
    /// How often each point is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only these dimensions.
    #[arg(long, value_delimiter = ',')]
    dimensions: Vec<Dimension>,
    /// Divides products, stored orders and waiting orders, for a quick run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    divide: u64,
    /// Also measures with 10 million stored orders.
    #[arg(long)]
    full: bool,
    /// Where growth.json, growth.md and growth.svg are written.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

const MANY: Products = Products::plenty("many-", 64);
const OLD: Products = Products::plenty("old-", 1);
/// As many partitions as the setting has by default.
const PARTITIONS: u64 = 8;

impl Dimension {
    const ALL: [Self; 4] = [Self::Partitions, Self::Products, Self::Ledger, Self::Backlog];

    fn title(self) -> &'static str {
        match self {
            Self::Partitions => "partitions",
            Self::Products => "products",
            Self::Ledger => "stored orders",
            Self::Backlog => "waiting orders",
        }
    }

    fn sizes(self, args: &GrowthArgs) -> Vec<u64> {
        let sizes: &[u64] = match self {
            Self::Partitions => return vec![1, 2, 4, 8],
            Self::Products => &[1, 10, 100, 1_000, 10_000],
            Self::Ledger if args.full => &[0, 1_000_000, 10_000_000],
            Self::Ledger => &[0, 1_000_000],
            Self::Backlog => &[0, 100_000, 500_000],
        };
        let mut sizes: Vec<u64> = sizes.iter().map(|size| size / args.divide).collect();
        if self == Self::Products {
            sizes.iter_mut().for_each(|size| *size = (*size).max(1));
        }
        sizes.dedup();
        sizes
    }
}

/// One measurement of a point.
struct Measured {
    accepted_to_empty: f64,
    stored_to_empty: Option<f64>,
    service_us: f64,
    redis_us: f64,
}

/// The measurements of a point.
#[derive(Debug, Serialize)]
struct Point {
    dimension: Dimension,
    size: u64,
    accepted_to_empty: Spread,
    /// Orders a second that workers store while there are no calls ÷ empty calls a second; `None` if all were stored before
    /// this could be measured.
    stored_to_empty: Option<Spread>,
    /// Processor time of the service for an accepted call, in microseconds.
    service_us: Spread,
    redis_us: Spread,
}

/// Puts orders into Postgres that an earlier epoch has sold, and closes their partition, which workers then rebuild.
async fn fill(deployment: &Deployment, rows: u64) -> anyhow::Result<()> {
    if rows == 0 {
        return Ok(());
    }
    let statements = [
        // As the service makes the ids: partition, epoch, seq, and a random part that may as well be 0.
        format!(
            "INSERT INTO reservations (reservation_id, state, product_id, user_id, units, request_id,
                                       partition, epoch, seq, reserved_at)
             SELECT (lpad(to_hex(p.partition), 3, '0') || '00001-' || lpad(to_hex(n >> 20), 4, '0') || '-8' ||
                     lpad(to_hex((n >> 8) & 4095), 3, '0') || '-' ||
                     to_hex(32768 | ((n & 255) << 6)) || '-000000000000')::uuid,
                    'confirmed', p.product_id, 'user-' || n, 1, 'r-' || n, p.partition, 1, n,
                    now() - interval '30 days'
               FROM products p, generate_series(1, {rows}) n WHERE p.product_id = 'old-0'"
        ),
        format!("UPDATE products SET sold = {rows} WHERE product_id = 'old-0'"),
        "UPDATE partitions SET epoch = 1, opened = 1, status = 'closed'
          WHERE partition = (SELECT partition FROM products WHERE product_id = 'old-0')"
            .to_owned(),
        "ANALYZE reservations".to_owned(),
    ];
    for statement in statements {
        deployment.stores.query(&statement).await?;
    }
    Ok(())
}

async fn measure(
    programs: &Programs,
    (dimension, size): (Dimension, u64),
    args: &GrowthArgs,
) -> anyhow::Result<Measured> {
    let time = Duration::from_secs_f64(args.seconds);
    let callers = Callers::on_few_connections(args.streams);
    let (products, partitions) = match dimension {
        Dimension::Partitions => (MANY, size),
        Dimension::Products => (Products::plenty("many-", u32::try_from(size)?), PARTITIONS),
        Dimension::Ledger => (MANY, PARTITIONS),
        Dimension::Backlog => (Products::plenty("many-", 1), PARTITIONS),
    };
    let partitions = format!("partitions={partitions}");
    let settings = ["backlog_max_entries=1000000000", &partitions];
    let deployment = Deployment::create(programs, &[products, OLD], &settings).await?;
    if dimension == Dimension::Ledger {
        fill(&deployment, size).await?;
        deployment.serve("all").await?.stop().await?;
    }
    let service = deployment.serve("api").await?;
    let phase = async |name: &str, call: Call, pace: Pace| -> anyhow::Result<Phase> {
        load::run(&deployment, &service, name, call, (callers, pace)).await?.all_accepted()
    };
    let call = Call::reserve_of(products.prefix, products.count).with_request_ids();
    let empty = phase("empty", Call::Empty, Pace::Closed(time)).await?;
    if dimension == Dimension::Backlog && size > 0 {
        phase("backlog", call, Pace::Calls(size)).await?;
    }
    let accepted = phase("accepted", call, Pace::Closed(time)).await?;
    service.stop().await?;
    let service = deployment.serve("all").await?;
    let (waiting, started) = (deployment.orders_in_streams().await?, Instant::now());
    deployment.wait_until_stored().await?;
    let stored = crate::parts::per_second(waiting, started);
    deployment.finish(service).await?;
    Ok(Measured {
        accepted_to_empty: accepted.rate / empty.rate,
        stored_to_empty: (waiting > 0).then_some(stored / empty.rate),
        service_us: accepted.service_us,
        redis_us: accepted.redis_us,
    })
}

async fn point(
    programs: &Programs,
    args: &GrowthArgs,
    (dimension, size): (Dimension, u64),
) -> anyhow::Result<Option<Point>> {
    let mut runs = Vec::new();
    for run in 1..=args.runs {
        let title = dimension.title();
        crate::progress(&format!("{} {title}: run {run} of {}", whole(size), args.runs));
        runs.push(measure(programs, (dimension, size), args).await?);
    }
    let spread =
        |value: fn(&Measured) -> Option<f64>| Spread::of(runs.iter().filter_map(value).collect());
    let point = || {
        Some(Point {
            dimension,
            size,
            accepted_to_empty: spread(|run| Some(run.accepted_to_empty))?,
            stored_to_empty: spread(|run| run.stored_to_empty),
            service_us: spread(|run| Some(run.service_us))?,
            redis_us: spread(|run| Some(run.redis_us))?,
        })
    };
    Ok(point())
}

fn table(points: &[Point]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "",
        "",
        "accepted ÷ empty calls",
        "stored ÷ empty calls",
        "service, µs a call",
        "Redis, µs a call",
    ]);
    let written = |spread: &Spread, decimals: usize| {
        let Spread { median, least, greatest, .. } = spread;
        format!("{median:.decimals$} ({least:.decimals$} to {greatest:.decimals$})")
    };
    for point in points {
        table.add_row([
            whole(point.size),
            point.dimension.title().to_owned(),
            written(&point.accepted_to_empty, 2),
            point.stored_to_empty.as_ref().map_or("–".to_owned(), |spread| written(spread, 2)),
            written(&point.service_us, 1),
            written(&point.redis_us, 1),
        ]);
    }
    for column in table.column_iter_mut().filter(|column| column.index != 1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn plot(points: &[Point]) -> String {
    let of = |dimension: Dimension| {
        let points = points.iter().filter(move |point| point.dimension == dimension);
        let bars = points.flat_map(|point| {
            let bar = |label: String, spread: &Spread, class: &'static str| Bar {
                label,
                parts: vec![(spread.median, class)],
                text: format!("{:.2}", spread.median),
            };
            let accepted = bar(whole(point.size), &point.accepted_to_empty, "accepted");
            let stored = point.stored_to_empty.as_ref();
            let stored = stored.map(|spread| bar(String::new(), spread, "good"));
            [Some(accepted), stored].into_iter().flatten()
        });
        (dimension.title().to_owned(), bars.collect::<Vec<_>>())
    };
    let groups = Dimension::ALL.map(of).into_iter().filter(|(_, bars)| !bars.is_empty());
    let legend = [("accepted", "accepted ÷ empty calls"), ("good", "stored ÷ empty calls")];
    plot::bars("Cost as it grows", &legend, &groups.collect::<Vec<_>>())
}

/// Measures, prints the table and writes the report.
pub(crate) async fn run(args: GrowthArgs, program: &Path) -> anyhow::Result<ExitCode> {
    let programs = Programs::same(program);
    let all = if args.dimensions.is_empty() { &Dimension::ALL[..] } else { &args.dimensions };
    let mut points = Vec::new();
    for &dimension in all {
        for size in dimension.sizes(&args) {
            points.extend(point(&programs, &args, (dimension, size)).await?);
        }
    }
    let table = table(&points);
    fs::create_dir_all(&args.out)?;
    let report = serde_json::json!({
        "version": programs.version()?, "seconds": args.seconds, "runs": args.runs, "points": points,
    });
    fs::write(args.out.join("growth.json"), serde_json::to_string_pretty(&report)? + "\n")?;
    fs::write(args.out.join("growth.md"), format!("{table}\n"))?;
    fs::write(args.out.join("growth.svg"), plot(&points))?;
    crate::progress(&format!("\n{table}\n\nThe report is in {}.", args.out.display()));
    Ok(ExitCode::SUCCESS)
}
