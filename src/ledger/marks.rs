//! The highest seq that each gateway saw of an epoch (R10), and the accepted orders that are in no store.

use std::collections::BTreeMap;

use tokio_postgres::types::ToSql;

use super::{
    Ledger, LedgerError,
    covered::{Covered, decided_in_ranges},
    partitions::epoch as epoch_of,
    pool::{from_count, to_bigint},
};
use crate::domain::{Epoch, Lost, Partition};

/// The highest seq that a gateway saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the types describe the others")]
pub struct Mark {
    pub partition: Partition,
    pub epoch: Epoch,
    /// `None` while the gateway accepts reservations and has not reported.
    pub seq: Option<u64>,
}

impl Ledger {
    /// Records the marks of a gateway. A mark lower than the recorded one changes nothing.
    /// After an error, repeat it.
    pub async fn report_marks(&self, gateway: &str, marks: &[Mark]) -> Result<(), LedgerError> {
        if marks.is_empty() {
            return Ok(());
        }
        let partitions: Vec<i32> = marks.iter().map(|m| i32::from(m.partition.number())).collect();
        let epochs: Vec<i64> = marks.iter().map(|m| i64::from(m.epoch.0)).collect();
        let seqs: Vec<i64> = marks.iter().map(|mark| mark.seq.map_or(-1, to_bigint)).collect();
        self.with("report_marks", async move |client| {
            let sql = "INSERT INTO reported_marks (gateway, partition, epoch, seq)
                       SELECT $1, * FROM unnest($2::int[], $3::bigint[], $4::bigint[])
                           ON CONFLICT (gateway, partition, epoch) DO UPDATE
                          SET seq = excluded.seq, at = excluded.at
                        WHERE reported_marks.seq < excluded.seq";
            client.execute(sql, &[&gateway, &partitions, &epochs, &seqs]).await?;
            Ok(())
        })
        .await
    }

    /// The last epoch before this one in which a gateway accepted reservations, and how many gateways have not
    /// reported their highest seq of it.
    pub async fn unreported(
        &self,
        partition: Partition,
        before: Epoch,
    ) -> Result<Option<(Epoch, i64)>, LedgerError> {
        self.with("unreported_marks", async move |client| {
            let sql = "SELECT epoch, count(*) FILTER (WHERE seq < 0) FROM reported_marks
                        WHERE partition = $1 AND epoch < $2
                        GROUP BY epoch ORDER BY epoch DESC LIMIT 1";
            let number = i32::from(partition.number());
            let row = client.query_opt(sql, &[&number, &i64::from(before.0)]).await?;
            row.map(|row| Ok((epoch_of(row.get(0))?, row.get(1)))).transpose()
        })
        .await
    }

    /// The orders lost in epochs that have ended: those before the last one in which the partition was open.
    /// While the partition is closed, that last one may still be drained. What a checkpoint covers is not read.
    pub async fn lost_of_ended(
        &self,
        partition: Partition,
        covered: &Covered,
    ) -> Result<Vec<Lost>, LedgerError> {
        let opened = self.with("lost_of_ended_epochs", async move |client| {
            let sql = "SELECT opened FROM partitions WHERE partition = $1";
            let row = client.query_one(sql, &[&i32::from(partition.number())]).await?;
            epoch_of(row.try_get(0)?)
        });
        let opened = opened.await?;
        self.lost_beside(partition, opened, covered).await
    }

    /// The orders that were accepted in the epochs before this one and are in no store. No order of these
    /// epochs may be in flight any more (R8).
    pub async fn lost(
        &self,
        partition: Partition,
        before: Epoch,
    ) -> Result<Vec<Lost>, LedgerError> {
        let covered = self.covered(partition).await?;
        self.lost_beside(partition, before, &covered).await
    }

    async fn lost_beside(
        &self,
        partition: Partition,
        before: Epoch,
        covered: &Covered,
    ) -> Result<Vec<Lost>, LedgerError> {
        let decided = decided_in_ranges("r.epoch, r.seq");
        let sql = format!(
            "WITH marks AS (
                SELECT epoch, max(seq) AS highest, bool_and(seq >= 0) AS exact
                  FROM reported_marks WHERE partition = $5 AND epoch < $6 GROUP BY epoch),
            rows AS (
                SELECT epoch, count(DISTINCT seq) AS known, max(seq) AS highest
                  FROM {decided} WHERE epoch < $6 GROUP BY epoch)
            SELECT epoch, greatest(marks.highest, rows.highest), coalesce(known, 0), coalesce(exact, false)
              FROM marks FULL JOIN rows USING (epoch)"
        );
        let (number, before) = (i32::from(partition.number()), i64::from(before.0));
        let [a, b, c, d] = covered.other_rows();
        let mut tallies = self
            .with_maintenance("lost_reservations", async move |client| {
                let args: [&(dyn ToSql + Sync); 6] = [&a, &b, &c, &d, &number, &before];
                let rows = client.query(&sql, &args).await?;
                let tallies = rows.iter().map(|row| {
                    let (highest, known, exact) = (row.get(1), row.get(2), row.get(3));
                    (row.get(0), Tally { highest, known, exact })
                });
                Ok(tallies.collect::<BTreeMap<i64, Tally>>())
            })
            .await?;
        for range in covered.ranges().iter().filter(|range| range.epoch < before) {
            let tally = tallies.entry(range.epoch).or_default();
            tally.known += range.count();
            tally.highest = tally.highest.max(range.last);
        }
        let lost = tallies.into_iter().filter(|(_, tally)| tally.highest > tally.known);
        lost.map(|(epoch, Tally { highest, known, exact })| {
            let count = from_count(highest - known);
            Ok(Lost { partition, epoch: epoch_of(epoch)?, count, exact })
        })
        .collect()
    }
}

/// What is known of an epoch.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    /// The highest seq of marks and rows.
    highest: i64,
    /// How many seqs have a row.
    known: i64,
    /// Whether every gateway has reported its mark.
    exact: bool,
}
