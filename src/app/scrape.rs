//! The stores, read for a scrape. What cannot be read keeps its last value, and the scrape is answered in time.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::Stores;
use crate::{
    catalogue::Catalogue, domain::ProductId, recovery::Recovery, stream::Depth,
    telemetry::PartitionReading, worker::Pauses,
};

/// How long a store may take to be read.
const LIMIT: Duration = Duration::from_millis(500);

/// What a scrape reads.
#[derive(Clone)]
pub(super) struct Scrape {
    pub(super) stores: Stores,
    pub(super) catalogue: Catalogue,
    pub(super) recovery: Recovery,
    pub(super) pauses: Arc<Pauses>,
    pub(super) products: Arc<[ProductId]>,
}

impl Scrape {
    /// Reads both stores side by side.
    pub(super) async fn read(&self) {
        tokio::join!(self.redis(), self.postgres());
    }

    async fn postgres(&self) {
        let (metrics, ledger) = (self.stores.stock.partitions().metrics(), &self.stores.ledger);
        metrics.pool(ledger.connections());
        let answers = tokio::time::timeout(LIMIT, ledger.ping()).await;
        metrics.store_up("postgres", matches!(answers, Ok(Ok(()))));
    }

    async fn redis(&self) {
        let partitions = self.stores.stock.partitions();
        let answers = tokio::time::timeout(LIMIT, partitions.ping()).await;
        let up = matches!(answers, Ok(Ok(())));
        partitions.metrics().store_up("redis", up);
        if up {
            // Late is as good as away: the rest keeps its last value.
            drop(tokio::time::timeout(LIMIT, self.partitions()).await);
        }
    }

    async fn partitions(&self) {
        let metrics = self.stores.stock.partitions().metrics();
        let fenced = self.recovery.seen_fenced();
        for partition in self.stores.deployment.partitions.all() {
            let Ok(depth) = self.stores.streams.depth(partition).await else { return };
            let reading = PartitionReading {
                orders: depth.orders,
                pending: depth.pending,
                lag: depth.lag,
                oldest_seconds: waited(&depth).as_secs_f64(),
                dead: depth.dead,
                fenced: fenced.contains(&partition),
                paused: self.pauses.is_paused(partition),
            };
            metrics.partition(partition.number(), reading);
        }
        for product in self.products.iter() {
            if let Ok(Some(listed)) = self.catalogue.get(product).await
                && let Some(stock) = listed.stock
            {
                metrics.product_stock(product.as_str(), stock);
            }
        }
    }
}

/// How long the oldest order has waited, by this machine's clock against that of Redis.
fn waited(depth: &Depth) -> Duration {
    let now_ms = Timestamp::now().as_millisecond();
    let waited = depth.oldest_ms.map_or(0, |at| now_ms.saturating_sub(at));
    Duration::from_millis(u64::try_from(waited).unwrap_or(0))
}
