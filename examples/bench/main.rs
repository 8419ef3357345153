//! Measures this program on private servers: `make bench`, `make bench-growth`, `make bench-idle` and `make bench-check`. The
//! service and the load generator are processes of their own. `docs/performance.md` describes the figures.
#![expect(clippy::print_stdout, reason = "a program for people")]

mod check;
mod checkout;
mod deployment;
mod figure;
mod growth;
mod idle;
#[path = "../../tests/tools/listening.rs"]
#[expect(clippy::unwrap_used, unreachable_pub, reason = "a file of the tests")]
mod listening;
mod load;
#[path = "../measure/mod.rs"]
#[expect(dead_code, reason = "each example uses its part")]
mod measure;
mod parts;
mod process;
mod redis_servers;
mod rest;
#[path = "../../tests/it/auth/signer.rs"]
#[expect(clippy::unwrap_used, unreachable_pub, dead_code, reason = "a file of the tests")]
mod signer;
mod spread;
mod table;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    deployment::Programs,
    parts::{Part, Setup, Sizes},
};

/// Measures how fast this program is.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures the figures of docs/performance.md and prints them beside their goals. Fails if a call fails or an audit is
    /// not clean, not if a goal is missed. In the parts `away` and `memory`, a call may be refused because too many orders
    /// wait.
    Table(TableArgs),
    /// Measures how the cost grows: with partitions, products, stored orders and waiting orders.
    Growth(growth::GrowthArgs),
    /// Measures what a service costs that no client calls.
    Idle(idle::IdleArgs),
    /// Compares this program with that of another commit. Fails if it is slower.
    Check(check::CheckArgs),
}

#[derive(Args)]
struct TableArgs {
    #[command(flatten)]
    sizes: Sizes,
    /// How often each part but `memory` is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Where report.json, table.md, costs.md and goals.svg are written.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

/// The `yoink` that was built beside this program.
fn program() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let built = this.parent().and_then(Path::parent).context("this program has no directory")?;
    let program = built.join("yoink");
    ensure!(program.exists(), "{} does not exist: run `cargo build`", program.display());
    Ok(program)
}

/// Prints what is being measured.
fn progress(text: &str) {
    println!("{text}");
}

async fn table(args: TableArgs) -> anyhow::Result<ExitCode> {
    let programs = Programs::same(&program()?);
    let parts = if args.parts.is_empty() { Part::ALL.to_vec() } else { args.parts };
    let setup = Setup { programs, sizes: args.sizes };
    let (report, outcome) = table::measure(&setup, &parts, args.runs).await?;
    report.write(&args.out)?;
    println!("\n{}\n\nMicroseconds of processor time for each call:\n", report.table());
    println!("{}\n\nThe report and the plot are in {}.", report.costs(), args.out.display());
    outcome?;
    Ok(ExitCode::SUCCESS)
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Table(args) => table(args).await,
        Command::Growth(args) => growth::run(args, &program()?).await,
        Command::Idle(args) => idle::run(args, &program()?).await,
        Command::Check(args) => check::run(args, &program()?).await,
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let command = Cli::parse().command;
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // Dropping the run kills its processes and removes their directory.
    tokio::select! {
        done = run(command) => return done,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("Interrupted.");
    Ok(ExitCode::from(130))
}
