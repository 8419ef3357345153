//! `yoink dead`: lists, shows, retries and releases dead entries.

use std::{env, io, ops::ControlFlow, process::ExitCode};

use anyhow::{bail, ensure};
use clap::Subcommand;
use comfy_table::Table;
use jiff::Timestamp;

use super::output;
use crate::{
    app::Stores,
    config::Config,
    dead_letters::{
        Action, DeadFilter, DeadLetterError, DryRun, EntryOutcome, Interrupted, OutcomeCounts,
        PAGE, Selection,
    },
    domain::{OperatorText, Reservation, ReservationId, ReservationState},
    ledger::{ActionBy, LookedUp},
    stream::DeadEntry,
};

#[derive(Debug, Subcommand)]
pub(super) enum DeadCommand {
    /// Lists dead entries: all, or by product, SQLSTATE and age.
    List(DeadFilter),
    /// Shows one reservation: its dead entry or its state in the ledger, and every action on it.
    Show {
        /// The reservation.
        reservation_id: ReservationId,
    },
    /// Stores the orders.
    Retry(ActionArgs),
    /// Voids the orders and gives their units back.
    Release(ActionArgs),
}

/// Which entries are acted on, by whom, and why.
#[derive(Debug, clap::Args)]
pub(super) struct ActionArgs {
    /// The entries of these reservations.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    reservation_ids: Vec<ReservationId>,
    /// Every entry, or every entry that matches the filters.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: DeadFilter,
    /// Changes nothing, and prints what the command would do.
    #[arg(long)]
    dry_run: bool,
    /// Who acts, for the record; without it, the login name.
    #[arg(long, default_value = "")]
    actor: OperatorText,
    /// Why the action is done, for the record.
    #[arg(long, default_value = "")]
    reason: OperatorText,
}

