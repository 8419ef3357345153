//! `yoink dead`: orders that could not be stored.

use std::{env, io, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use comfy_table::Table;
use jiff::{Span, SpanRelativeTo, Timestamp};

use super::output;
use crate::{
    app::Stores,
    config::Config,
    dead_letters::{
        Chosen, DeadFilter, DeadLetterError, Effect, PAGE, Settled, SqlstateFilter, Tally, Work,
    },
    domain::{Note, ProductId, Reservation, ReservationId, ReservationState},
    ledger::DeadAction,
    stream::DeadEntry,
};

#[derive(Debug, Subcommand)]
pub(super) enum DeadCommand {
    /// Every dead entry, or those of a product, a SQLSTATE, an age.
    List(Filter),
    /// One reservation, whole: its dead entry or what became of it, and what was done about it.
    Show {
        /// Which.
        reservation_id: ReservationId,
    },
    /// Stores orders after all.
    Retry(WorkArgs),
    /// Voids orders and gives their units back.
    Release(WorkArgs),
}

/// What is all of this.
#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// Orders of this product.
    #[arg(long)]
    product: Option<ProductId>,
    /// Refused with this SQLSTATE; `none`: not by Postgres.
    #[arg(long)]
    sqlstate: Option<SqlstateFilter>,
    /// Buried at least so long ago by the clock of Redis: 90s, 10m, 2h, 1d.
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Option<Duration>,
}

/// Which, by whom and why.
#[derive(Debug, clap::Args)]
pub(super) struct WorkArgs {
    /// These.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    reservation_ids: Vec<ReservationId>,
    /// Every one, or every one that passes the filters.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// Does nothing, and prints what it would do.
    #[arg(long)]
    dry_run: bool,
    /// Who, for the record; without it, the login name.
    #[arg(long, default_value = "")]
    actor: Note,
    /// Why, for the record.
    #[arg(long, default_value = "")]
    reason: Note,
}

/// A time that has passed; a day has 24 hours.
fn age(text: &str) -> Result<Duration, String> {
    let bad = || "is no age such as 90s, 10m, 2h or 1d".to_owned();
    let span: Span = text.parse().map_err(|_| bad())?;
    let age = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| bad())?;
    Duration::try_from(age).map_err(|_| bad())
}

impl Filter {
    fn into_dead(self) -> DeadFilter {
        let Self { product, sqlstate, older_than } = self;
        DeadFilter { product, sqlstate, older_than }
    }
}

