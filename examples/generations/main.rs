//! Five designs of a flash sale behind one API, under the same load: `make generations`. `docs/case-study.md` describes
//! them and shows a result.
#![expect(clippy::print_stdout, reason = "a program for people")]

mod database;
mod designs;
#[path = "../measure/mod.rs"]
#[expect(dead_code, reason = "each example uses its part")]
mod measure;
mod report;
mod service;
mod situation;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    designs::Generation,
    report::{Column, Report},
    situation::{Measured, Situation, Sizes, measure},
};

/// Runs five designs of a flash sale under the same load and compares what they sell.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    sizes: Sizes,
    /// Where the report and the plots are written.
    #[arg(long, default_value = "target/generations")]
    out: PathBuf,
    /// Only these designs.
    #[arg(long, value_delimiter = ',')]
    designs: Vec<Generation>,
}

async fn column(generation: Generation, sizes: &Sizes) -> anyhow::Result<Column> {
    let run = async |situation: Situation| -> anyhow::Result<Measured> {
        println!("{}: {}", generation.title(), situation.title());
        measure(generation, situation, sizes).await
    };
    Ok(Column {
        generation,
        flash_sale: run(Situation::FlashSale).await?,
        key_expires: run(Situation::KeyExpires).await?,
        plenty: run(Situation::Plenty).await?,
        postgres_down: run(Situation::PostgresDown).await?,
    })
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let all = if args.designs.is_empty() { Generation::ALL.to_vec() } else { args.designs };
    let mut designs = Vec::new();
    for generation in all {
        designs.push(column(generation, &args.sizes).await?);
    }
    let report = Report {
        optimized: !cfg!(debug_assertions),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        sizes: args.sizes,
        designs,
    };
    report.write(&args.out)?;
    println!("\n{}\n\nThe report and the plots are in {}.", report.table(), args.out.display());
    let contradictions = report.contradictions();
    for line in &contradictions {
        println!("{line}");
    }
    Ok(if contradictions.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // The servers end with this process; dropping the run removes their directory.
    tokio::select! {
        done = run(args) => return done,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("Interrupted.");
    Ok(ExitCode::from(130))
}
