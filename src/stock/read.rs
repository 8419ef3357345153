//! Live stock. A reader joins a read that has not been sent yet, never one under way: a buyer must see
//! the stock after its own purchase. Redis answers one read at a time per partition, however many readers wait.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Stock, StockError,
    batcher::{Batcher, Limits},
};
use crate::{
    domain::{Partition, ProductId},
    redis::{Partitions, RedisCallError, script},
    tasks::Tasks,
};

/// Available units by product; a product that Redis does not know is absent.
pub type StockByProduct = Arc<HashMap<ProductId, i64>>;

/// Reads the stock of one partition.
pub(super) type Reader = Batcher<Vec<ProductId>, Result<StockByProduct, RedisCallError>>;

/// The most products per script call.
const BATCH_MAX: usize = 1000;

script!(READ_STOCK: Vec<Option<i64>> = "read_stock", include_str!("../../lua/read_stock.lua"), [Meta, Stock] {
    ["ok", ref stock @ ..] => stock.iter().map(|units| parse(units)).collect::<Option<_>>()?,
});

fn parse(units: &str) -> Option<Option<i64>> {
    if units.is_empty() { Some(None) } else { units.parse().ok().map(Some) }
}

pub(super) fn start(partitions: Partitions, partition: Partition, tasks: &Tasks) -> Reader {
    let limits = Limits { batch: 1024, queue: 8192 };
    Batcher::start(tasks, limits, move |batch: Vec<Vec<ProductId>>| {
        let partitions = partitions.clone();
        async move {
            let readers = batch.len();
            let products: BTreeSet<ProductId> = batch.into_iter().flatten().collect();
            vec![read(&partitions, partition, products).await; readers]
        }
    })
}

async fn read(
    partitions: &Partitions,
    partition: Partition,
    products: BTreeSet<ProductId>,
) -> Result<StockByProduct, RedisCallError> {
    let products: Vec<ProductId> = products.into_iter().collect();
    let mut found = HashMap::with_capacity(products.len());
    for chunk in products.chunks(BATCH_MAX) {
        let args: Vec<&str> = chunk.iter().map(ProductId::as_str).collect();
        let stock = partitions.run(partition, &READ_STOCK, &args).await?;
        if stock.len() != chunk.len() {
            let reply = format!("the stock of {} products for {}", stock.len(), chunk.len());
            return Err(RedisCallError::Malformed(vec![reply]));
        }
        let stock = chunk.iter().zip(stock);
        found.extend(stock.filter_map(|(product, units)| Some((product.clone(), units?))));
    }
    Ok(Arc::new(found))
}

impl Stock {
    /// The stock of products of one partition (at least of the requested ones), not older than this call.
    pub async fn read(
        &self,
        partition: Partition,
        products: Vec<ProductId>,
    ) -> Result<StockByProduct, StockError> {
        Ok(self.readers[partition.index()].call(products).await??)
    }
}