pub(super) async fn run(config: &Config, command: DeadCommand) -> anyhow::Result<ExitCode> {
    let stores = Stores::connect(config).await?;
    stores.load_epochs().await?;
    match command {
        DeadCommand::List(filter) => list(&stores, filter.into_dead()).await?,
        DeadCommand::Show { reservation_id } => show(&stores, reservation_id).await?,
        DeadCommand::Retry(args) => return work(&stores, Work::Retry, args).await,
        DeadCommand::Release(args) => return work(&stores, Work::Release, args).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// A text that anybody may have written, without what a terminal would obey.
fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn time(ms: i64) -> anyhow::Result<Timestamp> {
    Ok(Timestamp::from_millisecond(ms)?)
}

fn list_table() -> Table {
    let mut table = Table::new();
    table.set_header(["reservation", "product", "moved at", "SQLSTATE", "reason"]);
    table
}

/// Page by page: a table has as many rows as are held at a time.
async fn list(stores: &Stores, filter: DeadFilter) -> anyhow::Result<()> {
    let chosen = Chosen::All(filter);
    let mut walk = stores.dead_letters.walk(&chosen).await?;
    let (mut table, mut printed) = (list_table(), false);
    let walked = loop {
        let page = match walk.next().await {
            Ok(Some(page)) => page,
            Ok(None) => break Ok(()),
            Err(error) => break Err(readable(error)),
        };
        for dead in &page.entries {
            let moved_at = time(dead.moved_at_ms())?.to_string();
            let product = dead.entry.field("p").unwrap_or_default();
            let row = [dead.named(), product, &moved_at, dead.sqlstate(), dead.reason()];
            table.add_row(row.map(plain));
        }
        if table.row_count() >= PAGE {
            output::line(&table)?;
            (table, printed) = (list_table(), true);
        }
    };
    // Also what was read before a partition that cannot be read.
    if !table.is_empty() || (walked.is_ok() && !printed) {
        output::line(table)?;
    }
    walked
}

fn print_entry(dead: &DeadEntry) -> io::Result<()> {
    for (name, value) in &dead.entry.fields {
        output::line(format!("{name} = {value:?}"))?;
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

/// Says what to do where the dead entries cannot be read because their partition is fenced.
fn readable(error: DeadLetterError) -> anyhow::Error {
    let fenced = error.is_fenced();
    let error = anyhow::Error::from(error);
    if fenced {
        error.context(
            "dead entries cannot be read before their partition is rebuilt: run `yoink rebuild`, or wait for a worker",
        )
    } else {
        error
    }
}

async fn show(stores: &Stores, id: ReservationId) -> anyhow::Result<()> {
    // An entry goes from the dead to the ledger, never back: asked in this order, it is not missed. What the
    // ledger holds is also true while the partition is fenced.
    let found = match stores.dead_letters.find(id).await {
        Err(error) if !error.is_fenced() => return Err(error.into()),
        found => found,
    };
    if let Ok(Some(dead)) = &found {
        print_entry(dead)?;
    } else if let Some(stored) = stores.ledger.find(id).await? {
        print_stored(stored)?;
    } else {
        found.map_err(readable)?;
        bail!("{id} is neither dead nor in the ledger");
    }
    let actions = stores.ledger.dead_actions(id).await?;
    if actions.is_empty() {
        return Ok(output::line("Nothing was done about it so far.")?);
    }
    let mut table = Table::new();
    table.set_header(["at", "action", "actor", "reason"]);
    for done in actions {
        let row = [time(done.at_ms)?.to_string(), done.action, done.actor, done.reason];
        table.add_row(row.each_ref().map(|text| plain(text)));
    }
    Ok(output::line(table)?)
}

/// Who is at the terminal, as far as it is known.
fn login_name() -> String {
    let name = ["LOGNAME", "USER"].into_iter().find_map(|name| env::var(name).ok());
    name.and_then(|name| name.parse::<Note>().ok()).unwrap_or_default().or("command line")
}

async fn work(stores: &Stores, work: Work, args: WorkArgs) -> anyhow::Result<ExitCode> {
    let filter = args.filter.into_dead();
    ensure!(args.all || filter.is_empty(), "a filter goes with --all, not with reservations");
    let chosen = if args.all {
        Chosen::All(filter)
    } else {
        let mut ids = args.reservation_ids;
        ids.sort_unstable();
        ids.dedup();
        for id in &ids {
            if stores.dead_letters.find(*id).await.map_err(readable)?.is_none() {
                bail!("{id} is not among the dead; nothing was done");
            }
        }
        Chosen::These(ids)
    };
    let tally = if args.dry_run {
        let effect = stores.dead_letters.effect(work, &chosen).await.map_err(readable)?;
        output::line(effect_table(&effect))?;
        output::line(format!("Nothing was done. It would come to this: {}.", told(&effect.tally)))?;
        effect.tally
    } else {
        let actor = args.actor.or(&login_name());
        let action = DeadAction { actor, reason: args.reason.to_string() };
        let mut tally = Tally::default();
        let worked = work_through(stores, work, (&chosen, &action), &mut tally).await;
        // Also when it failed on the way.
        output::line(format!("All in all: {}.", told(&tally)))?;
        worked.context("not all was done; the same command goes on where this one ended")?;
        tally
    };
    Ok(ExitCode::from(u8::from(tally.refused + tally.unrecognized > 0)))
}

async fn work_through(
    stores: &Stores,
    work: Work,
    (chosen, action): (&Chosen, &DeadAction),
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let mut walk = stores.dead_letters.walk(chosen).await?;
    while let Some(page) = walk.next().await.map_err(readable)? {
        tally.settled += page.gone;
        for dead in &page.entries {
            let settled = stores.dead_letters.settle(work, dead, action).await.map_err(readable)?;
            tally.add(settled);
            output::line(line(dead, settled))?;
        }
    }
    Ok(())
}

fn line(dead: &DeadEntry, settled: Settled) -> String {
    let told = match settled {
        Settled::Released => "voided, its unit went back",
        Settled::Stored => "stored",
        Settled::Before => "had been settled before",
        Settled::Refused => "refused again, it stays",
        Settled::Unrecognized => "is none of ours, it stays",
    };
    format!("{} {told}", plain(dead.named()))
}

fn told(tally: &Tally) -> String {
    let Tally { released, stored, settled, refused, unrecognized } = tally;
    format!(
        "{released} units back, {stored} orders stored, {refused} refused again, {settled} settled \
         before, {unrecognized} none of ours"
    )
}

fn effect_table(effect: &Effect) -> Table {
    let mut table = Table::new();
    table.set_header(["product", "entries", "stock now", "stock after"]);
    let units = |units: Option<i64>| units.map_or("unknown".to_owned(), |units| units.to_string());
    for (product, effect) in &effect.products {
        table.add_row([
            product.to_string(),
            effect.entries().to_string(),
            units(effect.stock_now),
            units(effect.stock_after()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_number_and_a_unit() {
        let ages = [("90s", 90), ("10m", 600), ("2h", 7200), ("1d", 86_400), ("1h 30m", 5400)];
        for (text, seconds) in ages.into_iter().chain([("0s", 0), ("PT5M", 300)]) {
            assert_eq!(age(text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        for bad in ["", "10", "-10m", "10m ago", "1mo", "1y", "soon", "99999999999999d"] {
            assert!(age(bad).is_err(), "{bad}");
        }
    }
}
