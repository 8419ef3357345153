//! A row as it is written, and the product that it describes. Numbers stay text until their own type parses them: no
//! number becomes a float in between.

use super::position::Position;
use crate::domain::{NewProduct, Price, PriceError, ProductStatus, Sale, parse_rfc3339_ms};

/// The columns of a catalogue, and the keys of a JSON object. The first five are required.
pub(super) const COLUMNS: [&str; 8] =
    ["product_id", "name", "price", "currency", "units", "per_user_limit", "opens_at", "closes_at"];

/// How many of [`COLUMNS`] are required.
pub(super) const REQUIRED: usize = 5;

/// The text of a cell, and where it begins.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) position: Position,
}

/// One cell for each of [`COLUMNS`]. A cell that the file does not have is empty and has the position of the row.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) cells: [Cell; 8],
}

impl Row {
    fn cell(&self, name: &'static str) -> &Cell {
        let at = COLUMNS.iter().position(|column| *column == name).unwrap_or(0);
        &self.cells[at]
    }

    /// The position of the product's id.
    pub(super) fn position(&self) -> Position {
        self.cells[0].position
    }

    fn problem(&self, name: &'static str, what: impl std::fmt::Display) -> String {
        format!("{} ({name}): {what}", self.cell(name).position)
    }

    /// The product, or the first thing that is wrong with it.
    pub(super) fn product(&self) -> Result<NewProduct, String> {
        for name in &COLUMNS[..REQUIRED] {
            if self.cell(name).text.is_empty() {
                return Err(self.problem(name, format!("{name} is empty")));
            }
        }
        let text = |name| self.cell(name).text.as_str();
        let limit = match text("per_user_limit") {
            "" | "0" => None,
            text => Some(self.whole_number("per_user_limit", text)?),
        };
        let price = Price::parse(text("price"), text("currency")).map_err(|error| {
            let of_currency = matches!(error, PriceError::UnknownCurrency);
            let name = if of_currency { "currency" } else { "price" };
            self.problem(name, format!("price {error}"))
        })?;
        let sale = Sale {
            name: text("name").to_owned(),
            price,
            opens_at_ms: self.time("opens_at")?,
            closes_at_ms: self.time("closes_at")?,
            per_user_limit: limit,
            status: ProductStatus::OnSale,
        };
        let id = text("product_id")
            .parse()
            .map_err(|error| self.problem("product_id", format!("product_id {error}")))?;
        let units = self.whole_number("units", text("units"))?;
        let product = NewProduct { id, sale, units };
        product.check().map_err(|error| {
            // The message begins with the name of the field.
            let message = error.to_string();
            let name = COLUMNS.into_iter().find(|name| message.starts_with(name));
            self.problem(name.unwrap_or("product_id"), message)
        })?;
        Ok(product)
    }

    /// A whole number: digits and nothing else.
    fn whole_number<N: std::str::FromStr>(
        &self,
        name: &'static str,
        text: &str,
    ) -> Result<N, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            let message = format!("{name} is not a whole number: write it with digits only");
            return Err(self.problem(name, message));
        }
        text.parse().map_err(|_| self.problem(name, format!("{name} is too large")))
    }

    fn time(&self, name: &'static str) -> Result<Option<i64>, String> {
        match self.cell(name).text.as_str() {
            "" => Ok(None),
            text => parse_rfc3339_ms(text)
                .map(Some)
                .map_err(|error| self.problem(name, format!("{name} {error}"))),
        }
    }
}

/// Text of a file, short and escaped for a message.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    let short: String = text.chars().take(SHOWN_MAX).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("\"{}\"{more}", short.escape_default())
}
