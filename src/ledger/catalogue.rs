//! Products and grants. The ledger is changed first; then any process updates Redis (R3).
//!
//! Every version is assigned under one advisory lock, so that versions commit in their order and a reader that has
//! seen version n has seen all before it.

use std::{borrow::Cow, time::SystemTime};

use deadpool_postgres::Transaction;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use super::{
    Ledger, LedgerError,
    pool::{milliseconds, timestamp},
};
use crate::domain::{
    Price, Product, ProductError, ProductId, ProductStatus, RequestId, Sale, UNITS_MAX,
};

/// "yoink" in ASCII: one lock for every change of the catalogue.
pub(super) const LOCK: i64 = 0x79_6f_69_6e_6b;

/// What changed since a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The products as they are now.
    pub products: Vec<Product>,
    /// Whether some products have no version yet: a process is creating them, or ended before it assigned them.
    pub versions_missing: bool,
}

/// Fields to set; `None` leaves one as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of `Sale`")]
pub struct SaleChange {
    pub name: Option<String>,
    pub price: Option<Price>,
    pub opens_at_ms: Option<Option<i64>>,
    pub closes_at_ms: Option<Option<i64>>,
    pub per_user_limit: Option<Option<u32>>,
    pub status: Option<ProductStatus>,
}

impl SaleChange {
    fn apply(&self, sale: Sale) -> Sale {
        Sale {
            name: self.name.clone().unwrap_or(sale.name),
            price: self.price.unwrap_or(sale.price),
            opens_at_ms: self.opens_at_ms.unwrap_or(sale.opens_at_ms),
            closes_at_ms: self.closes_at_ms.unwrap_or(sale.closes_at_ms),
            per_user_limit: self.per_user_limit.unwrap_or(sale.per_user_limit),
            status: self.status.unwrap_or(sale.status),
        }
    }
}

/// Why a product could not be changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum UpdateError {
    #[error("no such product")]
    Unknown,
    #[error(transparent)]
    Invalid(#[from] ProductError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Units to add.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "named as in the table `supply_changes`")]
pub struct Restock {
    pub product: ProductId,
    /// At least 1.
    pub units: i64,
    /// The idempotency key.
    pub request: RequestId,
    pub actor: String,
    pub reason: String,
}

/// What a restock did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restocked {
    /// The units were added; the new supply.
    Added(i64),
    /// The same request had added them before; the current supply.
    AlreadyAdded(i64),
    /// No such product.
    UnknownProduct,
    /// The request id had been used for another product or other units.
    RequestReused,
    /// The supply would exceed [`UNITS_MAX`].
    TooMany,
}

pub(super) const COLUMNS: &str =
    "product_id, name, price::text, currency::text, opens_at, closes_at,
                       per_user_limit, status, version, supply";

pub(super) fn product(row: &Row) -> Result<Product, LedgerError> {
    let ms = |column| {
        Ok::<_, LedgerError>(row.try_get::<_, Option<SystemTime>>(column)?.map(milliseconds))
    };
    let limit = row.try_get::<_, Option<i32>>(6)?.map(u32::try_from).transpose();
    Ok(Product {
        id: row
            .try_get::<_, &str>(0)?
            .parse()
            .map_err(|_| LedgerError::InvalidData("products.product_id"))?,
        sale: Sale {
            name: row.try_get(1)?,
            price: Price::stored(row.try_get(2)?, row.try_get(3)?)
                .map_err(|_| LedgerError::InvalidData("products.price"))?,
            opens_at_ms: ms(4)?,
            closes_at_ms: ms(5)?,
            per_user_limit: limit
                .map_err(|_| LedgerError::InvalidData("products.per_user_limit"))?,
            status: ProductStatus::from_name(row.try_get(7)?)
                .ok_or(LedgerError::InvalidData("products.status"))?,
        },
        version: row.try_get(8)?,
        supply: row.try_get(9)?,
    })
}

pub(super) fn limit_column(sale: &Sale) -> Option<i32> {
    sale.per_user_limit.map(|limit| {
        debug_assert!(limit <= 1_000_000, "checked by Sale: {limit}");
        limit.cast_signed()
    })
}

