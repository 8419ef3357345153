//! What a rebuild of a partition would do. Reads both stores and changes nothing.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;

use super::{RebuildError, Recovery, steps::orders_in};
use crate::{
    domain::{Epoch, Partition, ProductId, ProductWithSold},
    ledger::PartitionRow,
    redis::FenceReason,
};

/// The most products that are shown.
const SHOWN_MAX: usize = 100;

/// What the streams hold that the ledger does not.
#[derive(Default)]
struct Waiting {
    entries: u64,
    of_epoch: u64,
    by_product: BTreeMap<ProductId, i64>,
}

impl Recovery {
    /// What a rebuild of this partition would do now, in lines to be printed.
    pub async fn dry_run(
        &self,
        row: PartitionRow,
        fenced: Option<FenceReason>,
    ) -> Result<Vec<String>, RebuildError> {
        let PartitionRow { partition, epoch, status } = row;
        let status = match fenced {
            Some(reason) => format!("fenced ({reason})"),
            None => status.as_str().to_owned(),
        };
        let refused = self.check_ready(row).await.err();
        let meta = self.lifecycle.read_meta(partition).await?;
        let (redis_epoch, seq) = meta.map_or((epoch, 0), |meta| (meta.epoch, meta.seq));
        let next = Epoch(epoch.max(redis_epoch).0.saturating_add(1));
        let waiting = self.waiting(partition, redis_epoch).await?;
        let mut lines =
            vec![format!("{status} in epoch {epoch}; it would be open in epoch {next}")];
        if let Some(refused) = refused.map(anyhow::Error::from) {
            lines.push(format!("the rebuild cannot begin now: {refused:#}"));
        }
        lines.push(format!("{} entries would be stored or voided", waiting.entries));
        // What is missing of the count of Redis, or of the highest mark.
        let decided = self.ledger.decided_seqs(partition, redis_epoch).await?;
        let marked = self.ledger.lost(partition, Epoch(redis_epoch.0.saturating_add(1))).await?;
        let marked =
            marked.iter().find(|lost| lost.epoch == redis_epoch).map_or(0, |lost| lost.count);
        let lost = seq.saturating_sub(decided).max(marked).saturating_sub(waiting.of_epoch);
        lines.push(format!("{lost} accepted orders of epoch {redis_epoch} are in neither store"));
        let mut lines: Vec<_> =
            lines.into_iter().map(|line| format!("partition {partition}: {line}")).collect();
        let products = self.ledger.products_with_sold(partition).await?;
        for ProductWithSold { product, sold } in products.iter().take(SHOWN_MAX) {
            let id = &product.id;
            let now = self.lifecycle.stock_in_redis(partition, id).await?;
            let now = now.map_or("unknown".to_owned(), |now| now.to_string());
            let waiting = waiting.by_product.get(id).copied().unwrap_or(0);
            let afterwards = product.supply - sold - waiting;
            lines.push(format!("product {id}: stock {now} now, {afterwards} afterwards"));
        }
        if let Some(hidden @ 1..) = products.len().checked_sub(SHOWN_MAX) {
            lines.push(format!("partition {partition}: {hidden} more products are not shown"));
        }
        Ok(lines)
    }

    async fn waiting(&self, partition: Partition, epoch: Epoch) -> Result<Waiting, RebuildError> {
        let mut waiting = Waiting::default();
        self.read_undrained(partition, async |page| {
            let orders = orders_in(partition, page)?;
            let ids: Vec<Uuid> = orders.iter().map(|order| order.id.to_uuid()).collect();
            let decided = self.ledger.decided(&ids).await?;
            let decided: HashSet<Uuid> = decided.into_iter().map(|(id, _)| id).collect();
            for order in orders.into_iter().filter(|o| !decided.contains(&o.id.to_uuid())) {
                waiting.entries += 1;
                waiting.of_epoch += u64::from(order.id.epoch() == epoch);
                *waiting.by_product.entry(order.product).or_default() += 1;
            }
            Ok(())
        })
        .await?;
        Ok(waiting)
    }
}
