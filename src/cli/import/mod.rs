//! `yoink import`: a catalogue from a CSV or JSON file, taken whole or not at all.

mod csv_file;
mod json_file;
mod place;
mod row;
mod text;

use std::{
    collections::HashMap,
    io::Read as _,
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::{Context as _, bail};

use self::{place::Place, row::Row};
use super::{offline, output, progress};
use crate::{
    config::Config,
    domain::{NewProduct, ProductId},
    ledger::{Created, Established, Ledger},
};

/// Problems that are printed; of the others, the number.
const MAX_PROBLEMS: usize = 50;

/// What is wrong with a file, a sentence each.
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
    let ledger = offline::checked_ledger(config).await?;
    let (places, products): (Vec<Place>, Vec<NewProduct>) = products.into_iter().unzip();
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
        Created::OtherUnits { at, units } => bail!(
            "nothing was imported: {}: {} was created with {units} units, not {}; \
             for more units use `yoink restock`",
            places[at],
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
    let deployment = match ledger.establish(config.partitions).await? {
        Established::Matches(deployment) => deployment,
        Established::Differs(found) => {
            let number = found.partitions.get();
            bail!(
                "this database was initialised with {number} partitions: set partitions = {number}"
            )
        }
    };
    let done = Arc::new(AtomicU64::new(0));
    let work = ledger.import_products(products, deployment.partitions, "import", &done);
    let imported = progress::bar("storing", count(products.len()), done.clone(), work).await??;
    let done = Arc::new(AtomicU64::new(0));
    let work = ledger.assign_versions(&imported.unversioned, &done);
    let total = count(imported.unversioned.len());
    progress::bar("publishing", total, done.clone(), work).await?.context(
        "the products are stored, but running services do not see all of them yet: \
         each gives versions to 1,000 products every half second; or import the file again",
    )?;
    Ok(imported.created)
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// The first problems, one a line.
fn listed(mut problems: Problems) -> String {
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    problems.join("\n  ")
}

/// The products of a file and where each stands in it, or everything that is wrong with the file.
fn parse(bytes: &[u8], is_json: bool) -> Result<Vec<(Place, NewProduct)>, Problems> {
    let text = text::decode(bytes).map_err(|problem| vec![problem])?;
    let rows = if is_json { json_file::rows(text) } else { csv_file::rows(text) }?;
    let (mut products, mut problems) = (Vec::new(), Vec::new());
    let mut seen: HashMap<ProductId, Place> = HashMap::new();
    for row in rows {
        let (id_place, product) = match row.and_then(|row| {
            let place = row.place_of("product_id");
            row.product().map(|product| (place, product))
        }) {
            Ok(placed) => placed,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        match seen.insert(product.id.clone(), id_place.clone()) {
            Some(first) => {
                problems.push(format!("{id_place}: {} is already in {first}", product.id))
            }
            None => products.push((id_place, product)),
        }
    }
    if problems.is_empty() && products.is_empty() {
        problems.push("line 1, column 1: the file has no products".to_owned());
    }
    if problems.is_empty() { Ok(products) } else { Err(problems) }
}

#[cfg(test)]
mod tests;
