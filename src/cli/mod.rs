//! The commands.

mod dead;
mod demo;
mod dev;
mod import;
mod keys;
mod load;
mod output;
mod progress;
mod rebuild;
mod secret_arg;
mod store_commands;
mod tables;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, anyhow};
use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use self::secret_arg::SecretArg;
use crate::{
    app::{
        App, Inspection, Listeners, Role, connections_max, inspect, raise_descriptor_limit,
        tls_problems, tls_warnings,
    },
    config::{self, Config, setting_name},
    grpc, telemetry,
};

/// Version and commit.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("YOINK_COMMIT"), ")");

/// Sells a limited number of units to many more buyers, and never one unit twice.
#[derive(Debug, Parser)]
#[command(name = "yoink", version = VERSION)]
pub struct Cli {
    #[command(flatten)]
    settings: SettingsArgs,
    #[command(subcommand)]
    command: Command,
}

/// Settings on the command line; `yoink config check` prints every setting as it would apply.
#[derive(Debug, Args)]
struct SettingsArgs {
    /// The settings file.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting; it overrides the file and the environment. May be repeated.
    #[arg(long = "set", global = true, value_name = "NAME=VALUE")]
    set: Vec<SecretArg>,
}

/// The name and the value of a `--set`; an error does not repeat the value.
fn setting(flag: &SecretArg) -> Result<(&'static str, String), String> {
    let (name, value) = flag.as_str().split_once('=').ok_or("it is not NAME=VALUE")?;
    Ok((setting_name(name)?, value.to_owned()))
}

