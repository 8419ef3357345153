//! The tables that commands print.

use comfy_table::{Cell, CellAlignment, Table};

use crate::{
    audit::{self, ProductUnits},
    load,
};

/// The result of a sale: one column of the table.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) product: String,
    pub(super) units: i64,
    pub(super) load: load::Report,
    pub(super) stored: Stored,
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

/// Attempts, outcomes, latency and rate of sales side by side.
pub(super) fn sale_table(columns: &[Column]) -> Table {
    let mut table = Table::new();
    let header = columns.iter().map(|column| column.product.clone());
    table.set_header(std::iter::once(String::new()).chain(header));
    let mut row = |name: &str, cell: &dyn Fn(&Column) -> String| {
        table.add_row(std::iter::once(name.to_owned()).chain(columns.iter().map(cell)));
    };
    row("units", &|c| c.units.to_string());
    row("attempts", &|c| c.load.calls().to_string());
    row("accepted", &|c| c.load.accepted().to_string());
    row("sold out", &|c| c.load.outcomes.named("SOLD_OUT").to_string());
    row("other answers", &|c| {
        let others = c.load.outcomes.iter();
        let others = others.filter(|(o, _)| !["accepted", "SOLD_OUT"].contains(&&*o.name));
        let counts: Vec<String> = others.map(|(o, n)| format!("{} {n}", o.name)).collect();
        if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
    });
    row("stored", &|c| c.stored.confirmed.to_string());
    row("oversold", &|c| c.stored.oversold.to_string());
    row("lost", &|c| c.stored.lost.to_string());
    for (name, quantile) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
        row(name, &|c| format!("{:.1} ms", c.load.latency_at(quantile).as_secs_f64() * 1e3));
    }
    row("rate", &|c| format!("{:.0}/s", c.load.rate()));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// The result of a run of the load generator.
pub(super) fn load_table(report: &load::Report) -> Table {
    let mut table = Table::new();
    table.set_header(["", &report.plan.target]);
    for (name, value) in report.lines() {
        table.add_row([Cell::new(name), Cell::new(value).set_alignment(CellAlignment::Right)]);
    }
    table
}

/// The units of each product, then the findings of the audit.
pub(super) fn audit_table(report: &audit::Report) -> String {
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
