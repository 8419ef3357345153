//! What the ledger granted and offers, told to Redis: both absolute, both repeatable by anyone (R3).

use super::Stock;
use crate::{
    domain::{Partition, Product, ProductId, Sale},
    redis::{FenceError, expect},
};

/// Most products a script call.
const MAX_PRODUCTS: usize = 500;

/// Units ever granted to a product.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The product.
    pub product: ProductId,
    /// Its supply.
    pub supply: i64,
}

/// How a product is offered.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The product.
    pub product: ProductId,
    /// Applies only over a lower one.
    pub version: i64,
    /// The terms.
    pub sale: Sale,
}

impl From<&Product> for Grant {
    fn from(product: &Product) -> Self {
        Self { product: product.id.clone(), supply: product.supply }
    }
}

impl From<&Product> for Offer {
    fn from(product: &Product) -> Self {
        Self { product: product.id.clone(), version: product.version, sale: product.sale.clone() }
    }
}

impl Stock {
    /// Raises the stock of products of one partition by what was granted and Redis did not know.
    ///
    /// # Errors
    ///
    /// As [`crate::redis::Partitions::run`]; repeat it.
    pub async fn restock(&self, partition: Partition, grants: &[Grant]) -> Result<(), FenceError> {
        let keys = self.partitions.keys();
        let keys = [keys.meta(partition), keys.stock(partition), keys.supply(partition)];
        for chunk in grants.chunks(MAX_PRODUCTS) {
            let words: Vec<String> = chunk
                .iter()
                .flat_map(|grant| [grant.product.to_string(), grant.supply.to_string()])
                .collect();
            let args: Vec<&str> = words.iter().map(String::as_str).collect();
            let answer =
                self.partitions.run(partition, &self.scripts.restock, &keys, &args).await?;
            expect(answer, &["ok"])?;
        }
        Ok(())
    }

    /// Publishes how products of one partition are offered.
    ///
    /// # Errors
    ///
    /// As [`crate::redis::Partitions::run`]; repeat it.
    pub async fn publish(&self, partition: Partition, offers: &[Offer]) -> Result<(), FenceError> {
        let keys =
            [self.partitions.keys().meta(partition), self.partitions.keys().catalogue(partition)];
        for chunk in offers.chunks(MAX_PRODUCTS) {
            let words: Vec<String> = chunk.iter().flat_map(words).collect();
            let args: Vec<&str> = words.iter().map(String::as_str).collect();
            let answer =
                self.partitions.run(partition, &self.scripts.publish, &keys, &args).await?;
            expect(answer, &["ok"])?;
        }
        Ok(())
    }
}

pub(super) fn words(offer: &Offer) -> [String; 6] {
    let sale = &offer.sale;
    [
        offer.product.to_string(),
        offer.version.to_string(),
        sale.status.as_str().to_owned(),
        sale.per_user_limit.unwrap_or(0).to_string(),
        // A moment before 1970 has passed as surely as 1970 itself; 0 would mean none.
        sale.opens_at_ms.map_or(0, |at| at.max(1)).to_string(),
        sale.closes_at_ms.map_or(0, |at| at.max(1)).to_string(),
    ]
}