impl SettingsArgs {
    fn load(&self, more: &[(&'static str, String)]) -> anyhow::Result<Config> {
        let file = self.config.clone().unwrap_or_else(|| PathBuf::from("yoink.toml"));
        let set: Result<Vec<_>, String> = self.set.iter().map(setting).collect();
        let set = set.map_err(|problem| anyhow!("a --set is wrong: {problem}"))?;
        let flags = [set.as_slice(), more].concat();
        Ok(Config::load(&file, self.config.is_some(), &flags)?)
    }

    /// For a command that has no log: prints a warning about unknown variables of the environment to standard error.
    fn load_and_warn(&self) -> anyhow::Result<Config> {
        let config = self.load(&[])?;
        if let Some(warning) = config.ignored.warning() {
            output::warning(warning);
        }
        Ok(config)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the service.
    Serve {
        /// Which parts this process runs.
        #[arg(long, default_value = "all")]
        role: Role,
    },
    /// Runs the service with a private Redis and a private Postgres under .yoink/, and the demo catalogue.
    Dev,
    /// Runs a flash sale against a temporary service; exits 0 only if the audit holds.
    Demo(demo::DemoArgs),
    /// Brings the schema of the database up to date.
    Migrate,
    /// Creates the products of a CSV or JSON file: all of them or none.
    Import {
        /// The file; `-` for standard input as CSV.
        file: PathBuf,
    },
    /// Adds units to the supply of a product.
    Restock(store_commands::RestockArgs),
    /// Prints every stored reservation as CSV.
    Export,
    /// Checks that nothing was lost or sold twice: exits 0 (holds), 1 (violated) or 3 (unknown).
    Audit {
        /// Reads every stored row, also those that the checkpoints of earlier audits cover, and compares both.
        #[arg(long)]
        full: bool,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Rebuilds partitions from the ledger: the fenced ones, or the given ones.
    Rebuild(rebuild::RebuildArgs),
    /// Creates, lists or revokes API keys.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Lists, shows, retries or releases dead entries.
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Calls a running service over many connections, and reports what was answered, and how fast.
    Load(Box<load::LoadArgs>),
    /// Prints the API as a descriptor set, for Envoy.
    Descriptor,
    /// Checks or prints settings.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Prints the settings as they would apply (exits 0), or every problem at once (exits 2). Connects to nothing.
    Check {
        /// Also connects to both stores and prints what they are; changes nothing. Exits 0, 1 (a start would be refused)
        /// or 2 (a store could not be reached).
        #[arg(long)]
        connect: bool,
    },
    /// Prints a settings file that has every setting as a comment, at its default.
    Sample {
        /// Prints the table of docs/operations.md instead.
        #[arg(long)]
        table: bool,
    },
}

impl Cli {
    /// Whether the command shuts down gracefully on SIGTERM and SIGINT; the others end at once.
    pub fn shuts_down_gracefully(&self) -> bool {
        let command = &self.command;
        matches!(
            command,
            Command::Serve { .. } | Command::Dev | Command::Demo(_) | Command::Load(_)
        )
    }

    /// Whether the command continues on SIGHUP; the others end, unless `nohup` runs them.
    pub fn ignores_hangup(&self) -> bool {
        matches!(self.command, Command::Serve { .. })
    }
}

/// Runs a command until it ends, or until `shutdown`. After an error the exit code is 2.
pub async fn run(cli: Cli, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    // If this fails, the limit stays as it was, and `connections_max` reports it.
    let _failed = raise_descriptor_limit();
    let settings = &cli.settings;
    match cli.command {
        Command::Serve { role } => serve(&settings.load(&[])?, role, shutdown).await,
        Command::Dev => dev::run(|more| settings.load(more), shutdown).await,
        Command::Demo(args) => demo::run(args, |more| settings.load(more), shutdown).await,
        Command::Migrate => store_commands::migrate(&settings.load_and_warn()?).await,
        Command::Import { file } => import::run(&settings.load_and_warn()?, &file).await,
        Command::Restock(args) => store_commands::restock(&settings.load_and_warn()?, args).await,
        Command::Export => store_commands::export(&settings.load_and_warn()?).await,
        Command::Audit { full, json } => {
            store_commands::audit(&settings.load_and_warn()?, full, json).await
        }
        Command::Rebuild(args) => rebuild::run(&settings.load_and_warn()?, args).await,
        Command::Dead(command) => dead::run(&settings.load_and_warn()?, command).await,
        Command::Keys(command) => keys::run(&settings.load_and_warn()?, command).await,
        Command::Descriptor => {
            output::bytes(grpc::DESCRIPTOR_SET)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Load(args) => load::run(*args, shutdown).await,
        Command::Config(ConfigCommand::Check { connect }) => {
            check(&settings.load_and_warn()?, connect).await
        }
        Command::Config(ConfigCommand::Sample { table }) => {
            let text = if table { config::table() } else { config::sample() };
            output::bytes(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn serve(
    config: &Config,
    role: Role,
    shutdown: CancellationToken,
) -> anyhow::Result<ExitCode> {
    let traces = telemetry::init(config)?;
    let listeners = Listeners::bind(config)?;
    let app = App::build(config, role, listeners).await.context("cannot start")?;
    let ended = app.run(shutdown).await;
    traces.finish().await;
    ended.map(|()| ExitCode::SUCCESS)
}

async fn check(config: &Config, connect: bool) -> anyhow::Result<ExitCode> {
    connections_max(config)?;
    let problems = tls_problems(config);
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("; "));
    output::line(config)?;
    if let Some(ignored) = config.ignored.kubernetes() {
        output::line(format!("# {ignored}"))?;
    }
    for warning in tls_warnings(config) {
        output::line(format!("# warning: {warning}"))?;
    }
    if !connect {
        return Ok(ExitCode::SUCCESS);
    }
    let Inspection { found, warnings, refusals, failures } = inspect(config).await;
    for (lines, kind) in [
        (&found, ""),
        (&warnings, "warning: "),
        (&refusals, "a start is refused: "),
        (&failures, "cannot check: "),
    ] {
        for line in lines {
            output::line(format!("# {kind}{line}"))?;
        }
    }
    Ok(ExitCode::from(match (failures.is_empty(), refusals.is_empty()) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }))
}
