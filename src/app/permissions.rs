//! What the users of this program need in both stores. It is checked at a start, before the first call is answered: a script
//! that Redis refuses in its middle, or an order that Postgres refuses to store, would be found too late.

use anyhow::ensure;

use super::{Stores, connect::retry_refused};
use crate::{ledger::Ledger, lifecycle::Lifecycle};

/// Why the user of Redis cannot be used, if it cannot. Where the scripts cannot be run at all, readiness reports it.
pub(super) async fn redis_refusal(lifecycle: &Lifecycle) -> Option<String> {
    let commands = lifecycle.refused_commands().await.ok().flatten()?;
    Some(format!(
        "Redis does not permit commands that the scripts of this program use ({commands}): give the user of \
         redis_url the permissions of the user yoink in deploy/redis.acl"
    ))
}

/// Why the role of Postgres cannot be used, if it cannot.
pub(super) async fn ledger_refusal(ledger: &Ledger) -> anyhow::Result<Option<String>> {
    Ok(ledger.missing_privileges().await?.map(|missing| missing.to_string()))
}

/// Fails if the service may not do in one of the stores what it has to.
pub(super) async fn check(stores: &Stores) -> anyhow::Result<()> {
    let ledger = retry_refused(async || ledger_refusal(&stores.ledger).await).await?;
    let refusals: Vec<String> =
        redis_refusal(&stores.lifecycle).await.into_iter().chain(ledger).collect();
    ensure!(refusals.is_empty(), "{}", refusals.join("; "));
    Ok(())
}
