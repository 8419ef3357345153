//! `yoink import`: a catalogue from a CSV or JSON file, taken whole or not at all.

use std::{collections::HashMap, io::Read as _, path::Path, process::ExitCode};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::{offline, output};
use crate::{
    config::Config,
    domain::{NewProduct, Price, ProductId, ProductStatus, Sale, parse_rfc3339_ms},
    ledger::{Created, Establish},
};

/// A row as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    product_id: String,
    name: String,
    #[serde(deserialize_with = "text_or_number")]
    price: String,
    currency: String,
    #[serde(deserialize_with = "text_or_number")]
    units: String,
    #[serde(default, deserialize_with = "text_or_number")]
    per_user_limit: String,
    #[serde(default)]
    opens_at: Option<String>,
    #[serde(default)]
    closes_at: Option<String>,
}

/// CSV has only text, JSON also numbers and null.
fn text_or_number<'de, D: serde::Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Text(String),
        Number(serde_json::Number),
        None(()),
    }
    Ok(match Scalar::deserialize(value)? {
        Scalar::Text(text) => text,
        Scalar::Number(number) => number.to_string(),
        Scalar::None(()) => String::new(),
    })
}

/// A product and where it stands in the file.
#[derive(Debug, PartialEq)]
struct Placed {
    place: String,
    product: NewProduct,
}

pub(super) async fn run(config: &Config, file: &Path) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    let name = file.display();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    }
    let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let products = parse(&text, is_json).map_err(|problems| {
        anyhow::anyhow!("nothing was imported, {name} is wrong:\n  {}", problems.join("\n  "))
    })?;
    let ledger = offline::checked_ledger(config).await?;
    let deployment = match ledger.establish(config.partitions).await? {
        Establish::Is(deployment) => deployment,
        Establish::Other(found) => {
            bail!("this database has {} partitions: set partitions to that", found.partitions.get())
        }
    };
    let (places, products): (Vec<String>, Vec<NewProduct>) =
        products.into_iter().map(|placed| (placed.place, placed.product)).unzip();
    match ledger.create_products(&products, deployment.partitions, "import").await? {
        Created::Done { new, kept } => {
            let known = products.len() - new.len();
            output::line(format!("{} products created, {known} were there.", new.len()))?;
            for id in kept {
                output::line(format!("{id} is offered otherwise by now and was left as it is."))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Created::OtherUnits { at, units } => bail!(
            "nothing was imported: {}: {} was created with {units} units, not {}; \
             for more units use `yoink restock`",
            places[at],
            products[at].id,
            products[at].units
        ),
    }
}

/// The products of a file, or everything that is wrong with it.
fn parse(text: &str, is_json: bool) -> Result<Vec<Placed>, Vec<String>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows = if is_json { json_rows(text) } else { csv_rows(text) }?;
    let (mut products, mut problems) = (Vec::new(), Vec::new());
    let mut seen: HashMap<ProductId, String> = HashMap::new();
    for (place, row) in rows {
        match row.and_then(|row| product(&row)) {
            Err(problem) => problems.push(format!("{place}: {problem}")),
            Ok(product) => match seen.insert(product.id.clone(), place.clone()) {
                Some(first) => {
                    problems.push(format!("{place}: {} stands in {first}, too", product.id))
                }
                None => products.push(Placed { place, product }),
            },
        }
    }
    if problems.is_empty() && products.is_empty() {
        problems.push("it has no product".to_owned());
    }
    if problems.is_empty() { Ok(products) } else { Err(problems) }
}

type Rows = Vec<(String, Result<Row, String>)>;

