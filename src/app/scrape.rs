//! Reads the stores for a scrape. What cannot be read keeps its last value, and the scrape is answered in time.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::Stores;
use crate::{
    catalogue::Catalogue,
    domain::{Partition, ProductId},
    recovery::Recovery,
    tasks::tick,
    worker::Pauses,
};

/// Partitions or products that are read at the same time, over one connection.
const CONCURRENCY_MAX: usize = 64;
/// How long a store may take to answer a ping, and then to be read.
const STORE_TIMEOUT: Duration = Duration::from_millis(500);

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
    /// Sends metrics to the collector after each interval, and once more when the process ends.
    pub(super) async fn send(self, interval: Duration, stop: CancellationToken) {
        let metrics = &self.stores.metrics;
        while tick(interval, &stop).await {
            let read_and_send = async {
                self.read().await;
                metrics.send().await;
            };
            stop.run_until_cancelled(read_and_send).await;
        }
        // An unavailable collector does not delay the end of the process.
        drop(tokio::time::timeout(STORE_TIMEOUT, metrics.send()).await);
    }

    /// Reads both stores at the same time.
    pub(super) async fn read(&self) {
        tokio::join!(self.redis(), self.postgres());
    }

    async fn postgres(&self) {
        let (metrics, ledger) = (&self.stores.metrics, &self.stores.ledger);
        for (pool, reading) in self.stores.pools.connections() {
            metrics.set_pool(pool, reading);
        }
        let answers = tokio::time::timeout(STORE_TIMEOUT, ledger.probe()).await;
        metrics.set_store_up("postgres", matches!(answers, Ok(Ok(()))));
    }

    async fn redis(&self) {
        let partitions = self.stores.stock.partitions();
        let (metrics, fenced) = (&self.stores.metrics, self.recovery.status().snapshot().fenced);
        for partition in partitions.count().all() {
            let (fenced, paused) =
                (fenced.contains_key(&partition), self.pauses.is_paused(partition));
            metrics.set_partition_state(partition.number(), fenced, paused);
        }
        let answers = tokio::time::timeout(STORE_TIMEOUT, partitions.ping()).await;
        let up = matches!(answers, Ok(Ok(())));
        // What is not read in time keeps its last value. The only Redis counts as down then; of several masters, another
        // one has answered.
        let in_time =
            up && tokio::time::timeout(STORE_TIMEOUT, self.streams_and_stock()).await.is_ok();
        metrics.set_store_up("redis", in_time || up && partitions.masters().len() > 1);
    }

    async fn streams_and_stock(&self) {
        let partitions = self.stores.deployment.partitions.all();
        let depths = stream::iter(partitions.map(|partition| self.partition(partition)));
        let products = self.products.iter().cloned();
        let stock = stream::iter(products.map(|product| self.product(product)));
        let depths = depths.buffer_unordered(CONCURRENCY_MAX).collect::<()>();
        let stock = stock.buffer_unordered(CONCURRENCY_MAX).collect::<()>();
        tokio::join!(depths, stock);
    }

    async fn partition(&self, partition: Partition) {
        if let Ok(reading) = self.stores.streams.depth(partition).await {
            self.stores.metrics.set_partition(partition.number(), &reading);
        }
    }

    async fn product(&self, product: ProductId) {
        if let Ok(Some(listed)) = self.catalogue.get(&product).await
            && let Some(stock) = listed.stock
        {
            self.stores.metrics.set_product_stock(product.as_str(), stock);
        }
    }
}
