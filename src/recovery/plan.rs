//! What a rebuild of a partition would do: read from both stores, nothing is changed.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use uuid::Uuid;

use super::{RebuildError, Recovery, rebuild::orders};
use crate::{
    domain::{Epoch, Partition, ProductId},
    ledger::{PartitionRow, PartitionStatus},
    redis::FenceReason,
};

/// Most products that are shown.
const MAX_SHOWN: usize = 100;

/// A product's stock in Redis, now and after a rebuild.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedStock {
    /// Which.
    pub product: ProductId,
    /// Units available now, if Redis knows the product.
    pub now: Option<i64>,
    /// Units available afterwards, if every entry is stored.
    pub afterwards: i64,
}

/// What a rebuild would do.
#[derive(Debug, Clone)]
pub struct Plan {
    partition: Partition,
    status: PartitionStatus,
    epoch: Epoch,
    /// Why it is fenced, if it is.
    fenced: Option<FenceReason>,
    /// Why a rebuild would be refused now.
    refused: Option<String>,
    /// The epoch that it would be open in.
    next: Epoch,
    /// Entries in the streams that the ledger does not hold.
    to_store: u64,
    /// Accepts of the epoch that Redis holds, and how many of them are in neither store.
    lost: (Epoch, u64),
    stock: Vec<PlannedStock>,
}

/// What the streams hold that the ledger does not.
#[derive(Default)]
struct Waiting {
    entries: u64,
    of_epoch: u64,
    by_product: BTreeMap<ProductId, i64>,
}

impl Recovery {
    /// What a rebuild of this partition would do now.
    ///
    /// # Errors
    ///
    /// When a store does not answer, or an entry cannot be read.
    pub async fn plan(
        &self,
        row: PartitionRow,
        fenced: Option<FenceReason>,
    ) -> Result<Plan, RebuildError> {
        let partition = row.partition;
        let refused =
            self.check_ready(row).await.err().map(|error| super::mending::error_chain(&error));
        let held = self.lifecycle.held(partition).await?;
        let (held_epoch, seq) = held.map_or((row.epoch, 0), |held| (held.epoch, held.seq));
        let waiting = self.waiting(partition, held_epoch).await?;
        let settled = self.ledger.settled_seqs(partition, held_epoch).await?;
        let marked = self.ledger.lost(partition, Epoch(held_epoch.0.saturating_add(1))).await?;
        let marked =
            marked.iter().find(|lost| lost.epoch == held_epoch).map_or(0, |lost| lost.count);
        let lost = seq.saturating_sub(settled).max(marked).saturating_sub(waiting.of_epoch);
        let mut stock = Vec::new();
        let remaining = self.ledger.remaining(partition).await?;
        for remaining in remaining {
            let product = remaining.product.id;
            let now = self.lifecycle.held_stock(partition, &product).await?;
            let waits = waiting.by_product.get(&product).copied().unwrap_or(0);
            let afterwards = remaining.product.supply - remaining.sold - waits;
            stock.push(PlannedStock { product, now, afterwards });
        }
        Ok(Plan {
            partition,
            status: row.status,
            epoch: row.epoch,
            fenced,
            refused,
            next: Epoch(row.epoch.max(held_epoch).0.saturating_add(1)),
            to_store: waiting.entries,
            lost: (held_epoch, lost),
            stock,
        })
    }

    async fn waiting(&self, partition: Partition, epoch: Epoch) -> Result<Waiting, RebuildError> {
        let mut waiting = Waiting::default();
        self.survey(partition, async |page| {
            let orders = orders(partition, page)?;
            let ids: Vec<Uuid> = orders.iter().map(|order| order.id.to_uuid()).collect();
            let settled = self.ledger.settled(&ids).await?;
            let settled: HashSet<Uuid> = settled.into_iter().map(|(id, _)| id).collect();
            for order in orders.into_iter().filter(|o| !settled.contains(&o.id.to_uuid())) {
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, epoch, next, to_store, lost: (of, lost), .. } = self;
        let status = match (self.status, self.fenced) {
            (PartitionStatus::New, _) => "new".to_owned(),
            (_, Some(reason)) => format!("fenced ({reason})"),
            (PartitionStatus::Open, None) => "open".to_owned(),
            (PartitionStatus::Closed, None) => "closed".to_owned(),
        };
        write!(
            f,
            "partition {partition}: {status} in epoch {epoch}; it would be open in epoch {next}"
        )?;
        if let Some(refused) = &self.refused {
            write!(f, "\npartition {partition}: a rebuild would be refused now: {refused}")?;
        }
        write!(f, "\npartition {partition}: {to_store} entries would be stored or voided")?;
        write!(
            f,
            "\npartition {partition}: {lost} accepted orders of epoch {of} are in neither store"
        )?;
        for PlannedStock { product, now, afterwards } in self.stock.iter().take(MAX_SHOWN) {
            let now = now.map_or("no".to_owned(), |now| now.to_string());
            write!(f, "\nproduct {product}: {now} units for sale now, {afterwards} afterwards")?;
        }
        let hidden = self.stock.len().saturating_sub(MAX_SHOWN);
        if hidden > 0 {
            write!(f, "\npartition {partition}: {hidden} more products are not shown")?;
        }
        Ok(())
    }
}
