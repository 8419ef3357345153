//! Products: created and changed in the ledger first, then told to Redis; listed with live stock.
//!
//! Must never: ask Postgres on a buyer's call, or make up a stock that could not be read.

mod snapshot;

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::future::try_join_all;
use tokio::{sync::Mutex, time::Instant};
use tokio_util::sync::CancellationToken;

use self::snapshot::Snapshot;
use crate::{
    domain::{NewProduct, Partition, Product, ProductId, ProductStatus},
    fence::FenceError,
    ledger::{Created, Ledger, LedgerError, Restock, Restocked, SaleChange, UpdateError},
    stock::{Grant, Offer, Stock, StockError},
};

/// How often changes that others made are looked for.
const LOOK: Duration = Duration::from_millis(500);

/// How long a list waits for the stock of its products: a slow Redis must not make it slow.
const STOCK_WAIT: Duration = Duration::from_secs(1);

/// A product and its stock; no stock while its partition recovers, or Redis is away or slow.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The product.
    pub product: Arc<Product>,
    /// Units available.
    pub stock: Option<i64>,
}

/// Why a change is not, or not certainly, in force.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// The ledger could not be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger has it, Redis does not yet: it will be told as soon as it can be.
    #[error("recorded, but not in force yet")]
    NotInForce(#[source] FenceError),
}

/// Partitions that could not be told what changed, and why; they are told by the next refresh.
type Untold = HashMap<Partition, FenceError>;

/// The catalogue of this process.
#[derive(Clone)]
pub struct Catalogue {
    ledger: Ledger,
    stock: Stock,
    snapshot: Arc<ArcSwap<Snapshot>>,
    /// By partition: every version up to this one was told to Redis. Held while telling.
    told: Arc<Mutex<Vec<i64>>>,
    /// When the ledger was last read.
    read: Arc<ArcSwap<Instant>>,
}

impl Catalogue {
    /// An empty catalogue: `refresh` fills it.
    pub fn new(ledger: Ledger, stock: Stock) -> Self {
        let told = vec![-1; usize::from(stock.partitions().count().get())];
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let read = Arc::new(ArcSwap::from_pointee(Instant::now()));
        Self { ledger, stock, snapshot, told: Arc::new(Mutex::new(told)), read }
    }

    /// Reads what changed in the ledger and tells Redis what it was not told yet: also what a crash of
    /// somebody else left over (R3).
    ///
    /// # Errors
    ///
    /// When the ledger does not answer. What Redis was not told is in the answer.
    pub async fn refresh(&self) -> Result<Untold, LedgerError> {
        let mut told = self.told.lock().await;
        let seen = self.snapshot.load_full();
        let changed = self.ledger.products_since(seen.version()).await?;
        self.read.store(Arc::new(Instant::now()));
        let went_back = changed.iter().any(|product| product.version <= seen.version());
        if went_back {
            tracing::warn!(
                seen = seen.version(),
                "Postgres lost changes of products: all products are read again"
            );
            told.fill(-1);
            self.snapshot.store(Arc::new(Snapshot::default().with(changed)));
        } else if !changed.is_empty() {
            self.snapshot.store(Arc::new(seen.with(changed)));
        }
        let snapshot = self.snapshot.load();
        let count = self.stock.partitions().count();
        if told.iter().all(|told| *told == snapshot.version()) {
            return Ok(Untold::new());
        }
        let mut changes: HashMap<Partition, Vec<Arc<Product>>> = HashMap::new();
        for product in snapshot.all() {
            let partition = count.of(&product.id);
            if product.version > told[partition.index()] {
                changes.entry(partition).or_default().push(product.clone());
            }
        }
        let mut untold = Untold::new();
        for partition in count.all() {
            let products = changes.remove(&partition).unwrap_or_default();
            match self.tell(partition, &products).await {
                Ok(()) => told[partition.index()] = snapshot.version(),
                Err(error) => {
                    untold.insert(partition, error);
                }
            }
        }
        Ok(untold)
    }

    /// How long changes that others made have gone unnoticed here.
    pub fn age(&self) -> Duration {
        self.read.load().elapsed()
    }

