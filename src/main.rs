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
            // If standard error is closed, there is nowhere to report that.
            drop(writeln!(std::io::stderr(), "yoink: {error:#}"));
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(async {
        let shutdown = CancellationToken::new();
        if !cli.shuts_down_gracefully() {
            return yoink::cli::run(cli, shutdown).await;
        }
        // Without a handler, SIGHUP ends the process at once.
        let mut hangup = cli.ignores_hangup().then(|| signal(SignalKind::hangup())).transpose()?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut signalled = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let waiter = async {
            signalled().await;
            shutdown.cancel();
            // A second signal ends the process at once.
            signalled().await;
            Ok(ExitCode::from(130))
        };
        let hangups = async {
            while let Some(hangup) = &mut hangup
                && hangup.recv().await.is_some()
            {
                tracing::info!("SIGHUP: nothing to reload; settings apply from the next start");
            }
            std::future::pending().await
        };
        tokio::select! {
            code = yoink::cli::run(cli, shutdown.clone()) => code,
            code = waiter => code,
            code = hangups => code,
        }
    })
}
