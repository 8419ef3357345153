//! The five designs. Each answers `yoink.v1.InventoryService/ReserveUnit`.

mod one_statement;
mod queue;
mod read_then_write;
mod redis_stock;
mod synchronous_write;
mod this_program;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::TcpIncoming};
use uuid::Uuid;
use yoink::{
    app::Stores as AppStores,
    audit::Verdict,
    grpc::pb::{
        GetProductRequest, inventory_service_client::InventoryServiceClient,
        inventory_service_server::InventoryServiceServer,
    },
};

use self::{
    one_statement::OneStatement, queue::Queue, read_then_write::ReadThenWrite,
    synchronous_write::SynchronousWrite,
};
use crate::{
    database::{Database, PRODUCT, connect_redis},
    measure::stores::Stores,
    service::Service,
};

/// How designs 1 to 4 sell.
#[tonic::async_trait]
pub(crate) trait Design: Send + Sync + 'static {
    /// Takes one unit for a user and returns the id of the order.
    async fn reserve(&self, product: &str, user: &str) -> Result<Uuid, Refusal>;

    /// The units that can still be bought.
    async fn stock(&self, product: &str) -> Result<i64, Refusal>;

    /// How many accepted orders are neither stored nor given up yet.
    async fn waiting(&self) -> Result<u64, Refusal> {
        Ok(0)
    }
}

/// Why a call is not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the product is sold out")]
    SoldOut,
    /// No connection to a store could be had, or it ended before the answer.
    #[error("no connection: {0}")]
    NoConnection(String),
    #[error("the store failed: {0}")]
    Failed(String),
}

/// A design, by its number in the case study minus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Generation {
    ReadThenWrite,
    OneStatement,
    SynchronousWrite,
    Queue,
    ThisProgram,
}

impl Generation {
    pub(crate) const ALL: [Self; 5] = [
        Self::ReadThenWrite,
        Self::OneStatement,
        Self::SynchronousWrite,
        Self::Queue,
        Self::ThisProgram,
    ];

    /// Its heading in tables and plots.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::ReadThenWrite => "1 read, then write",
            Self::OneStatement => "2 one SQL statement",
            Self::SynchronousWrite => "3 Redis, then Postgres",
            Self::Queue => "4 Redis, then a queue",
            Self::ThisProgram => "5 this program",
        }
    }

    /// The statement that reads the id and the time of every order that Postgres holds.
    pub(crate) fn orders_sql(self) -> &'static str {
        match self {
            Self::ThisProgram => {
                "SELECT reservation_id, (extract(epoch FROM recorded_at) * 1000)::bigint
                   FROM reservations WHERE state = 'confirmed'"
            }
            Self::ReadThenWrite | Self::OneStatement | Self::SynchronousWrite | Self::Queue => {
                "SELECT id, (extract(epoch FROM created_at) * 1000)::bigint FROM orders"
            }
        }
    }

    /// Starts it with `supply` units. Only the queue has a stock key that expires.
    pub(crate) async fn start(
        self,
        stores: &Stores,
        supply: i64,
        stock_expiry: Duration,
    ) -> anyhow::Result<Running> {
        let stop = CancellationToken::new();
        let workers = TaskTracker::new();
        let design: Arc<dyn Design> = match self {
            Self::ReadThenWrite => {
                Arc::new(ReadThenWrite { database: Database::create(stores, supply).await? })
            }
            Self::OneStatement => {
                Arc::new(OneStatement { database: Database::create(stores, supply).await? })
            }
            Self::SynchronousWrite => {
                let (redis, database) =
                    (connect_redis(stores).await?, Database::create(stores, supply).await?);
                Arc::new(SynchronousWrite::start(redis, database, supply).await?)
            }
            Self::Queue => {
                let (redis, database) =
                    (connect_redis(stores).await?, Database::create(stores, supply).await?);
                let queue = Arc::new(Queue::new(redis, database, stock_expiry));
                for _ in 0..queue::WORKERS {
                    let connection = connect_redis(stores).await?;
                    workers.spawn(queue.clone().work(connection, stop.clone()));
                }
                queue
            }
            Self::ThisProgram => return this_program::start(stores, supply).await,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let server = Server::builder()
            .max_concurrent_streams(1000)
            .add_service(InventoryServiceServer::new(Service(design.clone())))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                stop.clone().cancelled_owned(),
            );
        let serving = TaskTracker::new().spawn(async move {
            server.await?;
            workers.close();
            workers.wait().await;
            anyhow::Ok(())
        });
        Ok(Running { address, sells: Sells::Design(design), stop, serving })
    }
}

/// What sells behind an address.
enum Sells {
    Design(Arc<dyn Design>),
    ThisProgram(Box<AppStores>),
}

/// A design that serves calls.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    sells: Sells,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// How many accepted orders are neither stored nor given up yet; none if that cannot be read now.
    pub(crate) async fn waiting(&self) -> Option<u64> {
        match &self.sells {
            Sells::Design(design) => design.waiting().await.ok(),
            Sells::ThisProgram(stores) => {
                let mut waiting = 0;
                for partition in stores.deployment.partitions.all() {
                    let depth = stores.streams.depth(partition).await.ok()?;
                    waiting += depth.orders + depth.dead;
                }
                Some(waiting)
            }
        }
    }

    /// The units that buyers can still buy, as the design reports them.
    pub(crate) async fn stock(&self) -> anyhow::Result<i64> {
        let mut client =
            InventoryServiceClient::connect(format!("http://{}", self.address)).await?;
        let request = GetProductRequest { product_id: PRODUCT.to_owned() };
        let product = client.get_product(request).await?.into_inner().product.unwrap_or_default();
        product.stock.context("the stock cannot be read")
    }

    /// Stops it and waits for its end; the audit of this program must hold.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        if let Sells::ThisProgram(stores) = &self.sells {
            let report = stores.auditor.audit().await;
            ensure!(report.verdict() == Verdict::Holds, "the audit does not hold: {report:?}");
        }
        self.stop.cancel();
        self.serving.await?
    }
}