    /// Refreshes after a change of these products: whether it is in force.
    async fn enforce<'a>(
        &self,
        changed: impl IntoIterator<Item = &'a ProductId>,
    ) -> Result<(), RefreshError> {
        let mut untold = self.refresh().await?;
        let count = self.stock.partitions().count();
        let failed = changed.into_iter().find_map(|id| untold.remove(&count.of(id)));
        failed.map_or(Ok(()), |error| Err(RefreshError::NotInForce(error)))
    }

    /// Units first: a product that can be seen has its stock.
    async fn tell(
        &self,
        partition: Partition,
        products: &[Arc<Product>],
    ) -> Result<(), FenceError> {
        if products.is_empty() {
            return Ok(());
        }
        let grants: Vec<Grant> = products.iter().map(|product| Grant::from(&**product)).collect();
        self.stock.restock(partition, &grants).await?;
        let offers: Vec<Offer> = products.iter().map(|product| Offer::from(&**product)).collect();
        self.stock.publish(partition, &offers).await
    }

    /// Refreshes until stopped.
    pub async fn run(self, stop: CancellationToken) {
        let mut healthy = true;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            // What is untold is fenced or without Redis, and that is told of elsewhere.
            match self.refresh().await {
                Ok(_) => healthy = true,
                Err(error) if healthy => {
                    healthy = false;
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the catalogue cannot be refreshed"
                    );
                }
                Err(_) => {}
            }
        }
    }

    /// Creates products, all or none; see [`Ledger::create_products`].
    ///
    /// # Errors
    ///
    /// See [`RefreshError`].
    pub async fn create(
        &self,
        products: &[NewProduct],
        actor: &str,
    ) -> Result<Created, RefreshError> {
        let count = self.stock.partitions().count();
        let created = self.ledger.create_products(products, count, actor).await?;
        if matches!(created, Created::Done { .. }) {
            // Known ones, too: an earlier call may have ended before they were in force.
            self.enforce(products.iter().map(|product| &product.id)).await?;
        }
        Ok(created)
    }

    /// Changes how a product is offered.
    ///
    /// # Errors
    ///
    /// The outer for the change itself; the inner when it was recorded and is not in force yet.
    pub async fn update(
        &self,
        id: &ProductId,
        change: &SaleChange,
    ) -> Result<Result<Product, RefreshError>, UpdateError> {
        let product = self.ledger.update_product(id, change).await?;
        Ok(self.enforce([id]).await.map(|()| product))
    }

    /// Grants units, once per request id.
    ///
    /// # Errors
    ///
    /// See [`RefreshError`]; repeat it with the same request id.
    pub async fn restock(&self, restock: &Restock) -> Result<Restocked, RefreshError> {
        let restocked = self.ledger.restock(restock).await?;
        if matches!(restocked, Restocked::Added(_) | Restocked::Before(_)) {
            self.enforce([&restock.product]).await?;
        }
        Ok(restocked)
    }

    /// At most `size` products that are offered, in the order of their ids, after `after`; and whether
    /// there are more.
    ///
    /// # Errors
    ///
    /// When an answer of Redis is not understood, or the service is shutting down. A product whose stock
    /// cannot be read now is listed without it.
    pub async fn list(
        &self,
        after: Option<&ProductId>,
        size: usize,
    ) -> Result<(Vec<Listed>, bool), StockError> {
        let snapshot = self.snapshot.load_full();
        let offered = |product: &&Arc<Product>| product.sale.status != ProductStatus::Retired;
        let mut page: Vec<Arc<Product>> =
            snapshot.after(after).filter(offered).take(size + 1).cloned().collect();
        let more = page.len() > size;
        page.truncate(size);
        Ok((self.with_stock(page).await?, more))
    }

    /// One product; `None` when there is no such.
    ///
    /// # Errors
    ///
    /// As [`Catalogue::list`].
    pub async fn get(&self, id: &ProductId) -> Result<Option<Listed>, StockError> {
        match self.snapshot.load().get(id).cloned() {
            Some(product) => Ok(self.with_stock(vec![product]).await?.pop()),
            None => Ok(None),
        }
    }

    async fn with_stock(&self, products: Vec<Arc<Product>>) -> Result<Vec<Listed>, StockError> {
        let count = self.stock.partitions().count();
        let mut by_partition: HashMap<Partition, Vec<ProductId>> = HashMap::new();
        for product in &products {
            by_partition.entry(count.of(&product.id)).or_default().push(product.id.clone());
        }
        let reads = by_partition.into_iter().map(|(partition, ids)| async move {
            let read = tokio::time::timeout(STOCK_WAIT, self.stock.levels(partition, ids)).await;
            match read {
                Ok(Ok(levels)) => Ok((partition, Some(levels))),
                Ok(Err(error)) if !passes(&error) => Err(error),
                Ok(Err(_)) | Err(_) => Ok((partition, None)),
            }
        });
        let levels: HashMap<_, _> = try_join_all(reads).await?.into_iter().collect();
        let stock_of = |id: &ProductId| levels.get(&count.of(id))?.as_ref()?.get(id).copied();
        let listed = products.into_iter().map(|product| {
            let stock = stock_of(&product.id);
            Listed { product, stock }
        });
        Ok(listed.collect())
    }
}

/// Whether a stock that cannot be read now can be read later.
fn passes(error: &StockError) -> bool {
    match error {
        StockError::Fence(FenceError::Fenced(_) | FenceError::Unavailable { .. })
        | StockError::Overloaded
        | StockError::Abandoned
        | StockError::Refused(_) => true,
        StockError::Fence(FenceError::Malformed(_)) | StockError::Stopping => false,
    }
}
