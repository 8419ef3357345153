//! Products: created and changed in the ledger first, then sent to Redis; listed with live stock.
//!
//! Must never: ask Postgres on a buyer's call, or show a stock that could not be read.

mod snapshot;

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::future::{join_all, try_join_all};
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use self::snapshot::Snapshot;
use crate::{
    domain::{NewProduct, Partition, Product, ProductId, ProductStatus},
    ledger::{Created, Ledger, LedgerError, Restock, Restocked, SaleChange, UpdateError},
    redis::RedisCallError,
    stock::{Stock, StockError},
    tasks::tick,
};

/// How often the changes of other processes are read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How long a list waits for the stock of its products: a slow Redis must not make it slow.
const STOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// A product and its stock; no stock while its partition recovers, or Redis is unavailable or slow.
#[derive(Debug, Clone)]
pub struct ProductWithStock {
    /// The product.
    pub product: Arc<Product>,
    /// Units that can be sold now.
    pub stock: Option<i64>,
}

/// Why a change does not take effect yet, or may not have been recorded.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger has the change, Redis does not: it is sent again by each refresh.
    #[error(
        "the change is recorded in Postgres but not applied to Redis yet; it is applied when the partition is \
         open and Redis answers"
    )]
    NotAppliedYet(#[source] RedisCallError),
}

/// What was found when the changes were read from the ledger.
struct ChangesRead {
    /// The ledger has lost changes, so every product was read again.
    lost_changes: bool,
    /// There are products without a version.
    versions_missing: bool,
}

/// The catalogue of this process. Calls fail when the ledger does not answer; those that only read never ask it.
#[derive(Clone)]
pub struct Catalogue {
    ledger: Ledger,
    stock: Stock,
    snapshot: Arc<ArcSwap<Snapshot>>,
    /// By partition: every version up to this one was sent to Redis. Locked during a refresh, for which an operator's
    /// change does not wait.
    sent: Arc<Mutex<Vec<i64>>>,
    /// When the ledger was last read.
    read: Arc<ArcSwap<Instant>>,
}

impl Catalogue {
    /// An empty catalogue: `refresh` fills it.
    pub fn new(ledger: Ledger, stock: Stock) -> Self {
        let sent = vec![-1; usize::from(stock.partitions().count().get())];
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let read = Arc::new(ArcSwap::from_pointee(Instant::now()));
        Self { ledger, stock, snapshot, sent: Arc::new(Mutex::new(sent)), read }
    }

    /// Reads what changed in the ledger and sends it to Redis, also what another process recorded before it crashed
    /// (R3). The next refresh tries again where Redis cannot be reached.
    pub async fn refresh(&self) -> Result<(), LedgerError> {
        let mut sent = self.sent.lock().await;
        let read = self.read_changes(&mut sent).await?;
        let snapshot = self.snapshot.load_full();
        let count = self.stock.partitions().count();
        if sent.iter().any(|sent| *sent != snapshot.version) {
            let mut changes: HashMap<Partition, Vec<Arc<Product>>> = HashMap::new();
            for product in snapshot.products.values() {
                let partition = count.of(&product.id);
                if product.version > sent[partition.index()] {
                    changes.entry(partition).or_default().push(product.clone());
                }
            }
            for partition in count.all() {
                // Changes of other processes are read also while many products are sent.
                if self.age() > POLL_INTERVAL && self.read_changes(&mut sent).await?.lost_changes {
                    break;
                }
                let products = changes.remove(&partition).unwrap_or_default();
                // Otherwise the partition is fenced or Redis does not answer, which is reported elsewhere.
                if self.send(partition, &products).await.is_ok() {
                    sent[partition.index()] = snapshot.version;
                }
            }
        }
        if read.versions_missing {
            self.ledger.assign_missing_versions().await?;
        }
        Ok(())
    }

    async fn read_changes(&self, sent: &mut [i64]) -> Result<ChangesRead, LedgerError> {
        let Snapshot { version: seen, highest, .. } = **self.snapshot.load();
        let changes = self.ledger.products_since(seen, highest).await?;
        self.read.store(Arc::new(Instant::now()));
        let changed: Vec<_> = changes.products.into_iter().map(Arc::new).collect();
        let newest = changed.iter().map(|product| product.version).max();
        let lost_changes = newest.is_some_and(|newest| newest < highest);
        if lost_changes {
            tracing::warn!(
                seen = highest,
                "Postgres lost changes of products: all products are read again"
            );
            sent.fill(-1);
            self.snapshot.store(Arc::new(Snapshot::default().with_changes(&changed)));
        } else if !changed.is_empty() {
            self.snapshot.rcu(|now| now.with_changes(&changed));
        }
        Ok(ChangesRead { lost_changes, versions_missing: changes.versions_missing })
    }

    /// How long ago the changes of other processes were read.
    pub fn age(&self) -> Duration {
        self.read.load().elapsed()
    }

