//! The `yoink` program: arguments, signals, exit code.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use yoink::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            use std::io::Write as _;
            // Nothing is left to be done if standard error is gone, too.
            drop(writeln!(std::io::stderr(), "yoink: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let signalled = shutdown.clone();
        let waiter = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            signalled.cancel();
            std::future::pending::<anyhow::Result<ExitCode>>().await
        };
        tokio::select! {
            code = yoink::cli::run(cli, shutdown) => code,
            never = waiter => never,
        }
    })
}
