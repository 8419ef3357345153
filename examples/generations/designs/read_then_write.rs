//! Design 1: read the stock, and write it back reduced by one.
//!
//! Its fault: other calls read the same stock before the first one has written it. All of them write the same number, and
//! each stores an order.

use uuid::Uuid;

use super::{Design, Refusal};
use crate::database::Database;

pub(super) struct ReadThenWrite {
    pub(super) database: Database,
}

#[tonic::async_trait]
impl Design for ReadThenWrite {
    async fn reserve(&self, product: &str, user: &str) -> Result<Uuid, Refusal> {
        let stock = self.database.stock(product).await?;
        if stock <= 0 {
            return Err(Refusal::SoldOut);
        }
        let sql = "UPDATE products SET stock = $2 WHERE id = $1";
        self.database.execute(sql, &[&product, &(stock - 1)]).await?;
        let id = Uuid::new_v4();
        self.database.insert_order(id, product, user).await?;
        Ok(id)
    }

    async fn stock(&self, product: &str) -> Result<i64, Refusal> {
        self.database.stock(product).await
    }
}