    /// Sends these products to Redis as the ledger has them now, and nothing else: a stop does not wait until an import
    /// has been sent.
    async fn send_changed<'a>(
        &self,
        changed: impl IntoIterator<Item = &'a ProductId>,
    ) -> Result<(), ChangeError> {
        let ids: Vec<&str> = changed.into_iter().map(ProductId::as_str).collect();
        let products = self.ledger.products(&ids).await?;
        let products: Vec<_> = products.into_iter().map(Arc::new).collect();
        let held = self.snapshot.rcu(|now| now.with_products(&products));
        let lost_changes = |product: &Arc<Product>| {
            held.products.get(&product.id).is_some_and(|held| held.version > product.version)
        };
        if products.iter().any(lost_changes) {
            // The ledger lost changes, or another process made one just now. A refresh is right in both cases.
            self.refresh().await?;
        }
        let count = self.stock.partitions().count();
        let mut by_partition: HashMap<Partition, Vec<Arc<Product>>> = HashMap::new();
        for product in products {
            by_partition.entry(count.of(&product.id)).or_default().push(product);
        }
        let sends = by_partition.iter().map(|(partition, changed)| self.send(*partition, changed));
        let sent = join_all(sends).await;
        sent.into_iter().collect::<Result<(), _>>().map_err(ChangeError::NotAppliedYet)
    }

    /// Sends the units first, so that a product that is on offer has its stock.
    async fn send(
        &self,
        partition: Partition,
        products: &[Arc<Product>],
    ) -> Result<(), RedisCallError> {
        if products.is_empty() {
            return Ok(());
        }
        self.stock.set_supply(partition, products).await?;
        self.stock.write_terms(partition, products).await
    }

    /// Refreshes until stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut healthy = true;
        while tick(POLL_INTERVAL, &stop).await {
            let refreshed = self.refresh().await;
            if let (Err(error), true) = (&refreshed, healthy) {
                tracing::warn!(
                    error = error as &dyn std::error::Error,
                    "the catalogue cannot be refreshed; changes of products do not take effect"
                );
            }
            healthy = refreshed.is_ok();
        }
    }

    /// Creates products, all or none; see [`Ledger::create_products`].
    pub async fn create(
        &self,
        products: &[NewProduct],
        actor: &str,
    ) -> Result<Created, ChangeError> {
        let count = self.stock.partitions().count();
        let created = self.ledger.create_products(products, count, actor).await?;
        if matches!(created, Created::Done { .. }) {
            // Products that existed, too: an earlier call may have ended before they were sent.
            self.send_changed(products.iter().map(|product| &product.id)).await?;
        }
        Ok(created)
    }

    /// Changes how a product is offered. The outer error is that of the change itself; the inner one means that it was
    /// recorded and has not taken effect yet.
    pub async fn update(
        &self,
        id: &ProductId,
        change: &SaleChange,
    ) -> Result<Result<Product, ChangeError>, UpdateError> {
        let product = self.ledger.update_product(id, change).await?;
        Ok(self.send_changed([id]).await.map(|()| product))
    }

    /// Grants units, once per request id: after an error, repeat it with the same one.
    pub async fn restock(&self, restock: &Restock) -> Result<Restocked, ChangeError> {
        let restocked = self.ledger.restock(restock).await?;
        if matches!(restocked, Restocked::Added(_) | Restocked::AlreadyAdded(_)) {
            self.send_changed([&restock.product]).await?;
        }
        Ok(restocked)
    }

    /// At most `size` products that are offered, in the order of their ids, after `after`; and whether
    /// there are more. A product whose stock cannot be read now is listed without it. It fails when an answer of Redis is
    /// not understood, or this program is shutting down.
    pub async fn list(
        &self,
        after: Option<&ProductId>,
        size: usize,
    ) -> Result<(Vec<ProductWithStock>, bool), StockError> {
        let snapshot = self.snapshot.load_full();
        let offered = |product: &&Arc<Product>| product.sale.status != ProductStatus::Retired;
        let mut page: Vec<Arc<Product>> =
            snapshot.after(after).filter(offered).take(size + 1).cloned().collect();
        let more = page.len() > size;
        page.truncate(size);
        Ok((self.with_stock(page).await?, more))
    }

    /// One product; `None` if no product has this id.
    pub async fn get(&self, id: &ProductId) -> Result<Option<ProductWithStock>, StockError> {
        let product = self.snapshot.load().products.get(id).cloned();
        Ok(self.with_stock(product.into_iter().collect()).await?.pop())
    }

    async fn with_stock(
        &self,
        products: Vec<Arc<Product>>,
    ) -> Result<Vec<ProductWithStock>, StockError> {
        let count = self.stock.partitions().count();
        let mut by_partition: HashMap<Partition, Vec<ProductId>> = HashMap::new();
        for product in &products {
            by_partition.entry(count.of(&product.id)).or_default().push(product.id.clone());
        }
        let reads = by_partition.into_iter().map(|(partition, ids)| async move {
            let read = tokio::time::timeout(STOCK_TIMEOUT, self.stock.read(partition, ids)).await;
            match read {
                Ok(Ok(levels)) => Ok((partition, Some(levels))),
                Ok(Err(error)) if !is_transient(&error) => Err(error),
                Ok(Err(_)) | Err(_) => Ok((partition, None)),
            }
        });
        let levels: HashMap<_, _> = try_join_all(reads).await?.into_iter().collect();
        let stock_of = |id: &ProductId| levels.get(&count.of(id))?.as_ref()?.get(id).copied();
        let listed = products.into_iter().map(|product| {
            let stock = stock_of(&product.id);
            ProductWithStock { product, stock }
        });
        Ok(listed.collect())
    }
}

/// Whether a stock that cannot be read now may be readable later.
fn is_transient(error: &StockError) -> bool {
    match error {
        StockError::Redis(RedisCallError::Fenced(_) | RedisCallError::Unavailable { .. })
        | StockError::Overloaded
        | StockError::Abandoned
        | StockError::Refused(_) => true,
        StockError::Redis(RedisCallError::Malformed(_)) | StockError::ShuttingDown => false,
    }
}
