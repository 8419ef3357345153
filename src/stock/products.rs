//! Writes to Redis what the ledger granted and how products are offered: both absolute, so that any process may
//! repeat them (R3).

use std::borrow::Borrow;

use super::Stock;
use crate::{
    domain::{Partition, Product},
    redis::{RedisCallError, Script, script},
};

/// The most products per script call.
const BATCH_MAX: usize = 500;

script!(RESTOCK: () = "restock", include_str!("../../lua/restock.lua"), [Meta, Stock, Supply] {
    ["ok", _] => (),
});

script!(PUBLISH: () = "publish", include_str!("../../lua/publish.lua"), [Meta, Catalogue] {
    ["ok", _] => (),
});

impl Stock {
    /// Raises the stock of products of one partition by what was granted and Redis did not know.
    pub async fn restock(
        &self,
        partition: Partition,
        products: &[impl Borrow<Product> + Sync],
    ) -> Result<(), RedisCallError> {
        let supply = |product: &Product| [product.supply.to_string()];
        self.write(partition, &RESTOCK, products, supply).await
    }

    /// Publishes how products of one partition are offered.
    pub async fn publish(
        &self,
        partition: Partition,
        products: &[impl Borrow<Product> + Sync],
    ) -> Result<(), RedisCallError> {
        self.write(partition, &PUBLISH, products, Product::terms).await
    }

    /// Runs a script that takes each product's id and these values.
    async fn write<const N: usize>(
        &self,
        partition: Partition,
        script: &Script,
        products: &[impl Borrow<Product> + Sync],
        values: impl Fn(&Product) -> [String; N] + Send,
    ) -> Result<(), RedisCallError> {
        for chunk in products.chunks(BATCH_MAX) {
            let values: Vec<_> = chunk.iter().map(|product| values(product.borrow())).collect();
            let mut args = Vec::with_capacity(chunk.len() * (N + 1));
            for (product, values) in chunk.iter().zip(&values) {
                args.push(product.borrow().id.as_str());
                args.extend(values.iter().map(String::as_str));
            }
            self.partitions.run(partition, script, &args).await?;
        }
        Ok(())
    }
}
