//! `AdminService`: the operators' side.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    Rooms,
    convert::{self, Fields},
    error::ApiError,
    pb::{self, admin_service_server::AdminService},
};
use crate::{
    audit::Verdict,
    catalogue::Listed,
    desk::Settled,
    domain::{MAX_UNITS, Partition, ReservationId},
    ledger::{Created, DeadAction, ReservationFilter, Restock, Restocked, UpdateError},
    stream::DeadEntry,
};

/// Most entries that one call names or takes at a time.
const MAX_NAMED: usize = 500;

pub(super) struct Admin {
    rooms: Arc<Rooms>,
}

/// Which dead entries a call is about.
enum Chosen {
    All,
    These(Vec<ReservationId>),
}

fn chosen(ids: &[String], all: bool) -> Result<Chosen, ApiError> {
    let mut fields = Fields::default();
    if all != ids.is_empty() || ids.len() > MAX_NAMED {
        fields.refuse("reservation_ids", "name 1 to 500 reservations, or set `all`");
    }
    let ids: Option<Vec<ReservationId>> = ids
        .iter()
        .enumerate()
        .map(|(at, id)| fields.parse(&format!("reservation_ids[{at}]"), id))
        .collect();
    let ids = fields.finish(ids)?;
    Ok(if all { Chosen::All } else { Chosen::These(ids) })
}

/// A name or a reason for the record, without what could alter the record.
fn note(fields: &mut Fields, name: &str, text: &str) {
    if text.chars().count() > 200 || text.chars().any(char::is_control) {
        fields.refuse(name, "must have at most 200 characters and no control character");
    }
}

fn action(actor: &str, reason: &str) -> Result<DeadAction, ApiError> {
    let mut fields = Fields::default();
    note(&mut fields, "actor", actor);
    note(&mut fields, "reason", reason);
    let actor = if actor.is_empty() { "operator" } else { actor };
    fields.finish(Some(DeadAction { actor: actor.to_owned(), reason: reason.to_owned() }))
}

impl Admin {
    pub(super) fn new(rooms: Arc<Rooms>) -> Self {
        Self { rooms }
    }

    async fn listed(&self, id: &crate::domain::ProductId) -> Result<Listed, ApiError> {
        self.rooms.catalogue.get(id).await?.ok_or(ApiError::ProductNotFound)
    }

    /// Does something with each dead entry that was chosen; entries that are gone count as settled before.
    async fn each_dead<F>(
        &self,
        chosen: Chosen,
        work: impl Fn(DeadEntry) -> F,
    ) -> Result<Vec<Settled>, ApiError>
    where
        F: Future<Output = Result<Settled, crate::desk::DeskError>>,
    {
        let mut settled = Vec::new();
        match chosen {
            Chosen::These(ids) => {
                for id in ids {
                    settled.push(match self.rooms.desk.find(id).await? {
                        Some(dead) => work(dead).await?,
                        None => Settled::Before,
                    });
                }
            }
            Chosen::All => {
                for partition in self.rooms.partitions().all() {
                    let mut after = None;
                    loop {
                        let dead =
                            self.rooms.desk.list(partition, after.as_deref(), MAX_NAMED).await?;
                        let Some(last) = dead.last() else { break };
                        after = Some(last.dead_id().to_owned());
                        for entry in dead {
                            settled.push(work(entry).await?);
                        }
                    }
                }
            }
        }
        Ok(settled)
    }
}

