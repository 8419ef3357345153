//! Products and their sales.

use super::{
    Price, ProductId, UserId,
    name::{NameError, check_name},
};

/// The most units of a product: Lua counts exactly up to 2^53.
pub const UNITS_MAX: i64 = 1 << 53;

/// Whether a product can be bought, apart from its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProductStatus {
    /// It can be bought within its window.
    OnSale,
    /// An operator has stopped the sale.
    Stopped,
    /// No longer offered, not listed.
    Retired,
}

impl ProductStatus {
    /// The name in Redis and Postgres.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OnSale => "on_sale",
            Self::Stopped => "stopped",
            Self::Retired => "retired",
        }
    }

    /// From that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::OnSale, Self::Stopped, Self::Retired].into_iter().find(|s| s.as_str() == name)
    }
}

/// How a product is offered: all that an operator may change. Times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the glossary")]
pub struct Sale {
    pub name: String,
    pub price: Price,
    pub opens_at_ms: Option<i64>,
    pub closes_at_ms: Option<i64>,
    pub per_user_limit: Option<u32>,
    pub status: ProductStatus,
}

/// Why a product is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe them")]
pub enum ProductError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("closes_at must be after opens_at")]
    Window,
    #[error("units must be 1 to 9007199254740992")]
    Units,
    #[error("per_user_limit must be 0 (none) to 1000000")]
    Limit,
}

impl Sale {
    /// Checks every field.
    pub fn check(&self) -> Result<(), ProductError> {
        check_name(&self.name)?;
        self.check_without_name()
    }

    /// Checks all but the name: a product may have one that an earlier version accepted.
    pub fn check_without_name(&self) -> Result<(), ProductError> {
        if self.per_user_limit.is_some_and(|limit| limit == 0 || limit > 1_000_000) {
            return Err(ProductError::Limit);
        }
        match (self.opens_at_ms, self.closes_at_ms) {
            (Some(opens), Some(closes)) if closes <= opens => Err(ProductError::Window),
            (Some(_) | None, Some(_) | None) => Ok(()),
        }
    }
}

/// A product to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewProduct {
    /// Its id.
    pub id: ProductId,
    /// How it is offered.
    pub sale: Sale,
    /// Units to sell, 1 to [`UNITS_MAX`].
    pub units: i64,
}

impl NewProduct {
    /// Checks units and sale.
    pub fn check(&self) -> Result<(), ProductError> {
        if self.units < 1 || self.units > UNITS_MAX {
            return Err(ProductError::Units);
        }
        self.sale.check()
    }
}

/// A product in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Its id.
    pub id: ProductId,
    /// How it is offered.
    pub sale: Sale,
    /// Raised by every change; one sequence for all products.
    pub version: i64,
    /// Units ever granted.
    pub supply: i64,
}

impl Product {
    /// The fields that Redis has of it: version, status, per-user limit, opening and closing time; 0 is no limit and no
    /// time.
    pub fn redis_fields(&self) -> [String; 5] {
        let sale = &self.sale;
        // A time before 1970 has passed, and so has 1 ms after 1970; 0 would mean none.
        let time = |at_ms: Option<i64>| at_ms.map_or(0, |at_ms| at_ms.max(1)).to_string();
        [
            self.version.to_string(),
            sale.status.as_str().to_owned(),
            sale.per_user_limit.unwrap_or(0).to_string(),
            time(sale.opens_at_ms),
            time(sale.closes_at_ms),
        ]
    }
}

/// A product, and how many of its units the ledger has sold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductWithSold {
    /// The product.
    pub product: Product,
    /// Units sold of its supply.
    pub sold: i64,
}

/// Units that a user has bought of a product with a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the terms of the design")]
pub struct Bought {
    pub user: UserId,
    pub product: ProductId,
    pub units: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sale() -> Sale {
        Sale {
            name: "Sneaker".into(),
            price: Price::parse("199.99", "EUR").unwrap(),
            opens_at_ms: None,
            closes_at_ms: None,
            per_user_limit: None,
            status: ProductStatus::OnSale,
        }
    }

    #[test]
    fn invalid_fields_of_a_product_are_refused() {
        assert_eq!(sale().check(), Ok(()));
        let window = Sale { opens_at_ms: Some(5), closes_at_ms: Some(5), ..sale() };
        assert_eq!(window.check(), Err(ProductError::Window));
        let unnamed = Sale { name: String::new(), ..sale() };
        assert_eq!(unnamed.check(), Err(ProductError::Name(NameError::Length)));
        assert_eq!(unnamed.check_without_name(), Ok(()));
        for bad in ["a\0", "a\nb", "\u{202e}a", "a\u{200b}"] {
            let named = Sale { name: bad.into(), ..sale() };
            assert_eq!(named.check(), Err(ProductError::Name(NameError::Character)));
        }
        assert_eq!(Sale { per_user_limit: Some(0), ..sale() }.check(), Err(ProductError::Limit));
        for units in [0, -1, UNITS_MAX + 1] {
            let product = NewProduct { id: "a".parse().unwrap(), sale: sale(), units };
            assert_eq!(product.check(), Err(ProductError::Units));
        }
    }

    #[test]
    fn status_is_parsed_from_its_own_name() {
        for status in [ProductStatus::OnSale, ProductStatus::Stopped, ProductStatus::Retired] {
            assert_eq!(ProductStatus::from_name(status.as_str()), Some(status));
        }
        assert_eq!(ProductStatus::from_name("on sale"), None);
    }
}
