//! New products: stored all or none, without the lock of the catalogue; they get versions under that lock, a page
//! at a time.
//!
//! A stored product has version 0 until it gets its own. Running processes have read past version 0, so they see it
//! when it has a version; a process that starts reads it at once. Must never: wait for a row while holding the lock.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU64, Ordering},
};

use deadpool_postgres::{ClientWrapper, Transaction};
use tokio_postgres::types::{ToSql, Type};

use super::{
    Ledger, LedgerError,
    catalogue::{LOCK, limit_column, lock},
    pool::timestamp,
};
use crate::domain::{NewProduct, PartitionCount, ProductId};

/// Products that one statement stores.
const ROWS_PER_STATEMENT: usize = 5_000;

/// Products that get their versions in one transaction under the lock.
const ROWS_PER_LOCK: usize = 1_000;

/// How long an import waits for another transaction that creates one of its products.
const IMPORT_LOCK_TIMEOUT: &str = "SET lock_timeout = '10min'";

/// The result of creating products.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants describe their fields")]
pub enum Created {
    /// All exist now: some are new, the others existed before. Those that differ from the request were kept unchanged.
    Done { new: Vec<ProductId>, kept: Vec<ProductId> },
    /// None was created: the product at this index of the list exists and was created with these other units.
    SupplyDiffers { at: usize, units: i64 },
}

/// What an import stored, and which of its products have no version yet.
#[derive(Debug)]
pub struct Imported {
    /// What was created.
    pub created: Created,
    /// Products for [`Ledger::assign_versions`].
    pub unversioned: Vec<ProductId>,
}

impl Ledger {
    /// Creates products, all or none. An existing product is not changed if it was created with these units.
    /// Repeating it is safe.
    pub async fn create_products(
        &self,
        products: &[NewProduct],
        partitions: PartitionCount,
        actor: &str,
    ) -> Result<Created, LedgerError> {
        let stored = self.with("create_products", async move |mut client| {
            store(&mut client, products, partitions, actor, &AtomicU64::default()).await
        });
        let stored = stored.await?;
        self.assign_versions(&stored.unversioned, &AtomicU64::default()).await?;
        Ok(stored.created)
    }

    /// As [`Ledger::create_products`], for a whole file: without the time limit of an operation, and without
    /// versions, which [`Ledger::assign_versions`] assigns. Counts the processed products in `done`.
    /// Repeating it is safe.
    pub async fn import_products(
        &self,
        products: &[NewProduct],
        partitions: PartitionCount,
        actor: &str,
        done: &AtomicU64,
    ) -> Result<Imported, LedgerError> {
        self.with_maintenance("import_products", async move |mut client| {
            client.batch_execute(IMPORT_LOCK_TIMEOUT).await?;
            store(&mut client, products, partitions, actor, done).await
        })
        .await
    }