pub(super) async fn run(config: &Config, command: DeadCommand) -> anyhow::Result<ExitCode> {
    let stores = Stores::connect(config).await?;
    stores.load_epochs().await?;
    match command {
        DeadCommand::List(filter) => list(&stores, filter).await?,
        DeadCommand::Show { reservation_id } => show(&stores, reservation_id).await?,
        DeadCommand::Retry(args) => return apply(&stores, Action::Retry, args).await,
        DeadCommand::Release(args) => return apply(&stores, Action::Release, args).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Replaces the control characters of a text from outside, which a terminal would interpret.
fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn time(ms: i64) -> anyhow::Result<Timestamp> {
    Ok(Timestamp::from_millisecond(ms)?)
}

fn list_table() -> Table {
    let mut table = Table::new();
    table.set_header(["dead key", "product", "moved at", "SQLSTATE", "moved reason"]);
    table
}

/// Prints a table for each page, so that no more than a page of entries is held.
async fn list(stores: &Stores, filter: DeadFilter) -> anyhow::Result<()> {
    let selection = Selection::All(filter);
    let mut cursor = stores.dead_letters.cursor(&selection).await?;
    let (mut table, mut printed) = (list_table(), false);
    let read = loop {
        let page = match cursor.next_page().await {
            Ok(Some(page)) => page,
            Ok(None) => break Ok(()),
            Err(error) => break Err(with_advice(error)),
        };
        for dead in &page.entries {
            let moved_at = time(dead.moved_at_ms())?.to_string();
            let product = dead.entry.field("p").unwrap_or_default();
            let row = [dead.dead_key(), product, &moved_at, dead.sqlstate(), dead.reason()];
            table.add_row(row.map(plain));
        }
        if table.row_count() >= PAGE {
            output::line(&table)?;
            (table, printed) = (list_table(), true);
        }
    };
    // If a partition cannot be read, what was read before it is still printed.
    if !table.is_empty() || (read.is_ok() && !printed) {
        output::line(table)?;
    }
    read
}

/// What the fields of a dead entry are called here.
const FIELD_NAMES: [(&str, &str); 14] = [
    ("v", "format"),
    ("p", "product"),
    ("u", "user"),
    ("r", "random part"),
    ("t", "reserved at"),
    ("q", "request id"),
    ("w", "bucket"),
    ("l", "counts for the limit"),
    ("c", "traceparent"),
    ("id", "entry id"),
    ("rid", "dead key"),
    ("reason", "moved reason"),
    ("sqlstate", "SQLSTATE"),
    ("at", "moved at"),
];

fn print_entry(dead: &DeadEntry) -> io::Result<()> {
    for (field, value) in dead.entry.unpacked() {
        let known = FIELD_NAMES.iter().find(|(known, _)| *known == field);
        let name = known.map_or(field, |(_, name)| name);
        let at = if name.ends_with(" at") { value.parse().ok() } else { None };
        let value = at.and_then(|ms| Some(time(ms).ok()?.to_string())).unwrap_or(value.to_owned());
        output::line(format!("{} = {value:?}", plain(name)))?;
    }
    Ok(())
}

fn print_stored(stored: Reservation) -> anyhow::Result<()> {
    Ok(output::line(match stored.state {
        ReservationState::Accepted => "state = accepted".to_owned(),
        ReservationState::Confirmed { recorded_at_ms } => {
            format!("state = confirmed\nrecorded at = {}", time(recorded_at_ms)?)
        }
        ReservationState::Voided { recorded_at_ms, reason } => {
            format!("state = voided\nrecorded at = {}\nreason = {reason:?}", time(recorded_at_ms)?)
        }
    })?)
}

/// Adds what to do if the partition is fenced.
fn with_advice(error: DeadLetterError) -> anyhow::Error {
    let fenced = error.is_fenced();
    let error = anyhow::Error::from(error);
    if !fenced {
        return error;
    }
    error.context(
        "dead entries of a fenced partition cannot be read: run `yoink rebuild`, or wait until a worker has rebuilt it",
    )
}

async fn show(stores: &Stores, id: ReservationId) -> anyhow::Result<()> {
    // An order moves from the dead stream to the ledger, never back, so this sequence does not miss it. The
    // ledger's state is also valid while the partition is fenced.
    let found = match stores.dead_letters.find(id).await {
        Err(error) if !error.is_fenced() => return Err(error.into()),
        found => found,
    };
    if let Ok(Some(dead)) = &found {
        print_entry(dead)?;
    } else if let LookedUp::Reservation(stored) = stores.ledger.look_up(id).await? {
        print_stored(stored)?;
    } else {
        found.map_err(with_advice)?;
        bail!("{id} has no dead entry and is not in the ledger");
    }
    let actions = stores.ledger.dead_actions(id).await?;
    if actions.is_empty() {
        return Ok(output::line("No action on it is recorded.")?);
    }
    let mut table = Table::new();
    table.set_header(["at", "action", "actor", "reason"]);
    for record in actions {
        let row = [time(record.at_ms)?.to_string(), record.action, record.actor, record.reason];
        table.add_row(row.each_ref().map(|text| plain(text)));
    }
    Ok(output::line(table)?)
}

/// The login name, if the environment has it.
fn login_name() -> String {
    let name = ["LOGNAME", "USER"].into_iter().find_map(|name| env::var(name).ok());
    name.and_then(|name| name.parse::<OperatorText>().ok()).unwrap_or_default().or("command line")
}

async fn apply(stores: &Stores, action: Action, args: ActionArgs) -> anyhow::Result<ExitCode> {
    let filter = args.filter;
    ensure!(args.all || filter.is_empty(), "filters are allowed only with --all");
    if !args.dry_run {
        stores.check_permissions().await?;
    }
    let selection = if args.all {
        Selection::All(filter)
    } else {
        let mut ids = args.reservation_ids;
        ids.sort_unstable();
        ids.dedup();
        for id in &ids {
            if stores.dead_letters.find(*id).await.map_err(with_advice)?.is_none() {
                bail!("{id} has no dead entry; nothing was done");
            }
        }
        Selection::Ids(ids)
    };
    let counts = if args.dry_run {
        let dry_run = stores.dead_letters.dry_run(action, &selection).await.map_err(with_advice)?;
        output::line(effect_table(&dry_run))?;
        output::line(format!(
            "Dry run, nothing was done. The result would be: {}.",
            summary(&dry_run.counts)
        ))?;
        dry_run.counts
    } else {
        let actor = args.actor.or(&login_name());
        let by = ActionBy { actor, reason: args.reason.to_string() };
        let mut printed = Ok(());
        let applied = stores.dead_letters.apply(action, &selection, &by, |dead, outcome| {
            printed = output::line(entry_line(dead, outcome));
            if printed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        let (counts, error) = match applied.await {
            Ok(counts) => (counts, None),
            Err(Interrupted { done, error }) => (done, Some(error)),
        };
        printed?;
        output::line(format!("Done: {}.", summary(&counts)))?;
        if let Some(error) = error {
            let context = "the command stopped before the last entry: run it again to continue";
            return Err(with_advice(error).context(context));
        }
        counts
    };
    Ok(ExitCode::from(u8::from(counts.refused + counts.unrecognized + counts.no_stock > 0)))
}

fn entry_line(dead: &DeadEntry, outcome: EntryOutcome) -> String {
    let outcome = match outcome {
        EntryOutcome::Released => "voided, unit given back",
        EntryOutcome::Stored => "stored",
        EntryOutcome::AlreadyDecided => "already stored or released",
        EntryOutcome::Refused => "refused again, the entry stays",
        EntryOutcome::Unrecognized => "not written by this program, the entry stays",
        EntryOutcome::NoStock => {
            "voided, but Redis has no stock of the product: rebuild the partition"
        }
    };
    format!("{} {outcome}", plain(dead.dead_key()))
}

fn summary(counts: &OutcomeCounts) -> String {
    let OutcomeCounts { released, stored, decided, refused, unrecognized, no_stock, not_found } =
        counts;
    format!(
        "{released} units given back, {stored} orders stored, {refused} refused again, {decided} \
         already stored or released, {unrecognized} unrecognized, \
         {no_stock} kept because Redis has no stock of the product, {not_found} not found"
    )
}

fn effect_table(dry_run: &DryRun) -> Table {
    let mut table = Table::new();
    table.set_header(["product", "entries", "stock now", "stock after"]);
    let units = |units: Option<i64>| units.map_or("unknown".to_owned(), |units| units.to_string());
    for (product, effect) in &dry_run.products {
        table.add_row([
            product.to_string(),
            effect.entries().to_string(),
            units(effect.stock_now),
            units(effect.stock_after()),
        ]);
    }
    table
}
