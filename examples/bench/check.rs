//! Compares this program with that of another commit: both are measured alternately, so that a machine that becomes slower
//! slows both.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;

use crate::{
    checkout,
    deployment::{Deployment, Products, Programs},
    load::{self, Call, Callers, Pace, Phase, STREAMS},
    spread::Spread,
};

/// A median that is worse than this, in parts of 1, is a regression, if the spread does not explain it.
const WORSE: f64 = 0.05;
/// The spread explains a difference if pairs that do not differ would look like these with a greater probability.
const CHANCE_MAX: f64 = 0.05;

/// What is compared with what.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// The commit to compare with.
    #[arg(long, required_unless_present = "base_program")]
    base: Option<String>,
    /// A program to compare with, in place of that of a commit.
    #[arg(long, conflicts_with = "base")]
    base_program: Option<PathBuf>,
    /// How often both are measured. With fewer than 5, no difference is a regression.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Calls in progress on each of 8 connections.
    #[arg(long, default_value_t = STREAMS, value_parser = clap::value_parser!(u32).range(1..))]
    streams: u32,
    /// How long each phase calls.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Orders that are accepted and stored.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    orders: u64,
    /// Where check.json is written.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Figure {
    AcceptedRate,
    SoldOutRate,
    StoredRate,
    EmptyService,
    AcceptedService,
    SoldOutService,
    AcceptedRedis,
}

impl Figure {
    const ALL: [Self; 7] = [
        Self::AcceptedRate,
        Self::SoldOutRate,
        Self::StoredRate,
        Self::EmptyService,
        Self::AcceptedService,
        Self::SoldOutService,
        Self::AcceptedRedis,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::AcceptedRate => "accepted, per second",
            Self::SoldOutRate => "sold out, per second",
            Self::StoredRate => "accepted and stored, per second",
            Self::EmptyService => "processor time of the service, empty call",
            Self::AcceptedService => "processor time of the service, accepted",
            Self::SoldOutService => "processor time of the service, sold out",
            Self::AcceptedRedis => "processor time of Redis, accepted",
        }
    }

    /// How many times as slow as the base a program is, from the ratio of its figure to that of the base.
    fn slowness(self, ratio: f64) -> f64 {
        match self {
            Self::AcceptedRate | Self::SoldOutRate | Self::StoredRate => 1.0 / ratio,
            Self::EmptyService
            | Self::AcceptedService
            | Self::SoldOutService
            | Self::AcceptedRedis => ratio,
        }
    }
}

/// The figures of one program. Storing is measured first, in role `all`, while the stores of both programs are empty. Calls
/// are measured in role `api`: otherwise a program that stores faster would leave less processor time for them.
async fn measure(programs: &Programs, args: &CheckArgs) -> anyhow::Result<[f64; 7]> {
    let products =
        [Products::plenty("hot-", 1), Products { prefix: "scarce-", count: 1, units: 1 }];
    // In role api nothing is stored, so that every order waits.
    let settings = ["backlog_max_entries=1000000000"];
    let deployment = Deployment::create(programs, &products, &settings).await?;
    let callers = Callers::on_few_connections(args.streams);
    let time = Pace::Closed(Duration::from_secs_f64(args.seconds));
    let orders = Call::reserve("hot-").with_request_ids();

    let service = deployment.serve("all").await?;
    let started = Instant::now();
    let until_stored = (callers, Pace::Calls(args.orders));
    let all = load::run(&deployment, &service, "until stored", orders, until_stored).await?;
    all.all_accepted()?;
    deployment.wait_until_sold(args.orders).await?;
    let stored = crate::parts::per_second(args.orders, started);
    deployment.wait_until_stored().await?;
    service.stop().await?;

    let service = deployment.serve("api").await?;
    let phase = async |name: &str, call: Call| -> anyhow::Result<Phase> {
        load::run(&deployment, &service, name, call, (callers, time)).await?.checked()
    };
    let empty = phase("empty", Call::Empty).await?;
    let sold_out = phase("sold out", Call::reserve("scarce-")).await?;
    let accepted = phase("accepted", orders).await?.all_accepted()?;
    deployment.finish(service).await?;
    Ok([
        accepted.rate,
        sold_out.rate,
        stored,
        empty.service_us,
        accepted.service_us,
        sold_out.service_us,
        accepted.redis_us,
    ])
}

/// The probability that of this many pairs without a difference at most so many look better.
fn chance(pairs: usize, better: usize) -> f64 {
    let (mut sum, mut term) = (0.0, 0.5_f64.powf(number(pairs)));
    for k in 0..=better {
        sum += term;
        term *= number(pairs - k) / number(k + 1);
    }
    sum
}