    /// Assigns versions to those of these products that have none, so that running processes see them. Counts the
    /// processed products in `done`. After an error, a serving process assigns them.
    pub async fn assign_versions(
        &self,
        products: &[ProductId],
        done: &AtomicU64,
    ) -> Result<(), LedgerError> {
        for page in products.chunks(ROWS_PER_LOCK) {
            let ids: Vec<&str> = page.iter().map(ProductId::as_str).collect();
            self.with("assign_versions", async move |mut client| {
                let tx = client.transaction().await?;
                lock(&tx).await?;
                tx.execute_typed(ASSIGN, &[(&ids, Type::TEXT_ARRAY)]).await?;
                Ok(tx.commit().await?)
            })
            .await?;
            done.fetch_add(page.len().try_into().unwrap_or(0), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Assigns versions to a page of the products that have none, which an import left that ended early. Does nothing
    /// while another transaction changes the catalogue.
    pub async fn assign_missing_versions(&self) -> Result<(), LedgerError> {
        self.with("assign_missing_versions", async move |mut client| {
            let tx = client.transaction().await?;
            let sql = "SELECT pg_try_advisory_xact_lock($1)";
            let locked = tx.query_typed(sql, &[(&LOCK, Type::INT8)]).await?;
            if locked.first().is_some_and(|row| row.get(0)) {
                let most = i64::try_from(ROWS_PER_LOCK).unwrap_or(i64::MAX);
                tx.execute_typed(ASSIGN_MISSING, &[(&most, Type::INT8)]).await?;
            }
            Ok(tx.commit().await?)
        })
        .await
    }
}

// Both find products by an array of ids and never by a join. After an import that was rolled back, the statistics of Postgres may say that
// the table is empty; a join is then planned as nested loops over the whole table, which takes minutes for a page.

/// Skips a row that a batch of orders has locked, so that no transaction waits while it holds the lock. The
/// expression `version + 0` keeps Postgres from the index by version, which holds every product of the import.
const ASSIGN: &str = "
    UPDATE products SET version = nextval('catalogue_version')
     WHERE product_id = ANY (ARRAY (
               SELECT p.product_id FROM unnest($1::text[]) AS w (product_id)
                CROSS JOIN LATERAL (SELECT product_id FROM products
                                     WHERE product_id = w.product_id AND version + 0 = 0
                                     LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) AS p))";

const ASSIGN_MISSING: &str = "
    UPDATE products SET version = nextval('catalogue_version')
     WHERE product_id = ANY (ARRAY (
               SELECT product_id FROM products WHERE version = 0
                LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED))";

const INSERT: &str = "
    WITH inserted AS (
        INSERT INTO products (product_id, partition, name, price, currency, opens_at, closes_at,
                              per_user_limit, status, version, supply)
        SELECT product_id, partition, name, price::numeric, currency, opens_at, closes_at,
               per_user_limit, status, 0, units
          FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
                      $7::timestamptz[], $8::int[], $9::text[], $10::bigint[])
            AS w (product_id, partition, name, price, currency, opens_at, closes_at,
                  per_user_limit, status, units)
            ON CONFLICT (product_id) DO NOTHING
        RETURNING product_id, supply
    ), granted AS (
        INSERT INTO supply_changes (product_id, units, request_id, actor, reason)
        SELECT product_id, supply, 'first/' || product_id, $11, 'created' FROM inserted
    )
    SELECT product_id FROM inserted";

/// Existing products that were created with other units, differ otherwise, or have no version. The subqueries with
/// LIMIT make Postgres look each product up by its key; joins would read both tables again for each page.
const COMPARE: &str = "
    SELECT * FROM (
        SELECT w.product_id, coalesce(g.units, 0) AS first_units, w.units AS units, p.version = 0 AS unversioned,
               (p.name, p.price, p.currency::text, p.opens_at, p.closes_at, p.per_user_limit, p.status)
               IS DISTINCT FROM (w.name, w.price::numeric, w.currency, w.opens_at, w.closes_at,
                                 w.per_user_limit, w.status) AS differs
          FROM unnest($1::text[], $2::int[], $3::text[], $4::text[], $5::text[], $6::timestamptz[],
                      $7::timestamptz[], $8::int[], $9::text[], $10::bigint[])
            AS w (product_id, partition, name, price, currency, opens_at, closes_at,
                  per_user_limit, status, units)
         CROSS JOIN LATERAL (SELECT * FROM products WHERE product_id = w.product_id LIMIT 1) AS p
          LEFT JOIN LATERAL (SELECT units FROM supply_changes
                              WHERE request_id = 'first/' || w.product_id LIMIT 1) AS g ON true) AS known
     WHERE first_units <> units OR differs OR unversioned";

/// Stores products in one transaction, or none of them.
async fn store(
    client: &mut ClientWrapper,
    products: &[NewProduct],
    partitions: PartitionCount,
    actor: &str,
    done: &AtomicU64,
) -> Result<Imported, LedgerError> {
    // Every transaction inserts in the order of the ids, so that two that create the same products cannot deadlock.
    let mut sorted: Vec<_> = products.iter().enumerate().collect();
    sorted.sort_by_key(|(_, product)| &product.id);
    let tx = client.transaction().await?;
    let (mut new, mut kept, mut unversioned) = (Vec::new(), Vec::new(), Vec::new());
    for page in sorted.chunks(ROWS_PER_STATEMENT) {
        let columns = columns(page, partitions);
        let mut parameters = parameters(&columns);
        parameters.push((&actor, Type::TEXT));
        let rows = tx.query_typed(INSERT, &parameters).await?;
        let inserted =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<&str>, _>>()?;
        let is_new = |(_, wanted): &(usize, &NewProduct)| inserted.contains(wanted.id.as_str());
        let (added, known): (Vec<_>, Vec<_>) = page.iter().copied().partition(is_new);
        new.extend(added.iter().map(|(_, wanted)| wanted.id.clone()));
        unversioned.extend(added.iter().map(|(_, wanted)| wanted.id.clone()));
        for difference in compare(&tx, &known, partitions).await? {
            let (at, wanted) = known[difference.at];
            if difference.first_units != wanted.units {
                let created = Created::SupplyDiffers { at, units: difference.first_units };
                return Ok(Imported { created, unversioned: Vec::new() });
            }
            if difference.differs {
                kept.push(wanted.id.clone());
            }
            if difference.unversioned {
                unversioned.push(wanted.id.clone());
            }
        }
        done.fetch_add(page.len().try_into().unwrap_or(0), Ordering::Relaxed);
    }
    tx.commit().await?;
    Ok(Imported { created: Created::Done { new, kept }, unversioned })
}

/// How an existing product differs from the requested one.
struct Difference {
    /// Its index among the compared products.
    at: usize,
    first_units: i64,
    differs: bool,
    unversioned: bool,
}

async fn compare(
    tx: &Transaction<'_>,
    known: &[(usize, &NewProduct)],
    partitions: PartitionCount,
) -> Result<Vec<Difference>, LedgerError> {
    if known.is_empty() {
        return Ok(Vec::new());
    }
    let columns = columns(known, partitions);
    let rows = tx.query_typed(COMPARE, &parameters(&columns)).await?;
    let mut differences = Vec::with_capacity(rows.len());
    for row in rows {
        let id: &str = row.try_get(0)?;
        let at = known.binary_search_by(|(_, wanted)| wanted.id.as_str().cmp(id));
        differences.push(Difference {
            at: at.map_err(|_| LedgerError::InvalidData("products.product_id"))?,
            first_units: row.try_get(1)?,
            unversioned: row.try_get(3)?,
            differs: row.try_get(4)?,
        });
    }
    differences.sort_by_key(|difference| known[difference.at].0);
    Ok(differences)
}

/// A page of products as the array parameters of a statement.
type Columns<'a> = Vec<(Box<dyn ToSql + Sync + Send + 'a>, Type)>;

fn columns<'a>(page: &[(usize, &'a NewProduct)], partitions: PartitionCount) -> Columns<'a> {
    let products = || page.iter().map(|(_, product)| *product);
    let sales = || products().map(|product| &product.sale);
    vec![
        (column(products().map(|product| product.id.as_str())), Type::TEXT_ARRAY),
        (column(products().map(|p| i32::from(partitions.of(&p.id).number()))), Type::INT4_ARRAY),
        (column(sales().map(|sale| sale.name.as_str())), Type::TEXT_ARRAY),
        (column(sales().map(|sale| sale.price.to_string())), Type::TEXT_ARRAY),
        (column(sales().map(|sale| sale.price.currency())), Type::TEXT_ARRAY),
        (column(sales().map(|sale| sale.opens_at_ms.map(timestamp))), Type::TIMESTAMPTZ_ARRAY),
        (column(sales().map(|sale| sale.closes_at_ms.map(timestamp))), Type::TIMESTAMPTZ_ARRAY),
        (column(sales().map(limit_column)), Type::INT4_ARRAY),
        (column(sales().map(|sale| sale.status.as_str())), Type::TEXT_ARRAY),
        (column(products().map(|product| product.units)), Type::INT8_ARRAY),
    ]
}

fn column<'a, T: ToSql + Sync + Send + 'a>(
    values: impl Iterator<Item = T>,
) -> Box<dyn ToSql + Sync + Send + 'a> {
    Box::new(values.collect::<Vec<T>>())
}

fn parameters<'a>(columns: &'a Columns<'_>) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    columns.iter().map(|(column, kind)| (&**column as &(dyn ToSql + Sync), kind.clone())).collect()
}
