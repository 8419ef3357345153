//! The catalogue as last read. It answers buyers' calls, also while Postgres is unavailable.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
};

use crate::domain::{Product, ProductId};

/// Products in the order of their ids.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) products: BTreeMap<ProductId, Arc<Product>>,
    /// Every change up to this version is included; -1 when none was read.
    pub(super) version: i64,
    /// The highest version of a product. It is above `version` while a change of this process is included and the
    /// changes of others before it are not read yet.
    pub(super) highest: i64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { products: BTreeMap::new(), version: -1, highest: -1 }
    }
}

impl Snapshot {
    /// This snapshot with everything that changed since its version.
    pub(super) fn with_changes(&self, changed: &[Arc<Product>]) -> Self {
        let mut next = self.with_products(changed);
        next.version = changed.iter().map(|product| product.version).fold(self.version, i64::max);
        next
    }

    /// This snapshot with some products as they are now; other changes are still to be read.
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

    /// The products after an id, or all.
    pub(super) fn after(&self, after: Option<&ProductId>) -> impl Iterator<Item = &Arc<Product>> {
        let start = after.map_or(Unbounded, Excluded);
        self.products.range((start, Unbounded)).map(|(_, product)| product)
    }
}
