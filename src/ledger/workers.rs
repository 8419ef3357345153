//! The table `workers`: which workers run now, so that the partitions are spread over them.
//!
//! Must never: decide anything about an order. A row that is missing or old costs time only.

use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{Ledger, LedgerError};

/// A sign of life of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// The name of its process.
    pub worker: String,
    /// Another number than the last time, if it runs.
    pub beat: i64,
    /// Whether it audits.
    pub audits: bool,
}

impl Ledger {
    /// Records the beat of this worker; returns those of the others.
    pub async fn beat(&self, own: &Beat) -> Result<Vec<Beat>, LedgerError> {
        self.with("beat", async move |client| {
            // The rows are read as they were before this statement, so that of this worker may be an old one.
            let sql = "WITH own AS (
                           INSERT INTO workers (worker, beat, audits) VALUES ($1, $2, $3)
                               ON CONFLICT (worker) DO UPDATE
                              SET beat = excluded.beat, audits = excluded.audits)
                       SELECT worker, beat, audits FROM workers WHERE worker <> $1";
            let args: [(&(dyn ToSql + Sync), Type); 3] =
                [(&own.worker, Type::TEXT), (&own.beat, Type::INT8), (&own.audits, Type::BOOL)];
            let rows = client.query_typed(sql, &args).await?;
            let beat =
                |row: &Row| Beat { worker: row.get(0), beat: row.get(1), audits: row.get(2) };
            Ok(rows.iter().map(beat).collect())
        })
        .await
    }

    /// Removes these workers, unless they have had another beat since.
    pub async fn remove_workers(&self, beats: &[Beat]) -> Result<(), LedgerError> {
        if beats.is_empty() {
            return Ok(());
        }
        self.with("remove_workers", async move |client| {
            let names: Vec<&str> = beats.iter().map(|beat| beat.worker.as_str()).collect();
            let numbers: Vec<i64> = beats.iter().map(|beat| beat.beat).collect();
            let sql =
                "DELETE FROM workers USING unnest($1::text[], $2::bigint[]) AS gone (worker, beat)
                        WHERE workers.worker = gone.worker AND workers.beat = gone.beat";
            client.execute(sql, &[&names, &numbers]).await?;
            Ok(())
        })
        .await
    }
}
