//! The API keys as last read from the ledger.
//!
//! While Postgres is unavailable the last keys stay in use without a limit of time: nothing can be revoked then, and
//! units are sold as before. A key that expires meanwhile is refused.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use super::{Cause, Principal, api_key::ApiKey, now_ms};
use crate::ledger::{Ledger, LedgerError, UsableApiKey, UsableApiKeys};

struct Entry {
    secret_sha256: [u8; 32],
    principal: Arc<Principal>,
    expires_at_ms: i64,
}

/// The keys at a version of the table.
struct Table {
    version: Option<Uuid>,
    keys: HashMap<String, Entry>,
}

/// The keys that may be used.
pub(super) struct ApiKeys {
    ledger: Ledger,
    table: ArcSwap<Table>,
    healthy: AtomicBool,
}

impl ApiKeys {
    /// Reads the keys. Fails if the ledger does not answer.
    pub(super) async fn read(ledger: Ledger) -> anyhow::Result<Self> {
        let table = ArcSwap::from_pointee(Table { version: None, keys: HashMap::new() });
        let this = Self { ledger, table, healthy: AtomicBool::new(true) };
        this.try_refresh().await.context("cannot read the API keys")?;
        Ok(this)
    }

    pub(super) fn count(&self) -> usize {
        self.table.load().keys.len()
    }

    /// The principal of a key.
    pub(super) fn check(&self, key: &ApiKey<&str>) -> Result<Arc<Principal>, Cause> {
        let hash = key.secret_sha256();
        let table = self.table.load();
        let entry = table.keys.get(key.id).ok_or(Cause::KeyUnknown)?;
        if !bool::from(entry.secret_sha256.ct_eq(&hash)) {
            return Err(Cause::KeySecret);
        }
        if now_ms() >= entry.expires_at_ms {
            return Err(Cause::KeyExpired);
        }
        Ok(entry.principal.clone())
    }

    /// Reads the keys if they changed. A failure is logged, once until it succeeds.
    pub(super) async fn refresh(&self) {
        let refreshed = self.try_refresh().await;
        let was_healthy = self.healthy.swap(refreshed.is_ok(), Ordering::Relaxed);
        if let (Err(error), true) = (&refreshed, was_healthy) {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "the API keys cannot be read: the last ones stay in use, and created or revoked keys have no effect yet"
            );
        }
    }

    async fn try_refresh(&self) -> Result<(), LedgerError> {
        let seen = self.table.load().version;
        if let Some(UsableApiKeys { version, keys }) = self.ledger.usable_api_keys(seen).await? {
            let keys: HashMap<_, _> = keys.into_iter().filter_map(entry).collect();
            tracing::info!(keys = keys.len(), "the API keys are read");
            self.table.store(Arc::new(Table { version: Some(version), keys }));
        }
        Ok(())
    }
}

/// A key by its id, unless only a newer program can use it.
fn entry(key: UsableApiKey) -> Option<(String, Entry)> {
    let UsableApiKey { key_id, secret_sha256, principal, role, expires_at_ms } = key;
    match (principal.parse(), role.parse()) {
        (Ok(name), Ok(role)) => {
            let principal = Arc::new(Principal { name, role });
            let expires_at_ms = expires_at_ms.unwrap_or(i64::MAX);
            Some((key_id, Entry { secret_sha256, principal, expires_at_ms }))
        }
        (Err(_), _) | (_, Err(_)) => {
            tracing::warn!(
                key_id,
                role,
                "an API key has a principal or a role that this program does not know: it is refused"
            );
            None
        }
    }
}
