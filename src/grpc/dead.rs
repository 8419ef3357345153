//! Dead letters in `AdminService`: lists dead entries, and releases or retries them.

use std::{ops::ControlFlow, str::FromStr, time::Duration};

use super::{
    Services,
    convert::{self, Fields, timestamp},
    error::ApiError,
    page_token::PagedList,
    pb,
};
use crate::{
    dead_letters::{
        Action, DeadFilter, DryRun, Interrupted, OutcomeCounts, PAGE, Position, ProductEffect,
        Selection,
    },
    domain::{ProductId, ReservationId},
    ledger::ActionBy,
    stream::DeadEntry,
};

/// The fields that a release and a retry have in common.
pub(super) struct ActionRequest {
    pub(super) selector: Option<pb::DeadEntrySelector>,
    pub(super) actor: String,
    pub(super) reason: String,
    pub(super) dry_run: bool,
}

/// Parses the filter at `path`. A field that is empty or absent sets no condition.
fn filter(fields: &mut Fields, path: &str, message: &pb::DeadEntryFilter) -> DeadFilter {
    fn optional<T>(fields: &mut Fields, name: &str, text: &str) -> Option<T>
    where
        T: FromStr<Err: ToString>,
    {
        if text.is_empty() { None } else { fields.parse(name, text) }
    }
    let age = |age| Duration::try_from(age).map_err(|_| "must not be negative");
    DeadFilter {
        product: optional(fields, &format!("{path}.product_id"), &message.product_id),
        sqlstate: optional(fields, &format!("{path}.sqlstate"), &message.sqlstate),
        older_than: message
            .older_than
            .and_then(|message| fields.keep(&format!("{path}.older_than"), age(message))),
    }
}

fn selection(fields: &mut Fields, message: pb::DeadEntrySelector) -> Option<Selection> {
    let pb::DeadEntrySelector { reservation_ids, all, filter: narrowed } = message;
    if all != reservation_ids.is_empty() || reservation_ids.len() > PAGE {
        let problem = "must name 1 to 500 reservations, unless `all` is set";
        fields.refuse("selector.reservation_ids", problem);
    }
    let narrowed = narrowed.unwrap_or_default();
    if all {
        return Some(Selection::All(filter(fields, "selector.filter", &narrowed)));
    }
    if narrowed != pb::DeadEntryFilter::default() {
        fields.refuse("selector.filter", "is allowed only with `all`");
    }
    let ids = reservation_ids.iter().enumerate();
    let ids = ids.map(|(at, id)| fields.parse(&format!("selector.reservation_ids[{at}]"), id));
    let mut ids: Vec<ReservationId> = ids.collect::<Option<_>>()?;
    ids.sort_unstable();
    ids.dedup();
    Some(Selection::Ids(ids))
}

/// Parses a position of a page token, `<partition>/<id in dead>`.
fn position(services: &Services, text: &str) -> Option<Position> {
    let (partition, dead_id) = text.split_once('/')?;
    let partition = services.stock.partitions().count().get_partition(partition.parse().ok()?)?;
    let (ms, n) = dead_id.split_once('-')?;
    let digits = |text: &str| text.parse::<u64>().is_ok();
    (digits(ms) && digits(n)).then(|| Position { partition, dead_id: dead_id.to_owned() })
}

fn paged_list(filter: &pb::DeadEntryFilter) -> PagedList {
    let older_than = filter.older_than.map(|age| format!("{} {}", age.seconds, age.nanos));
    let older_than = older_than.unwrap_or_default();
    PagedList::new("dead entries", &[&filter.product_id, &filter.sqlstate, &older_than])
}