#[expect(clippy::cast_precision_loss, reason = "a count of pairs")]
fn number(count: usize) -> f64 {
    count as f64
}

/// A figure of both programs.
#[derive(Debug, Serialize)]
struct Row {
    figure: &'static str,
    /// This program ÷ the base, of each pair.
    ratio: Spread,
    is_regression: bool,
}

fn row(figure: Figure, ratios: Vec<f64>) -> Option<Row> {
    let better = ratios.iter().filter(|ratio| figure.slowness(**ratio) <= 1.0).count();
    let explained = chance(ratios.len(), better) > CHANCE_MAX;
    let ratio = Spread::of(ratios)?;
    let is_slower = figure.slowness(ratio.median) > 1.0 / (1.0 - WORSE);
    Some(Row { figure: figure.title(), is_regression: is_slower && !explained, ratio })
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["this program ÷ the base", "median", "least to greatest", ""]);
    for Row { figure, ratio, is_regression } in rows {
        table.add_row([
            (*figure).to_owned(),
            format!("{:.3}", ratio.median),
            format!("{:.3} to {:.3}", ratio.least, ratio.greatest),
            if *is_regression { "slower" } else { "" }.to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Compares, prints the table and writes the report.
pub(crate) async fn run(args: CheckArgs, program: &Path) -> anyhow::Result<ExitCode> {
    let base = match (&args.base, &args.base_program) {
        (_, Some(program)) => std::path::absolute(program)?,
        (Some(commit), None) => checkout::build(commit).await?,
        (None, None) => anyhow::bail!("name a commit: --base"),
    };
    let of = |service: &Path| Programs { service: service.to_owned(), load: program.to_owned() };
    let sides = [of(&base), of(program)];
    let mut ratios: Vec<Vec<f64>> = vec![Vec::new(); Figure::ALL.len()];
    for pair in 1..=args.pairs {
        crate::progress(&format!("pair {pair} of {}", args.pairs));
        let mut measured = [[0.0; 7]; 2];
        // The other one is first in every second pair.
        let order = if pair % 2 == 1 { [0, 1] } else { [1, 0] };
        for side in order {
            measured[side] = measure(&sides[side], &args).await?;
        }
        let [base, this] = measured;
        for (figure, ratios) in ratios.iter_mut().enumerate() {
            let ratio = this[figure] / base[figure];
            // In a short phase Redis may use less processor time than the kernel shows.
            if ratio.is_finite() && ratio > 0.0 {
                ratios.push(ratio);
            }
        }
    }
    let rows = Figure::ALL.into_iter().zip(ratios).filter_map(|(figure, all)| row(figure, all));
    let rows: Vec<Row> = rows.collect();
    std::fs::create_dir_all(&args.out)?;
    let report = serde_json::json!({
        "base": sides[0].version()?, "this": sides[1].version()?, "pairs": args.pairs, "rows": rows,
    });
    std::fs::write(args.out.join("check.json"), serde_json::to_string_pretty(&report)? + "\n")?;
    crate::progress(&format!("\n{}\n", table(&rows)));
    let slower = rows.iter().any(|row| row.is_regression);
    crate::progress(if slower {
        "This program is slower than the base: a figure is worse by more than 5 %, and the spread does not explain it."
    } else {
        "This program is not slower than the base."
    });
    Ok(if slower { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_is_a_regression_unless_the_spread_explains_it() {
        let found = |figure, ratios: &[f64]| row(figure, ratios.to_vec()).unwrap().is_regression;
        let slower = [0.9, 0.91, 0.92, 0.9, 0.93, 0.94, 0.9, 1.01];
        assert!(found(Figure::AcceptedRate, &slower));
        assert!(!found(Figure::AcceptedService, &slower));
        // 4 % slower; 10 % slower in the median, but not in two of eight pairs; too few pairs.
        assert!(!found(Figure::AcceptedRate, &[0.96; 8]));
        assert!(!found(Figure::AcceptedRate, &[0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 1.1, 1.2]));
        assert!(!found(Figure::AcceptedRate, &[0.8; 4]));
        assert!(found(Figure::AcceptedService, &[1.1; 5]));
    }

    #[test]
    fn chance_is_that_of_a_sign_test() {
        assert!((chance(5, 0) - 1.0 / 32.0).abs() < 1e-9);
        assert!((chance(8, 1) - 9.0 / 256.0).abs() < 1e-9);
        assert!((chance(3, 3) - 1.0).abs() < 1e-9);
    }
}
