//! The catalogue as last read: what a buyer's call is answered from, also while Postgres is away.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use crate::domain::{Product, ProductId};

/// Products in the order of their ids.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    products: BTreeMap<ProductId, Arc<Product>>,
    version: i64,
    highest: i64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { products: BTreeMap::new(), version: -1, highest: -1 }
    }
}

impl Snapshot {
    /// Every change up to this version is in it; -1 when none was read.
    pub(super) fn version(&self) -> i64 {
        self.version
    }

    /// The highest version of a product in it: above [`Self::version`] where an own change was not read with the others
    /// yet.
    pub(super) fn highest(&self) -> i64 {
        self.highest
    }

    /// This snapshot with everything that changed since its version.
    pub(super) fn with_changes(&self, changed: &[Arc<Product>]) -> Self {
        let mut next = self.with_products(changed);
        next.version = changed.iter().map(|product| product.version).fold(self.version, i64::max);
        next
    }

    /// This snapshot with some products as they are now; what else changed is still to be read.
    pub(super) fn with_products(&self, products: &[Arc<Product>]) -> Self {
        let mut next = self.clone();
        for product in products {
            let held = next.products.get(&product.id);
            if held.is_none_or(|held| held.version <= product.version) {
                next.highest = next.highest.max(product.version);
                next.products.insert(product.id.clone(), product.clone());
            }
        }
        next
    }

    /// Every product.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Product>> {
        self.products.values()
    }

    /// Those after an id, or all.
    pub(super) fn after(&self, after: Option<&ProductId>) -> impl Iterator<Item = &Arc<Product>> {
        let start = after.map_or(Unbounded, Excluded);
        self.products.range((start, Unbounded)).map(|(_, product)| product)
    }

    /// One of them.
    pub(super) fn get(&self, id: &ProductId) -> Option<&Arc<Product>> {
        self.products.get(id)
    }
}