pub(super) async fn list(
    services: &Services,
    message: pb::ListDeadEntriesRequest,
) -> Result<pb::ListDeadEntriesResponse, ApiError> {
    let size = convert::page_size(message.page_size)?;
    let mut fields = Fields::default();
    let narrowed = message.filter.unwrap_or_default();
    if !message.reservation_id.is_empty() {
        if narrowed != pb::DeadEntryFilter::default() {
            fields.refuse("filter", "is not allowed with reservation_id");
        }
        if !message.page_token.is_empty() {
            fields.refuse("page_token", "is not allowed with reservation_id");
        }
        let id = fields.parse("reservation_id", &message.reservation_id);
        let dead = services.dead_letters.find(fields.finish(id)?).await?;
        let entries = dead.iter().map(entry).collect();
        return Ok(pb::ListDeadEntriesResponse { entries, next_page_token: String::new() });
    }
    let list = paged_list(&narrowed);
    let from = list.position(&message.page_token, |text| position(services, text));
    let from = fields.keep("page_token", from);
    let filter = filter(&mut fields, "filter", &narrowed);
    let from = fields.finish(from)?;
    let (found, next) = services.dead_letters.list(&filter, from, size).await?;
    let token = next.map(|next| list.token(&format!("{}/{}", next.partition, next.dead_id)));
    Ok(pb::ListDeadEntriesResponse {
        entries: found.iter().map(entry).collect(),
        next_page_token: token.unwrap_or_default(),
    })
}

/// Applies an action to the selected entries, or reports what a dry run found; only a dry run reports products.
pub(super) async fn apply(
    services: &Services,
    action: Action,
    message: ActionRequest,
) -> Result<(OutcomeCounts, Vec<pb::ProductEffect>), ApiError> {
    let mut fields = Fields::default();
    let actor_and_reason = convert::actor_and_reason(&mut fields, &message.actor, &message.reason);
    let selection = selection(&mut fields, message.selector.unwrap_or_default());
    let ((actor, reason), selection) = fields.finish(actor_and_reason.zip(selection))?;
    if message.dry_run {
        let DryRun { counts, products } = services.dead_letters.dry_run(action, &selection).await?;
        return Ok((counts, products.iter().map(effect).collect()));
    }
    let by = ActionBy { actor, reason };
    let counts = services
        .dead_letters
        .apply(action, &selection, &by, |_, _| ControlFlow::Continue(()))
        .await?;
    Ok((counts, Vec::new()))
}

impl From<Interrupted> for ApiError {
    fn from(Interrupted { done, error }: Interrupted) -> Self {
        let OutcomeCounts { released, stored, decided, refused, unrecognized, no_stock, not_found } =
            done;
        let counts = [
            ("released", released),
            ("stored", stored),
            ("decided", decided),
            ("refused", refused),
            ("unrecognized", unrecognized),
            ("no_stock", no_stock),
            ("not_found", not_found),
        ];
        let done: Vec<_> = counts.into_iter().filter(|(_, count)| *count > 0).collect();
        let error = Self::from(error);
        if done.is_empty() { error } else { error.after(&done) }
    }
}

pub(super) fn count(count: u64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn effect((product, effect): (&ProductId, &ProductEffect)) -> pb::ProductEffect {
    let units = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    pb::ProductEffect {
        product_id: product.to_string(),
        entries: units(effect.entries()),
        released: units(effect.counts.released),
        stored: units(effect.counts.stored),
        refused: units(effect.counts.refused),
        stock_now: effect.stock_now,
        stock_after: effect.stock_after(),
    }
}

fn entry(dead: &DeadEntry) -> pb::DeadEntry {
    let field = |name| dead.entry.field(name).unwrap_or_default().to_owned();
    pb::DeadEntry {
        dead_key: dead.dead_key().to_owned(),
        partition: i32::from(dead.partition.number()),
        dead_id: dead.dead_id().to_owned(),
        entry_id: dead.orders_id().to_owned(),
        product_id: field("p"),
        user_id: field("u"),
        reserved_at: dead.entry.reserved_at_ms().map(timestamp),
        moved_at: Some(timestamp(dead.moved_at_ms())),
        moved_reason: dead.reason().to_owned(),
        sqlstate: dead.sqlstate().to_owned(),
    }
}
