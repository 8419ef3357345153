//! Design 2: one SQL statement takes the unit and stores the order.
//!
//! It is exact. Its limit: every buyer of a product waits for the lock of the same row, and the lock is held until the
//! commit is on the disk.

use uuid::Uuid;

use super::{Design, Refusal};
use crate::database::Database;

const RESERVE: &str = "
    WITH taken AS (
        UPDATE products SET stock = stock - 1 WHERE id = $2 AND stock > 0 RETURNING id
    )
    INSERT INTO orders (id, product_id, user_id) SELECT $1::uuid, taken.id, $3::text FROM taken";

pub(super) struct OneStatement {
    pub(super) database: Database,
}

#[tonic::async_trait]
impl Design for OneStatement {
    async fn reserve(&self, product: &str, user: &str) -> Result<Uuid, Refusal> {
        let id = Uuid::new_v4();
        match self.database.execute(RESERVE, &[&id, &product, &user]).await? {
            0 => Err(Refusal::SoldOut),
            _ => Ok(id),
        }
    }

    async fn stock(&self, product: &str) -> Result<i64, Refusal> {
        self.database.stock(product).await
    }
}
