//! The dead part of `AdminService`: which entries, what to do with them, and what was done.

use std::time::Duration;

use super::{
    Services,
    convert::{self, Fields, timestamp},
    error::ApiError,
    page_token::PagedList,
    pb,
};
use crate::{
    dead_letters::{
        Chosen, DeadFilter, DeadLetterError, Effect, PAGE, Place, ProductEffect, Tally, Work,
    },
    domain::{ProductId, ReservationId},
    ledger::DeadAction,
    stream::DeadEntry,
};

/// A filter as it stands in a request.
struct Asked<'a> {
    product_id: &'a str,
    sqlstate: &'a str,
    older_than: Option<prost_types::Duration>,
}

fn age(asked: prost_types::Duration) -> Result<Duration, &'static str> {
    Duration::try_from(asked).map_err(|_| "must not be negative")
}

/// What is empty or absent is not asked for.
fn filter(fields: &mut Fields, asked: &Asked<'_>) -> Option<DeadFilter> {
    let given = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
    let product = given(asked.product_id).map(|text| fields.parse("product_id", &text));
    let sqlstate = given(asked.sqlstate).map(|text| fields.parse("sqlstate", &text));
    let older_than = asked.older_than.map(|asked| fields.keep("older_than", age(asked)));
    // What was given and is wrong was refused.
    Some(DeadFilter {
        product: product.flatten(),
        sqlstate: sqlstate.flatten(),
        older_than: older_than.flatten(),
    })
}

/// What is given beside names must be nothing.
fn refuse_filter(fields: &mut Fields, asked: &Asked<'_>, problem: &str) {
    let given = [
        ("product_id", !asked.product_id.is_empty()),
        ("sqlstate", !asked.sqlstate.is_empty()),
        ("older_than", asked.older_than.is_some()),
    ];
    for (name, _) in given.into_iter().filter(|(_, given)| *given) {
        fields.refuse(name, problem);
    }
}

fn chosen(fields: &mut Fields, ids: &[String], all: bool, asked: &Asked<'_>) -> Option<Chosen> {
    if all != ids.is_empty() || ids.len() > PAGE {
        fields.refuse("reservation_ids", "name 1 to 500 reservations, or set `all`");
    }
    if all {
        return filter(fields, asked).map(Chosen::All);
    }
    refuse_filter(fields, asked, "goes with `all` only");
    let ids = ids.iter().enumerate();
    let ids = ids.map(|(at, id)| fields.parse(&format!("reservation_ids[{at}]"), id));
    let mut ids: Vec<ReservationId> = ids.collect::<Option<_>>()?;
    // One that is named twice is one.
    ids.sort_unstable();
    ids.dedup();
    Some(Chosen::These(ids))
}

fn action(fields: &mut Fields, actor: &str, reason: &str) -> Option<DeadAction> {
    let (actor, reason) = convert::notes(fields, actor, reason)?;
    Some(DeadAction { actor, reason })
}

/// `<partition>/<id in dead>` of the entry that was seen last.
fn place(services: &Services, position: &str) -> Option<Place> {
    let (partition, dead_id) = position.split_once('/')?;
    let partition = services.partitions().get_partition(partition.parse().ok()?)?;
    let (ms, n) = dead_id.split_once('-')?;
    let digits = |text: &str| text.parse::<u64>().is_ok();
    (digits(ms) && digits(n)).then(|| (partition, Some(dead_id.to_owned())))
}

/// The list that these filters choose.
fn paged_list(asked: &Asked<'_>) -> PagedList {
    let older_than = asked.older_than.map(|age| format!("{} {}", age.seconds, age.nanos));
    let older_than = older_than.unwrap_or_default();
    PagedList::new("dead entries", &[asked.product_id, asked.sqlstate, &older_than])
}

pub(super) async fn list(
    services: &Services,
    asked: pb::ListDeadEntriesRequest,
) -> Result<pb::ListDeadEntriesResponse, ApiError> {
    let size = convert::page_size(asked.page_size)?;
    let mut fields = Fields::default();
    let narrow = Asked {
        product_id: &asked.product_id,
        sqlstate: &asked.sqlstate,
        older_than: asked.older_than,
    };
    if !asked.reservation_id.is_empty() {
        refuse_filter(&mut fields, &narrow, "does not go with reservation_id");
        if !asked.page_token.is_empty() {
            fields.refuse("page_token", "does not go with reservation_id");
        }
        let id = fields.parse("reservation_id", &asked.reservation_id);
        let dead = services.dead_letters.find(fields.finish(id)?).await?;
        let entries = dead.iter().map(entry).collect();
        return Ok(pb::ListDeadEntriesResponse { entries, next_page_token: String::new() });
    }
    let list = paged_list(&narrow);
    let from = list.position(&asked.page_token, |position| place(services, position));
    let from = fields.keep("page_token", from);
    let filter = filter(&mut fields, &narrow);
    let (filter, from) = fields.finish(filter.zip(from))?;
    let (found, next) = services.dead_letters.page(&filter, from, size).await?;
    let token = next.map(|(partition, after)| {
        list.token(&format!("{partition}/{}", after.unwrap_or_default()))
    });
    Ok(pb::ListDeadEntriesResponse {
        entries: found.iter().map(entry).collect(),
        next_page_token: token.unwrap_or_default(),
    })
}

