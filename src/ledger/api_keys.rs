//! The tables `api_keys` and `api_key_version`: the keys that callers authenticate with.
//!
//! Must never: store or return the secret of a key.

use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::{Ledger, LedgerError, pool::milliseconds};
use crate::domain::{CallerRole, UserId};

/// A key to create.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of `api_keys`")]
pub struct NewApiKey {
    pub key_id: String,
    pub secret_sha256: [u8; 32],
    pub principal: UserId,
    pub role: CallerRole,
    /// `None`: it does not expire.
    pub expires_in_days: Option<u32>,
}

/// A key that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of `api_keys`")]
pub struct UsableApiKey {
    pub key_id: String,
    pub secret_sha256: [u8; 32],
    /// As stored: a newer program may have written a name or a role that this one refuses.
    pub principal: String,
    pub role: String,
    pub expires_at_ms: Option<i64>,
}

/// Every key that may be used, at a version of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsableApiKeys {
    /// The version.
    pub version: Uuid,
    /// The keys.
    pub keys: Vec<UsableApiKey>,
}

/// A key as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of `api_keys`")]
pub struct ApiKeyRecord {
    pub key_id: String,
    pub principal: String,
    pub role: String,
    pub created_at_ms: i64,
    pub expires_at_ms: Option<i64>,
    pub revoked_at_ms: Option<i64>,
    /// By the clock of Postgres.
    pub is_expired: bool,
}

/// What a revocation found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// The key is revoked now.
    Now,
    /// It was revoked before.
    Before,
    /// No key has this id.
    UnknownKey,
}

impl Ledger {
    /// Creates a key; returns when it expires.
    pub async fn create_api_key(&self, key: &NewApiKey) -> Result<Option<i64>, LedgerError> {
        let days = key.expires_in_days.map(f64::from);
        self.with("create_api_key", async move |client| {
            let sql = "WITH changed AS (UPDATE api_key_version SET version = gen_random_uuid())
                       INSERT INTO api_keys (key_id, secret_sha256, principal, role, expires_at)
                       VALUES ($1, $2, $3, $4, now() + $5 * interval '1 day')
                       RETURNING expires_at";
            let (hash, principal) = (key.secret_sha256.as_slice(), key.principal.as_str());
            let role = key.role.as_str();
            let args: [(&(dyn ToSql + Sync), Type); 5] = [
                (&key.key_id, Type::TEXT),
                (&hash, Type::BYTEA),
                (&principal, Type::TEXT),
                (&role, Type::TEXT),
                (&days, Type::FLOAT8),
            ];
            let rows = client.query_typed(sql, &args).await?;
            let row = rows.first().ok_or(LedgerError::InvalidData("api_keys"))?;
            Ok(row.try_get::<_, Option<_>>(0)?.map(milliseconds))
        })
        .await
    }

    /// Revokes a key.
    pub async fn revoke_api_key(&self, key_id: &str) -> Result<Revoked, LedgerError> {
        self.with("revoke_api_key", async move |client| {
            let sql = "WITH revoked AS (
                           UPDATE api_keys SET revoked_at = clock_timestamp()
                            WHERE key_id = $1 AND revoked_at IS NULL RETURNING key_id
                       ), changed AS (
                           UPDATE api_key_version SET version = gen_random_uuid()
                            WHERE EXISTS (SELECT FROM revoked)
                       )
                       SELECT EXISTS (SELECT FROM revoked),
                              EXISTS (SELECT FROM api_keys WHERE key_id = $1)";
            let rows = client.query_typed(sql, &[(&key_id, Type::TEXT)]).await?;
            let row = rows.first().ok_or(LedgerError::InvalidData("api_keys"))?;
            Ok(match (row.try_get(0)?, row.try_get(1)?) {
                (true, _) => Revoked::Now,
                (false, true) => Revoked::Before,
                (false, false) => Revoked::UnknownKey,
            })
        })
        .await
    }

    /// Every key, the oldest first.
    pub async fn api_keys(&self) -> Result<Vec<ApiKeyRecord>, LedgerError> {
        self.with("list_api_keys", async move |client| {
            let sql = "SELECT key_id, principal, role, created_at, expires_at, revoked_at,
                              coalesce(expires_at <= now(), false)
                         FROM api_keys ORDER BY created_at, key_id";
            let rows = client.query_typed(sql, &[]).await?;
            let records = rows.iter().map(|row| {
                Ok(ApiKeyRecord {
                    key_id: row.try_get(0)?,
                    principal: row.try_get(1)?,
                    role: row.try_get(2)?,
                    created_at_ms: milliseconds(row.try_get(3)?),
                    expires_at_ms: row.try_get::<_, Option<_>>(4)?.map(milliseconds),
                    revoked_at_ms: row.try_get::<_, Option<_>>(5)?.map(milliseconds),
                    is_expired: row.try_get(6)?,
                })
            });
            records.collect()
        })
        .await
    }

    /// The keys that may be used, if the table has another version than `seen`. One statement reads both, so they belong
    /// together.
    pub async fn usable_api_keys(
        &self,
        seen: Option<Uuid>,
    ) -> Result<Option<UsableApiKeys>, LedgerError> {
        self.with("usable_api_keys", async move |client| {
            let sql =
                "SELECT v.version, k.key_id, k.secret_sha256, k.principal, k.role, k.expires_at
                         FROM api_key_version v
                         LEFT JOIN api_keys k ON v.version IS DISTINCT FROM $1
                          AND k.revoked_at IS NULL AND (k.expires_at > now()) IS NOT FALSE";
            let rows = client.query_typed(sql, &[(&seen, Type::UUID)]).await?;
            let version = rows.first().ok_or(LedgerError::InvalidData("api_key_version"))?;
            let version: Uuid = version.try_get(0)?;
            if Some(version) == seen {
                return Ok(None);
            }
            let mut keys = Vec::with_capacity(rows.len());
            for row in &rows {
                let Some(key_id) = row.try_get::<_, Option<String>>(1)? else { continue };
                let secret_sha256 = row.try_get::<_, &[u8]>(2)?.try_into();
                keys.push(UsableApiKey {
                    key_id,
                    secret_sha256: secret_sha256
                        .map_err(|_| LedgerError::InvalidData("api_keys.secret_sha256"))?,
                    principal: row.try_get(3)?,
                    role: row.try_get(4)?,
                    expires_at_ms: row.try_get::<_, Option<_>>(5)?.map(milliseconds),
                });
            }
            Ok(Some(UsableApiKeys { version, keys }))
        })
        .await
    }
}
