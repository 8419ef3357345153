//! `yoink keys`: the API keys of callers.

use std::process::ExitCode;

use anyhow::bail;
use comfy_table::Table;
use jiff::Timestamp;
use serde_json::json;

use super::{output, store_commands::checked_ledger};
use crate::{
    auth::ApiKey,
    config::Config,
    domain::{CallerRole, UserId},
    ledger::{ApiKeyRecord, NewApiKey, Revoked},
};

/// What to do with API keys.
#[derive(Debug, clap::Subcommand)]
pub(super) enum KeysCommand {
    /// Creates a key and prints it, once: only a hash of it is stored. A principal may have several keys, so that a new
    /// one can be in use before the old one is revoked.
    Create {
        /// Who calls with the key; the user id of a customer. It is recorded with restocks and dead-letter actions.
        principal: UserId,
        /// What the principal may do: customer, service, operator or auditor.
        #[arg(long)]
        role: CallerRole,
        /// The key is refused after this many days; without it, it does not expire.
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        expires_in_days: Option<u32>,
    },
    /// Lists every key, without its secret.
    List {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Revokes a key. Running services refuse it within seconds.
    Revoke {
        /// The id of the key: the part between yk_ and the next _.
        key_id: String,
    },
}

pub(super) async fn run(config: &Config, command: KeysCommand) -> anyhow::Result<ExitCode> {
    match command {
        KeysCommand::Create { principal, role, expires_in_days } => {
            create(config, principal, role, expires_in_days).await
        }
        KeysCommand::List { json } => list(config, json).await,
        KeysCommand::Revoke { key_id } => revoke(config, &key_id).await,
    }
}

async fn create(
    config: &Config,
    principal: UserId,
    role: CallerRole,
    expires_in_days: Option<u32>,
) -> anyhow::Result<ExitCode> {
    let ledger = checked_ledger(config).await?;
    let key = ApiKey::generate()?;
    let (key_id, secret_sha256) = (key.id.clone(), key.secret_sha256());
    let new = NewApiKey { key_id, secret_sha256, principal, role, expires_in_days };
    let expires_at_ms = ledger.create_api_key(&new).await?;
    let expiry = match time(expires_at_ms)? {
        Some(at) => format!("expires at {at}"),
        None => "does not expire".to_owned(),
    };
    // Standard output has only the key, for scripts.
    output::note(format!(
        "key {} of {} ({role}) is created and {expiry}; it is shown only now",
        new.key_id, new.principal
    ));
    output::line(key.reveal())?;
    Ok(ExitCode::SUCCESS)
}

async fn list(config: &Config, as_json: bool) -> anyhow::Result<ExitCode> {
    let keys = checked_ledger(config).await?.api_keys().await?;
    if as_json {
        let keys = keys.iter().map(|key| {
            Ok(json!({
                "key_id": key.key_id, "principal": key.principal, "role": key.role,
                "state": state(key), "created_at": time(Some(key.created_at_ms))?,
                "expires_at": time(key.expires_at_ms)?, "revoked_at": time(key.revoked_at_ms)?,
            }))
        });
        let keys = keys.collect::<anyhow::Result<Vec<_>>>()?;
        output::line(serde_json::to_string_pretty(&keys)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.set_header(["key", "principal", "role", "state", "created", "expires", "revoked"]);
    for key in &keys {
        table.add_row([
            key.key_id.clone(),
            key.principal.clone(),
            key.role.clone(),
            state(key).to_owned(),
            time(Some(key.created_at_ms))?.unwrap_or_default(),
            time(key.expires_at_ms)?.unwrap_or_else(|| "never".to_owned()),
            time(key.revoked_at_ms)?.unwrap_or_default(),
        ]);
    }
    output::line(table)?;
    Ok(ExitCode::SUCCESS)
}

async fn revoke(config: &Config, key_id: &str) -> anyhow::Result<ExitCode> {
    // Also accepts a whole key, which may be what an operator has at hand.
    let id = key_id.strip_prefix("yk_").and_then(|rest| rest.split('_').next()).unwrap_or(key_id);
    match checked_ledger(config).await?.revoke_api_key(id).await? {
        Revoked::Now => output::line(format!(
            "Key {id} is revoked. A running service refuses it about a second later, or once it can read the keys from \
             Postgres again."
        ))?,
        Revoked::Before => output::line(format!("Key {id} was revoked before."))?,
        Revoked::UnknownKey => bail!("there is no key with this id"),
    }
    Ok(ExitCode::SUCCESS)
}

fn state(key: &ApiKeyRecord) -> &'static str {
    match (key.revoked_at_ms, key.is_expired) {
        (Some(_), _) => "revoked",
        (None, true) => "expired",
        (None, false) => "active",
    }
}

fn time(at_ms: Option<i64>) -> anyhow::Result<Option<String>> {
    let at = at_ms.map(Timestamp::from_millisecond).transpose()?;
    Ok(at.map(|at| at.to_string()))
}
