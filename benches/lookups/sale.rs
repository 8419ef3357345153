//! One product that is sold out, stored, and stopped.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;
use yoink::grpc::pb::{
    ProductStatus, ReserveUnitRequest, UpdateProductRequest,
    admin_service_client::AdminServiceClient, inventory_service_client::InventoryServiceClient,
};

use crate::harness::{TestEnv, eventually, product, reason};

/// Buyers at the same time, and the connections that they share.
const BUYERS: u32 = 400;
const CONNECTIONS: usize = 8;

/// A product and its buyers.
pub struct Sale {
    pub service: SocketAddr,
    product: String,
    orders: u32,
    channels: Vec<Channel>,
    sql: tokio_postgres::Client,
}

impl Sale {
    /// Puts a product on sale that has a unit for each order, and one without buyers.
    pub async fn open(env: &TestEnv, service: SocketAddr, name: &str, orders: u32) -> Self {
        let stores = env.stores().await;
        let partitions = stores.deployment.partitions;
        let new = product(name, i64::from(orders) + 1);
        stores.ledger.create_products(&[new], partitions, "bench").await.unwrap();
        let endpoint = Channel::from_shared(format!("http://{service}")).unwrap();
        let channels = join_all((0..CONNECTIONS).map(|_| endpoint.connect())).await;
        let channels = channels.into_iter().map(Result::unwrap).collect();
        let sale =
            Self { service, product: name.to_owned(), orders, channels, sql: env.sql().await };
        eventually("the product is on sale", async || sale.buy(0, "first").await.ok()).await;
        sale
    }

    async fn buy(&self, channel: usize, user: &str) -> Result<(), Status> {
        let request = ReserveUnitRequest {
            product_id: self.product.clone(),
            user_id: user.to_owned(),
            ..Default::default()
        };
        let mut buyers = InventoryServiceClient::new(self.channels[channel].clone());
        buyers.reserve_unit(request).await.map(drop)
    }

    /// One buyer, who waits for the delay of RetryInfo where a call is shed.
    async fn buy_certainly(&self, n: u32) {
        let user = format!("user-{n}");
        while let Err(status) = self.buy(n as usize % CONNECTIONS, &user).await {
            let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
            tokio::time::sleep(delay.unwrap_or_else(|| panic!("{status:?}"))).await;
        }
    }

    /// Sells all orders but the first; returns how many were stored a second, from the first call until the last order is
    /// in Postgres.
    pub async fn store(&self) -> f64 {
        let begun = Instant::now();
        let buyers = (0..BUYERS).map(|buyer| async move {
            for n in (buyer + 1..self.orders).step_by(BUYERS as usize) {
                self.buy_certainly(n).await;
            }
        });
        join_all(buyers).await;
        eventually("every order is stored", async || {
            let sql = "SELECT sold FROM products WHERE product_id = $1";
            let sold: i64 = self.sql.query_one(sql, &[&self.product]).await.unwrap().get(0);
            (sold == i64::from(self.orders)).then_some(())
        })
        .await;
        f64::from(self.orders - 1) / begun.elapsed().as_secs_f64()
    }

    /// Stops the sale; returns how long it took from the operator's call until a buyer was refused.
    pub async fn stop(&self) -> Duration {
        let begun = Instant::now();
        let request = UpdateProductRequest {
            product_id: self.product.clone(),
            status: ProductStatus::Stopped.into(),
            ..Default::default()
        };
        let mut admin = AdminServiceClient::new(self.channels[0].clone());
        let stop = async { admin.update_product(request).await.map(drop).unwrap() };
        let refused = eventually("buyers are refused", async || {
            // The unit that is left is sold to the first of these, if the stop does not come before.
            let refused = self.buy(1, "late").await.err()?;
            (reason(&refused) == "SALE_STOPPED").then(|| begun.elapsed())
        });
        tokio::join!(stop, refused).1
    }
}