fn count(settled: &[Settled], what: &[Settled]) -> i32 {
    let count = settled.iter().filter(|settled| what.contains(settled)).count();
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// `<partition>/<id in dead>` of the last entry of a page.
fn dead_token(rooms: &Rooms, token: &str) -> Result<(Partition, Option<String>), ApiError> {
    let bad = || ApiError::bad_field("page_token", "is none that this service gave");
    if token.is_empty() {
        let first = rooms.partitions().get_partition(0).ok_or_else(bad)?;
        return Ok((first, None));
    }
    let (partition, dead_id) = token.split_once('/').ok_or_else(bad)?;
    let partition = partition.parse().ok().and_then(|n| rooms.partitions().get_partition(n));
    let digits = |text: &str| text.parse::<u64>().is_ok();
    match (partition, dead_id.split_once('-')) {
        (Some(partition), Some((ms, n))) if digits(ms) && digits(n) => {
            Ok((partition, Some(dead_id.to_owned())))
        }
        (Some(_) | None, Some(_) | None) => Err(bad()),
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn create_products(
        &self,
        request: Request<pb::CreateProductsRequest>,
    ) -> Result<Response<pb::CreateProductsResponse>, Status> {
        let products = convert::new_products(request.into_inner().products)?;
        let created = self.rooms.catalogue.create(&products, "operator").await;
        let created = match created.map_err(ApiError::from)? {
            Created::Done { new, .. } => new.len(),
            Created::OtherUnits { at, units } => Err(ApiError::OtherUnits { at, units })?,
        };
        let mut now = Vec::with_capacity(products.len());
        for product in &products {
            now.push(convert::product(self.listed(&product.id).await?));
        }
        let created = i32::try_from(created).unwrap_or(i32::MAX);
        Ok(Response::new(pb::CreateProductsResponse { products: now, created }))
    }

    async fn update_product(
        &self,
        request: Request<pb::UpdateProductRequest>,
    ) -> Result<Response<pb::UpdateProductResponse>, Status> {
        let asked = request.into_inner();
        let id = asked.product_id.parse();
        let id = id.map_err(|error| ApiError::bad_field("product_id", error))?;
        let change = convert::sale_change(asked)?;
        let updated = self.rooms.catalogue.update(&id, &change).await;
        let updated = updated.map_err(|error| match error {
            UpdateError::Unknown => ApiError::ProductNotFound,
            UpdateError::Invalid(error) => ApiError::bad_field("product", error),
            UpdateError::Ledger(error) => error.into(),
        })?;
        updated.map_err(ApiError::from)?;
        let product = Some(convert::product(self.listed(&id).await?));
        Ok(Response::new(pb::UpdateProductResponse { product }))
    }

    async fn restock(
        &self,
        request: Request<pb::RestockRequest>,
    ) -> Result<Response<pb::RestockResponse>, Status> {
        let asked = request.into_inner();
        let mut fields = Fields::default();
        let product = fields.parse("product_id", &asked.product_id);
        let request = fields.parse("request_id", &asked.request_id);
        if asked.units < 1 || asked.units > MAX_UNITS {
            fields.refuse("units", "must be 1 to 9007199254740992");
        }
        note(&mut fields, "actor", &asked.actor);
        note(&mut fields, "reason", &asked.reason);
        let (product, request) = fields.finish(product.zip(request))?;
        let (units, reason) = (asked.units, asked.reason);
        let actor = if asked.actor.is_empty() { "operator".to_owned() } else { asked.actor };
        let restock = Restock { product, units, request, actor, reason };
        let restocked = self.rooms.catalogue.restock(&restock).await;
        let (supply, duplicate) = match restocked.map_err(ApiError::from)? {
            Restocked::Added(supply) => (supply, false),
            Restocked::Before(supply) => (supply, true),
            Restocked::UnknownProduct => Err(ApiError::ProductNotFound)?,
            Restocked::RequestReused => Err(ApiError::RequestReused)?,
            Restocked::TooMany => Err(ApiError::TooManyUnits)?,
        };
        Ok(Response::new(pb::RestockResponse { supply, duplicate }))
    }

    async fn list_reservations(
        &self,
        request: Request<pb::ListReservationsRequest>,
    ) -> Result<Response<pb::ListReservationsResponse>, Status> {
        let asked = request.into_inner();
        let size = convert::page_size(asked.page_size)?;
        let mut fields = Fields::default();
        let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let product = optional(&asked.product_id).map(|text| fields.parse("product_id", &text));
        let user = optional(&asked.user_id).map(|text| fields.parse("user_id", &text));
        let after = optional(&asked.page_token)
            .map(|text| fields.parse::<ReservationId>("page_token", &text));
        let filter = match (product, user) {
            (Some(product), Some(user)) => {
                product.zip(user).map(|(product, user)| ReservationFilter::Both(product, user))
            }
            (Some(product), None) => product.map(ReservationFilter::Product),
            (None, Some(user)) => user.map(ReservationFilter::User),
            (None, None) => {
                fields.refuse("product_id", "name a product, a user or both");
                None
            }
        };
        let filter = fields.finish(filter)?;
        let limit = i64::try_from(size + 1).unwrap_or(i64::MAX);
        let after = after.flatten().map(|id| id.to_uuid());
        let found = self.rooms.ledger.list(&filter, after, limit).await;
        let mut found = found.map_err(ApiError::from)?;
        let more = found.len() > size;
        found.truncate(size);
        let last = found.last().filter(|_| more);
        let next_page_token = last.map(|last| last.id.to_string()).unwrap_or_default();
        let reservations = found.into_iter().map(convert::reservation).collect();
        Ok(Response::new(pb::ListReservationsResponse { reservations, next_page_token }))
    }

    async fn list_dead_entries(
        &self,
        request: Request<pb::ListDeadEntriesRequest>,
    ) -> Result<Response<pb::ListDeadEntriesResponse>, Status> {
        let asked = request.into_inner();
        let size = convert::page_size(asked.page_size)?;
        if !asked.reservation_id.is_empty() {
            let id = asked.reservation_id.parse();
            let id = id.map_err(|error| ApiError::bad_field("reservation_id", error))?;
            let dead = self.rooms.desk.find(id).await.map_err(ApiError::from)?;
            let entries = dead.iter().map(convert::dead_entry).collect();
            return Ok(Response::new(pb::ListDeadEntriesResponse {
                entries,
                next_page_token: String::new(),
            }));
        }
        let (start, mut after) = dead_token(&self.rooms, &asked.page_token)?;
        let mut found: Vec<DeadEntry> = Vec::new();
        for partition in self.rooms.partitions().all().filter(|p| *p >= start) {
            let wanted = size + 1 - found.len();
            let page = self.rooms.desk.list(partition, after.take().as_deref(), wanted).await;
            found.extend(page.map_err(ApiError::from)?);
            if found.len() > size {
                break;
            }
        }
        let more = found.len() > size;
        found.truncate(size);
        let last = found.last().filter(|_| more);
        let token = last.map(|last| format!("{}/{}", last.partition, last.dead_id()));
        Ok(Response::new(pb::ListDeadEntriesResponse {
            entries: found.iter().map(convert::dead_entry).collect(),
            next_page_token: token.unwrap_or_default(),
        }))
    }

    async fn replay_dead_entries(
        &self,
        request: Request<pb::ReplayDeadEntriesRequest>,
    ) -> Result<Response<pb::ReplayDeadEntriesResponse>, Status> {
        let asked = request.into_inner();
        let action = action(&asked.actor, &asked.reason)?;
        let chosen = chosen(&asked.reservation_ids, asked.all)?;
        let (desk, action) = (&self.rooms.desk, &action);
        let work = |dead: DeadEntry| async move { desk.replay(&dead, action).await };
        let settled = self.each_dead(chosen, work).await?;
        Ok(Response::new(pb::ReplayDeadEntriesResponse {
            released: count(&settled, &[Settled::Released]),
            settled: count(&settled, &[Settled::Before, Settled::Stored]),
        }))
    }

    async fn retry_dead_entries(
        &self,
        request: Request<pb::RetryDeadEntriesRequest>,
    ) -> Result<Response<pb::RetryDeadEntriesResponse>, Status> {
        let asked = request.into_inner();
        let action = action(&asked.actor, &asked.reason)?;
        let chosen = chosen(&asked.reservation_ids, asked.all)?;
        let (desk, action) = (&self.rooms.desk, &action);
        let work = |dead: DeadEntry| async move { desk.retry(&dead, action).await };
        let settled = self.each_dead(chosen, work).await?;
        Ok(Response::new(pb::RetryDeadEntriesResponse {
            stored: count(&settled, &[Settled::Stored]),
            refused: count(&settled, &[Settled::Refused, Settled::Stranger]),
            settled: count(&settled, &[Settled::Before, Settled::Released]),
        }))
    }

    async fn audit(
        &self,
        _request: Request<pb::AuditRequest>,
    ) -> Result<Response<pb::AuditResponse>, Status> {
        let report = self.rooms.auditor.audit().await;
        let verdict = match report.verdict() {
            Verdict::Holds => pb::AuditVerdict::Holds,
            Verdict::Violated => pb::AuditVerdict::Violated,
            Verdict::Unknown => pb::AuditVerdict::Unknown,
        };
        let products = report.products.into_iter().map(|units| pb::ProductAudit {
            product_id: units.product.to_string(),
            supply: units.supply,
            available: units.available,
            in_orders: units.in_orders,
            in_dead: units.in_dead,
            confirmed: units.confirmed,
        });
        Ok(Response::new(pb::AuditResponse {
            verdict: verdict.into(),
            products: products.collect(),
            findings: report.violations.into_iter().chain(report.unknown).collect(),
            lost: report.lost.iter().map(convert::lost).collect(),
        }))
    }
}