pub(super) async fn replay(
    services: &Services,
    asked: pb::ReleaseDeadEntriesRequest,
) -> Result<pb::ReleaseDeadEntriesResponse, ApiError> {
    let mut fields = Fields::default();
    let narrow = Asked {
        product_id: &asked.product_id,
        sqlstate: &asked.sqlstate,
        older_than: asked.older_than,
    };
    let action = action(&mut fields, &asked.actor, &asked.reason);
    let chosen = chosen(&mut fields, &asked.reservation_ids, asked.all, &narrow);
    let (action, chosen) = fields.finish(action.zip(chosen))?;
    let Effect { tally, products } =
        work(services, Work::Release, (&chosen, asked.dry_run), &action).await?;
    Ok(pb::ReleaseDeadEntriesResponse {
        released: count(tally.released),
        settled: count(tally.settled),
        unrecognized: count(tally.unrecognized),
        effects: products.iter().map(effect).collect(),
    })
}

pub(super) async fn retry(
    services: &Services,
    asked: pb::RetryDeadEntriesRequest,
) -> Result<pb::RetryDeadEntriesResponse, ApiError> {
    let mut fields = Fields::default();
    let narrow = Asked {
        product_id: &asked.product_id,
        sqlstate: &asked.sqlstate,
        older_than: asked.older_than,
    };
    let action = action(&mut fields, &asked.actor, &asked.reason);
    let chosen = chosen(&mut fields, &asked.reservation_ids, asked.all, &narrow);
    let (action, chosen) = fields.finish(action.zip(chosen))?;
    let Effect { tally, products } =
        work(services, Work::Retry, (&chosen, asked.dry_run), &action).await?;
    Ok(pb::RetryDeadEntriesResponse {
        stored: count(tally.stored),
        refused: count(tally.refused),
        settled: count(tally.settled),
        released: count(tally.released),
        unrecognized: count(tally.unrecognized),
        effects: products.iter().map(effect).collect(),
    })
}

/// Works on the chosen entries, or (a dry run) tells what that would do. An error tells what was done
/// before it.
async fn work(
    services: &Services,
    work: Work,
    (chosen, dry_run): (&Chosen, bool),
    action: &DeadAction,
) -> Result<Effect, ApiError> {
    if dry_run {
        return Ok(services.dead_letters.effect(work, chosen).await?);
    }
    let mut done = Effect::default();
    match work_through(services, work, (chosen, action), &mut done.tally).await {
        Ok(()) => Ok(done),
        Err(error) if done.tally == Tally::default() => Err(error.into()),
        Err(error) => {
            Err(ApiError::Halfway { error: Box::new(error.into()), done: told(&done.tally) })
        }
    }
}

async fn work_through(
    services: &Services,
    work: Work,
    (chosen, action): (&Chosen, &DeadAction),
    tally: &mut Tally,
) -> Result<(), DeadLetterError> {
    let mut walk = services.dead_letters.walk(chosen).await?;
    while let Some(page) = walk.next().await? {
        tally.settled += page.gone;
        for dead in &page.entries {
            tally.add(services.dead_letters.settle(work, dead, action).await?);
        }
    }
    Ok(())
}

fn told(tally: &Tally) -> Vec<(&'static str, u64)> {
    let Tally { released, stored, settled, refused, unrecognized } = *tally;
    let all = [
        ("released", released),
        ("stored", stored),
        ("settled", settled),
        ("refused", refused),
        ("unrecognized", unrecognized),
    ];
    all.into_iter().filter(|(_, count)| *count > 0).collect()
}

fn count(count: u64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn effect((product, effect): (&ProductId, &ProductEffect)) -> pb::DeadEffect {
    let units = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    pb::DeadEffect {
        product_id: product.to_string(),
        entries: units(effect.entries()),
        released: units(effect.released),
        stored: units(effect.stored),
        refused: units(effect.refused),
        stock_now: effect.stock_now,
        stock_after: effect.stock_after(),
    }
}

fn entry(dead: &DeadEntry) -> pb::DeadEntry {
    let field = |name| dead.entry.field(name).unwrap_or_default().to_owned();
    pb::DeadEntry {
        reservation_id: dead.named().to_owned(),
        partition: i32::from(dead.partition.number()),
        dead_id: dead.dead_id().to_owned(),
        entry_id: dead.accepted_as().to_owned(),
        product_id: field("p"),
        user_id: field("u"),
        reserved_at: dead.entry.reserved_at_ms().map(timestamp),
        moved_at: Some(timestamp(dead.moved_at_ms())),
        reason: dead.reason().to_owned(),
        sqlstate: dead.sqlstate().to_owned(),
    }
}