fn csv_rows(text: &str) -> Result<Rows, Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::None).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| vec![error.to_string()])?.clone();
    let known = [
        "product_id",
        "name",
        "price",
        "currency",
        "units",
        "per_user_limit",
        "opens_at",
        "closes_at",
    ];
    let mut problems: Vec<String> = Vec::new();
    for (at, name) in known.iter().enumerate() {
        if at < 5 && !header.iter().any(|column| column == *name) {
            problems.push(format!("line 1: the column {name} is missing"));
        }
    }
    for column in header.iter().filter(|column| !known.contains(column)) {
        problems.push(format!("line 1: there is no column {column:?}"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let rows = reader.records().map(|record| match record {
        Err(error) => {
            let line = error.position().map_or(0, csv::Position::line);
            (
                format!("line {line}"),
                Err("has another number of columns than the header".to_owned()),
            )
        }
        Ok(record) => {
            let line = record.position().map_or(0, csv::Position::line);
            let row = record.deserialize::<Row>(Some(&header)).map_err(|error| error.to_string());
            (format!("line {line}"), row)
        }
    });
    Ok(rows.collect())
}

fn json_rows(text: &str) -> Result<Rows, Vec<String>> {
    let values: Vec<serde_json::Value> =
        serde_json::from_str(text).map_err(|error| vec![error.to_string()])?;
    let rows = values.into_iter().enumerate().map(|(at, value)| {
        let row = serde_json::from_value(value).map_err(|error| error.to_string());
        (format!("element {}", at + 1), row)
    });
    Ok(rows.collect())
}

fn product(row: &Row) -> Result<NewProduct, String> {
    let named = |field: &str, error: &dyn std::fmt::Display| format!("{field} {error}");
    let time = |field: &str, text: Option<&String>| match text.map(String::as_str) {
        None | Some("") => Ok(None),
        Some(text) => parse_rfc3339_ms(text).map(Some).map_err(|error| named(field, &error)),
    };
    let limit = match row.per_user_limit.as_str() {
        "" | "0" => None,
        text => Some(text.parse().map_err(|_| "per_user_limit is no number".to_owned())?),
    };
    let sale = Sale {
        name: row.name.clone(),
        price: Price::parse(&row.price, &row.currency).map_err(|error| named("price", &error))?,
        opens_at_ms: time("opens_at", row.opens_at.as_ref())?,
        closes_at_ms: time("closes_at", row.closes_at.as_ref())?,
        per_user_limit: limit,
        status: ProductStatus::OnSale,
    };
    let product = NewProduct {
        id: row.product_id.parse().map_err(|error| named("product_id", &error))?,
        sale,
        units: row.units.parse().map_err(|_| "units is no whole number".to_owned())?,
    };
    product.check().map_err(|error| error.to_string())?;
    Ok(product)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "product_id,name,price,currency,units,per_user_limit,opens_at,closes_at\n";

    #[test]
    fn the_last_three_columns_may_be_missing_or_empty() {
        let short = "product_id,name,price,currency,units\nshoe,Shoe,199.99,EUR,500\n";
        let long = format!("{HEADER}shoe,Shoe,199.99,EUR,500,,,\n");
        let (short, long) = (parse(short, false).unwrap(), parse(&long, false).unwrap());
        assert_eq!(short, long);
        assert_eq!(short[0].product.units, 500);
        let json =
            r#"[{"product_id":"shoe","name":"Shoe","price":199.99,"currency":"EUR","units":500}]"#;
        assert_eq!(parse(json, true).unwrap()[0].product, short[0].product);
    }

    #[test]
    fn a_window_and_a_limit_are_read() {
        let text =
            format!("{HEADER}a,A,1,EUR,1,2,2026-11-27T18:00:00Z,2026-11-27T20:00:00+01:00\n");
        let sale = &parse(&text, false).unwrap()[0].product.sale;
        assert_eq!(sale.per_user_limit, Some(2));
        assert_eq!(sale.closes_at_ms.unwrap() - sale.opens_at_ms.unwrap(), 3_600_000);
    }

    #[test]
    fn every_wrong_row_is_named_by_its_line() {
        let text = format!(
            "{HEADER}a b,A,1,EUR,1,,,\nok,OK,1,EUR,1,,,\nc,C,x,EUR,1,,,\nd,D,1,EUR,0,,,\n\
             e,E,1,EUR,1,,noon,\nok,OK,1,EUR,1,,,\nf,F,1,EUR\ng,G,1,EUR,9007199254740993,,,\n"
        );
        let problems = parse(&text, false).unwrap_err();
        let lines: Vec<&str> = problems.iter().map(|p| p.split(':').next().unwrap()).collect();
        assert_eq!(lines, ["line 2", "line 4", "line 5", "line 6", "line 7", "line 8", "line 9"]);
        assert!(problems[4].contains("stands in line 3"));
    }

    #[test]
    fn a_wrong_header_or_no_row_is_refused() {
        assert!(parse("id,name\n1,x\n", false).is_err());
        assert!(parse(HEADER, false).is_err());
        assert!(parse("[]", true).is_err());
        assert!(parse("{", true).is_err());
        assert!(parse(r#"[{"product_id":"a"}]"#, true).unwrap_err()[0].starts_with("element 1"));
    }
}
