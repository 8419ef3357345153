//! The settings of Postgres.

use super::{Ledger, LedgerError};

/// The settings that decide whether commits are durable, as the connections of this program have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerSettings {
    /// As in `server_version_num`: 150004 is 15.4.
    pub version: i32,
    /// Nothing can be written: a standby, or `default_transaction_read_only`.
    pub read_only: bool,
    /// Such as `off`, `local` or `on`.
    pub synchronous_commit: String,
    /// Whether commits are flushed to the disk.
    pub fsync: bool,
}

impl Ledger {
    /// Reads the settings.
    pub async fn settings(&self) -> Result<LedgerSettings, LedgerError> {
        self.with("server_settings", async move |client| {
            let sql = "SELECT current_setting('server_version_num')::int,
                              pg_is_in_recovery() OR current_setting('default_transaction_read_only')::bool,
                              current_setting('synchronous_commit'),
                              current_setting('fsync')::bool";
            let row = client.query_one(sql, &[]).await?;
            Ok(LedgerSettings {
                version: row.get(0),
                read_only: row.get(1),
                synchronous_commit: row.get(2),
                fsync: row.get(3),
            })
        })
        .await
    }
}
