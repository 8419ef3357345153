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
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { products: BTreeMap::new(), version: -1 }
    }
}

impl Snapshot {
    /// The highest version in it; -1 when it is empty.
    pub(super) fn version(&self) -> i64 {
        self.version
    }

    /// This snapshot with changes.
    pub(super) fn with(&self, changed: Vec<Product>) -> Self {
        let mut next = self.clone();
        for product in changed {
            next.version = next.version.max(product.version);
            next.products.insert(product.id.clone(), Arc::new(product));
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
