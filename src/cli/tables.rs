//! The tables that commands print.

use comfy_table::{CellAlignment, Table};

use super::buyers::Answers;
use crate::audit::{ProductUnits, Report};

/// The result of a sale: one column of the table.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) product: String,
    pub(super) units: i64,
    pub(super) answers: Answers,
    /// What the ledger holds of the sale, where that was read.
    pub(super) stored: Option<Stored>,
}

/// What the ledger holds of a sale.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    /// Confirmed reservations of the product.
    pub(super) confirmed: u64,
    /// Accepted buyers whose reservation is not among them.
    pub(super) lost: u64,
    /// Confirmed reservations beyond the supply.
    pub(super) oversold: u64,
}

#[expect(clippy::cast_precision_loss, reason = "a rounded number for people")]
fn milliseconds(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1000.0)
}

#[expect(clippy::cast_precision_loss, reason = "a rounded number for people")]
fn rate(answers: &Answers) -> String {
    format!("{:.0}/s", answers.count() as f64 / answers.duration.as_secs_f64().max(0.001))
}

/// Attempts, outcomes, latency and rate of sales side by side.
pub(super) fn sale_table(columns: &[Column]) -> Table {
    let mut table = Table::new();
    let header = columns.iter().map(|column| column.product.clone());
    table.set_header(std::iter::once(String::new()).chain(header));
    let mut row = |name: &str, cell: &dyn Fn(&Column) -> String| {
        table.add_row(std::iter::once(name.to_owned()).chain(columns.iter().map(cell)));
    };
    row("units", &|c| c.units.to_string());
    row("attempts", &|c| c.answers.count().to_string());
    row("accepted", &|c| c.answers.accepted.len().to_string());
    row("sold out", &|c| c.answers.refused_with("SOLD_OUT").to_string());
    row("other answers", &|c| {
        let others = c.answers.refused.iter().filter(|(reason, _)| *reason != "SOLD_OUT");
        let counts: Vec<String> = others.map(|(reason, n)| format!("{reason} {n}")).collect();
        if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
    });
    if columns.iter().all(|column| column.stored.is_some()) {
        let of = |c: &Column, part: fn(Stored) -> u64| {
            c.stored.map(|stored| part(stored).to_string()).unwrap_or_default()
        };
        row("stored", &|c| of(c, |stored| stored.confirmed));
        row("oversold", &|c| of(c, |stored| stored.oversold));
        row("lost", &|c| of(c, |stored| stored.lost));
    }
    for (name, quantile) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
        row(name, &|c| milliseconds(c.answers.latency.value_at_quantile(quantile)));
    }
    row("rate", &|c| rate(&c.answers));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The units of each product, then the findings of the audit.
pub(super) fn audit_table(report: &Report) -> String {
    let mut table = Table::new();
    table.set_header(["product", "supply", "stock", "in orders", "in dead", "confirmed"]);
    for units in &report.products {
        let ProductUnits { product, supply, stock, in_orders, in_dead, confirmed } = units;
        let numbers = [supply, stock, in_orders, in_dead, confirmed].map(i64::to_string);
        table.add_row(std::iter::once(product.to_string()).chain(numbers));
    }
    let lost: Vec<_> = report.lost.iter().map(ToString::to_string).collect();
    let mut text = table.to_string();
    for (kind, findings) in [
        ("VIOLATED", &report.violations),
        ("UNKNOWN", &report.unknown),
        ("LOST", &lost),
        ("note", &report.notes),
    ] {
        text.extend(findings.iter().map(|found| format!("\n{kind}: {found}")));
    }
    text
}
