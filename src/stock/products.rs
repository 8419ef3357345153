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

script!(SET_SUPPLY: () = "set_supply", include_str!("../../lua/set_supply.lua"),
    [Meta, Stock, Supply] {
    ["ok", _] => (),
});

script!(WRITE_TERMS: () = "write_terms", include_str!("../../lua/write_terms.lua"), [Meta, Catalogue] {
    ["ok", _] => (),
});

impl Stock {
    /// Sets the supply of products of one partition to what was granted, and raises their stock by the difference.
    pub async fn set_supply(
        &self,
        partition: Partition,
        products: &[impl Borrow<Product> + Sync],
    ) -> Result<(), RedisCallError> {
        let supply = |product: &Product| [product.supply.to_string()];
        self.write(partition, &SET_SUPPLY, products, supply).await
    }

    /// Writes the terms of the sale of products of one partition.
    pub async fn write_terms(
        &self,
        partition: Partition,
        products: &[impl Borrow<Product> + Sync],
    ) -> Result<(), RedisCallError> {
        self.write(partition, &WRITE_TERMS, products, Product::redis_fields).await
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
