//! What the users of this program need in both stores. It is checked at a start, before the first call is answered, and by
//! commands that change something: a script that Redis refuses in its middle, or an order that Postgres refuses to store,
//! would be found too late. What Redis permits is checked again while a service runs.

use anyhow::{Context as _, ensure};
use redis::{ErrorKind, RedisError};

use super::{Stores, connect::retry_refused};
use crate::{
    ledger::Ledger,
    lifecycle::{Lifecycle, NotPermitted},
    redis::{RedisCallError, retry_at_start},
};

/// Why the user of Redis cannot be used, if it cannot.
pub(super) async fn redis_refusal(lifecycle: &Lifecycle) -> anyhow::Result<Option<NotPermitted>> {
    let check = || async { lifecycle.not_permitted().await.map_err(source) };
    retry_at_start(check).await.context("cannot check what Redis permits")
}

fn source(error: RedisCallError) -> RedisError {
    match error {
        RedisCallError::Unavailable { source, .. } => source,
        RedisCallError::Fenced(_) | RedisCallError::Malformed(_) => {
            (ErrorKind::UnexpectedReturnType, "a check of permissions failed", error.to_string())
                .into()
        }
    }
}

/// Why the role of Postgres cannot be used, if it cannot.
pub(super) async fn ledger_refusal(ledger: &Ledger) -> anyhow::Result<Option<String>> {
    Ok(ledger.missing_privileges().await?.map(|missing| missing.to_string()))
}

impl Stores {
    /// Fails if this program may not do in one of the stores what it has to; changes nothing.
    pub async fn check_permissions(&self) -> anyhow::Result<()> {
        let ledger = retry_refused(async || ledger_refusal(&self.ledger).await).await?;
        let redis = redis_refusal(&self.lifecycle).await?.map(|refused| refused.to_string());
        let refusals: Vec<String> = redis.into_iter().chain(ledger).collect();
        ensure!(refusals.is_empty(), "{}", refusals.join("; "));
        Ok(())
    }
}