pub(super) async fn lock(tx: &Transaction<'_>) -> Result<(), LedgerError> {
    tx.execute_typed("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)]).await?;
    Ok(())
}

impl Ledger {
    /// Products changed after `version`, ordered by version. All of them for -1, and if the ledger has no version as
    /// high as `highest`, because it lost commits.
    pub async fn products_since(&self, version: i64, highest: i64) -> Result<Changes, LedgerError> {
        self.with("products_since", async move |client| {
            let sql = format!(
                "SELECT {COLUMNS} FROM products
                  WHERE version > $1 OR (SELECT max(version) FROM products) < $2 ORDER BY version"
            );
            let missing = "SELECT EXISTS (SELECT FROM products WHERE version = 0)";
            let versions: [(&(dyn ToSql + Sync), Type); 2] =
                [(&version, Type::INT8), (&highest, Type::INT8)];
            let (rows, missing) = tokio::try_join!(
                client.query_typed(&sql, &versions),
                client.query_typed(missing, &[])
            )?;
            let products = rows.iter().map(product).collect::<Result<_, _>>()?;
            let versions_missing = missing.first().is_some_and(|row| row.get(0));
            Ok(Changes { products, versions_missing })
        })
        .await
    }

    /// The current state of these products.
    pub async fn products(&self, ids: &[&str]) -> Result<Vec<Product>, LedgerError> {
        self.with("products", async move |client| {
            let sql = format!("SELECT {COLUMNS} FROM products WHERE product_id = ANY($1)");
            let rows = client.query_typed(&sql, &[(&ids, Type::TEXT_ARRAY)]).await?;
            rows.iter().map(product).collect()
        })
        .await
    }

    /// Changes the sale of a product; returns the product after the change.
    /// If the reply to COMMIT was lost, a repeated call shows the outcome.
    pub async fn update_product(
        &self,
        id: &ProductId,
        change: &SaleChange,
    ) -> Result<Product, UpdateError> {
        let updated = self.with("update_product", async move |mut client| {
            let tx = client.transaction().await?;
            lock(&tx).await?;
            let sql = format!("SELECT {COLUMNS} FROM products WHERE product_id = $1 FOR NO KEY UPDATE");
            let Some(row) = tx.query_opt(&sql, &[&id.as_str()]).await? else {
                return Ok(Err(UpdateError::Unknown));
            };
            let sale = change.apply(product(&row)?.sale);
            // A name that an earlier version accepted does not prevent a stop of its sale.
            let checked =
                if change.name.is_some() { sale.check() } else { sale.check_without_name() };
            if let Err(error) = checked {
                return Ok(Err(error.into()));
            }
            let sql = format!(
                "UPDATE products SET name = $2, price = $3::text::numeric, currency = $4, opens_at = $5,
                        closes_at = $6, per_user_limit = $7, status = $8,
                        version = nextval('catalogue_version')
                  WHERE product_id = $1 RETURNING {COLUMNS}"
            );
            let row = tx
                .query_one(
                    &sql,
                    &[
                        &id.as_str(),
                        &sale.name,
                        &sale.price.to_string(),
                        &sale.price.currency(),
                        &sale.opens_at_ms.map(timestamp),
                        &sale.closes_at_ms.map(timestamp),
                        &limit_column(&sale),
                        &sale.status.as_str(),
                    ],
                )
                .await?;
            let changed = product(&row)?;
            tx.commit().await?;
            Ok(Ok(changed))
        });
        updated.await?
    }

    /// Grants units, once per request id. After an error, repeat it with the same request id.
    pub async fn restock(&self, restock: &Restock) -> Result<Restocked, LedgerError> {
        self.with("restock", async move |mut client| {
            let tx = client.transaction().await?;
            lock(&tx).await?;
            let id = restock.product.as_str();
            let request = stored_request(restock.request.as_str());
            let sql = "SELECT supply FROM products WHERE product_id = $1 FOR NO KEY UPDATE";
            let Some(row) = tx.query_opt(sql, &[&id]).await? else {
                return Ok(Restocked::UnknownProduct);
            };
            let supply: i64 = row.get(0);
            let sql = "SELECT product_id, units FROM supply_changes WHERE request_id = $1";
            if let Some(row) = tx.query_opt(sql, &[&request]).await? {
                let same = row.get::<_, &str>(0) == id && row.get::<_, i64>(1) == restock.units;
                return Ok(if same { Restocked::AlreadyAdded(supply) } else { Restocked::RequestReused });
            }
            if supply.checked_add(restock.units).is_none_or(|supply| supply > UNITS_MAX) {
                return Ok(Restocked::TooMany);
            }
            tx.execute(
                "INSERT INTO supply_changes (product_id, units, request_id, actor, reason)
                 VALUES ($1, $2, $3, $4, $5)",
                &[&id, &restock.units, &request, &restock.actor, &restock.reason],
            )
            .await?;
            let row = tx
                .query_one(
                    "UPDATE products SET supply = supply + $2, version = nextval('catalogue_version')
                      WHERE product_id = $1 RETURNING supply",
                    &[&id, &restock.units],
                )
                .await?;
            tx.commit().await?;
            Ok(Restocked::Added(row.get(0)))
        })
        .await
    }
}

/// The request id of a first grant, which creating a product writes, is this and the product's id.
const FIRST: &str = "first/";

/// The request id under which a restock is stored. One that looks like a first grant gets a leading space, which no
/// request id of a caller has.
fn stored_request(id: &str) -> Cow<'_, str> {
    if id.starts_with(FIRST) { format!(" {id}").into() } else { id.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restock_is_never_stored_under_the_request_id_of_a_first_grant() {
        assert_eq!(stored_request("first/shoe"), " first/shoe");
        for unchanged in ["first", "r1", "a/b", "First/shoe"] {
            assert_eq!(stored_request(unchanged), unchanged);
        }
    }
}
