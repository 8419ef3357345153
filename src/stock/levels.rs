//! Live stock. A reader joins a read that has not been sent yet, never one under way: a buyer must see
//! the stock after its own purchase. However many ask, Redis answers one read at a time a partition.

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
    redis::{FenceError, Partitions, Script},
    tasks::Tasks,
};

/// Available units by product; a product that Redis does not know is absent.
pub type Levels = Arc<HashMap<ProductId, i64>>;

/// Most products a script call.
const MAX_PRODUCTS: usize = 1000;

type Question = Vec<ProductId>;

/// Reads the stock of one partition.
pub(super) struct LevelsReader {
    batcher: Batcher<Question, Result<Levels, FenceError>>,
}

impl LevelsReader {
    pub(super) fn start(partitions: Partitions, partition: Partition, tasks: &Tasks) -> Self {
        let script = Arc::new(Script::new("levels", include_str!("../../lua/levels.lua")));
        let limits = Limits { batch: 1024, queue: 8192 };
        let batcher = Batcher::start(tasks, limits, move |batch: Vec<Question>| {
            let (partitions, script) = (partitions.clone(), script.clone());
            async move {
                let askers = batch.len();
                let products: BTreeSet<ProductId> = batch.into_iter().flatten().collect();
                let levels = read(&partitions, partition, &script, products).await;
                vec![levels; askers]
            }
        });
        Self { batcher }
    }
}

async fn read(
    partitions: &Partitions,
    partition: Partition,
    script: &Script,
    products: BTreeSet<ProductId>,
) -> Result<Levels, FenceError> {
    let keys = [partitions.keys().meta(partition), partitions.keys().stock(partition)];
    let products: Vec<ProductId> = products.into_iter().collect();
    let mut levels = HashMap::with_capacity(products.len());
    for chunk in products.chunks(MAX_PRODUCTS) {
        let args: Vec<&str> = chunk.iter().map(ProductId::as_str).collect();
        let answer = partitions.run(partition, script, &keys, &args).await?;
        if answer.len() != chunk.len() + 1 {
            return Err(FenceError::Malformed(answer));
        }
        for (product, level) in chunk.iter().zip(&answer[1..]) {
            if level.is_empty() {
                continue;
            }
            let units = level.parse().map_err(|_| FenceError::Malformed(vec![level.clone()]))?;
            levels.insert(product.clone(), units);
        }
    }
    Ok(Arc::new(levels))
}

impl Stock {
    /// The stock of products of one partition (at least of those asked for), not older than this call.
    ///
    /// # Errors
    ///
    /// As [`Partitions::run`], or when too many ask.
    pub async fn levels(
        &self,
        partition: Partition,
        products: Vec<ProductId>,
    ) -> Result<Levels, StockError> {
        Ok(self.levels[partition.index()].batcher.ask(products).await??)
    }
}
