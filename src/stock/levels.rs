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
    redis::{FenceError, Partitions, script},
    tasks::Tasks,
};

/// Available units by product; a product that Redis does not know is absent.
pub type Levels = Arc<HashMap<ProductId, i64>>;

/// The most products per script call.
const BATCH_MAX: usize = 1000;

type Question = Vec<ProductId>;

script!(LEVELS: Vec<Option<i64>> = "levels", include_str!("../../lua/levels.lua"), [Meta, Stock] {
    ["ok", ref levels @ ..] => levels.iter().map(|level| parse_level(level)).collect::<Option<_>>()?,
});

fn parse_level(level: &str) -> Option<Option<i64>> {
    if level.is_empty() { Some(None) } else { level.parse().ok().map(Some) }
}

/// Reads the stock of one partition.
pub(super) struct LevelsReader {
    batcher: Batcher<Question, Result<Levels, FenceError>>,
}

impl LevelsReader {
    pub(super) fn start(partitions: Partitions, partition: Partition, tasks: &Tasks) -> Self {
        let limits = Limits { batch: 1024, queue: 8192 };
        let batcher = Batcher::start(tasks, limits, move |batch: Vec<Question>| {
            let partitions = partitions.clone();
            async move {
                let readers = batch.len();
                let products: BTreeSet<ProductId> = batch.into_iter().flatten().collect();
                let levels = read(&partitions, partition, products).await;
                vec![levels; readers]
            }
        });
        Self { batcher }
    }
}

async fn read(
    partitions: &Partitions,
    partition: Partition,
    products: BTreeSet<ProductId>,
) -> Result<Levels, FenceError> {
    let products: Vec<ProductId> = products.into_iter().collect();
    let mut found = HashMap::with_capacity(products.len());
    for chunk in products.chunks(BATCH_MAX) {
        let args: Vec<&str> = chunk.iter().map(ProductId::as_str).collect();
        let levels = partitions.run(partition, &LEVELS, &args).await?;
        if levels.len() != chunk.len() {
            let reply = format!("{} levels for {} products", levels.len(), chunk.len());
            return Err(FenceError::Malformed(vec![reply]));
        }
        let levels = chunk.iter().zip(levels);
        found.extend(levels.filter_map(|(product, level)| Some((product.clone(), level?))));
    }
    Ok(Arc::new(found))
}

impl Stock {
    /// The stock of products of one partition (at least of the requested ones), not older than this call.
    ///
    /// # Errors
    ///
    /// As [`Partitions::run`], or when too many requests wait.
    pub async fn levels(
        &self,
        partition: Partition,
        products: Vec<ProductId>,
    ) -> Result<Levels, StockError> {
        Ok(self.levels[partition.index()].batcher.ask(products).await??)
    }
}
