//! `yoink import`: a catalogue from a CSV or JSON file. Every product is created, or none.

mod csv_file;
#[cfg(test)]
mod fuzz;
mod json_file;
mod position;
mod row;

use std::{
    collections::HashMap,
    io::Read as _,
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::{Context as _, bail};

use self::{
    position::{Cursor, Position},
    row::Row,
};
use super::{output, progress, store_commands};
use crate::{
    app::checked_deployment,
    config::Config,
    domain::{NewProduct, ProductId},
    ledger::{Created, Ledger},
};

/// How many problems are printed; the others are counted.
const PROBLEMS_MAX: usize = 50;

/// What is wrong with a file, one sentence for each problem.
type Problems = Vec<String>;

pub(super) async fn run(config: &Config, file: &Path) -> anyhow::Result<ExitCode> {
    let mut bytes = Vec::new();
    let name = file.display();
    if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        bytes = std::fs::read(file).with_context(|| format!("cannot read {name}"))?;
    }
    let is_json = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let products = parse(&bytes, is_json).map_err(|problems| {
        anyhow::anyhow!("nothing was imported, {name} is wrong:\n  {}", listed(problems))
    })?;
    drop(bytes);
    let ledger = store_commands::checked_ledger(config).await?;
    let (positions, products): (Vec<Position>, Vec<NewProduct>) = products.into_iter().unzip();
    match store(config, &ledger, &products).await? {
        Created::Done { new, kept } => {
            let known = products.len() - new.len();
            output::line(format!("{} products created, {known} existed already.", new.len()))?;
            for id in kept {
                output::line(format!(
                    "{id} exists with another name, price, limit, window or status; it was not changed."
                ))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Created::SupplyDiffers { at, units } => bail!(
            "nothing was imported: {} (product_id): {} was created with {units} units, not {}; \
             for more units use `yoink restock`",
            positions[at],
            products[at].id,
            products[at].units
        ),
    }
}

/// Stores the products, then gives versions to the new ones.
async fn store(
    config: &Config,
    ledger: &Ledger,
    products: &[NewProduct],
) -> anyhow::Result<Created> {
    let deployment = checked_deployment(ledger, config).await?;
    let done = Arc::new(AtomicU64::new(0));
    let work = ledger.import_products(products, deployment.partitions, "import", &done);
    let total = products.len() as u64;
    let imported = progress::show_on_terminal("storing", total, done.clone(), work).await??;
    let done = Arc::new(AtomicU64::new(0));
    let work = ledger.assign_versions(&imported.unversioned, &done);
    let total = imported.unversioned.len() as u64;
    progress::show_on_terminal("putting on sale", total, done.clone(), work).await?.context(
        "the products are stored, but not yet on sale everywhere: running services add 1,000 every half second; \
         to finish now, import the file again",
    )?;
    Ok(imported.created)
}

/// The first problems, one per line.
fn listed(mut problems: Problems) -> String {
    let more = problems.len().saturating_sub(PROBLEMS_MAX);
    problems.truncate(PROBLEMS_MAX);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    problems.join("\n  ")
}

/// The text of a file without its byte order mark, or what is wrong with the encoding.
fn decode(bytes: &[u8]) -> Result<&str, String> {
    let utf_16 = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..]);
    if utf_16 {
        return Err("line 1, column 1: the file is UTF-16: save the file as UTF-8".to_owned());
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let offset = error.valid_up_to();
        let position = Cursor::new(bytes).position_at(offset);
        format!("{position}: the byte 0x{:02x} is not UTF-8: save the file as UTF-8", bytes[offset])
    })
}

/// The products of a file with their positions, or everything that is wrong with the file.
pub(super) fn parse(bytes: &[u8], is_json: bool) -> Result<Vec<(Position, NewProduct)>, Problems> {
    let text = decode(bytes).map_err(|problem| vec![problem])?;
    let rows = if is_json { json_file::rows(text) } else { csv_file::rows(text) }?;
    let (mut products, mut problems) = (Vec::new(), Vec::new());
    let mut seen: HashMap<ProductId, Position> = HashMap::new();
    for row in rows {
        match row.and_then(|row| Ok((row.position(), row.product()?))) {
            Ok((position, product)) => match seen.insert(product.id.clone(), position) {
                Some(first) => problems.push(format!(
                    "{position} (product_id): {} is already in {first} (product_id)",
                    product.id
                )),
                None => products.push((position, product)),
            },
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() && products.is_empty() {
        problems.push("line 1, column 1: the file has no products".to_owned());
    }
    if problems.is_empty() { Ok(products) } else { Err(problems) }
}

#[cfg(test)]
mod tests;
