//! `AdminService`: calls of operators.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    Services,
    access::Caller,
    convert::{self, Fields},
    dead::{self, count},
    error::ApiError,
    idempotency_key,
    page_token::PagedList,
    pb::{self, admin_service_server::AdminService},
    reason::Reason,
};
use crate::{
    audit::Verdict,
    catalogue::ProductWithStock,
    dead_letters::Action,
    domain::{ReservationId, UNITS_MAX},
    ledger::{Created, Restock, Restocked, UpdateError},
};

pub(super) struct Admin {
    pub(super) services: Arc<Services>,
}

impl Admin {
    async fn listed(&self, id: &crate::domain::ProductId) -> Result<ProductWithStock, ApiError> {
        Ok(self.services.catalogue.get(id).await?.ok_or(Reason::ProductNotFound)?)
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn create_products(
        &self,
        request: Request<pb::CreateProductsRequest>,
    ) -> Result<Response<pb::CreateProductsResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let mut actor = "operator".to_owned();
        Caller::of(&extensions, self.services.authenticator.is_on())?.set_actor(&mut actor);
        let products = convert::new_products(message.products)?;
        let created = self.services.catalogue.create(&products, &actor).await;
        let created = match created.map_err(ApiError::from)? {
            Created::Done { new, .. } => new.len(),
            Created::SupplyDiffers { at, units } => Err(ApiError::supply_differs(at, units))?,
        };
        let mut now = Vec::with_capacity(products.len());
        for product in &products {
            now.push(convert::product(self.listed(&product.id).await?));
        }
        let created = i32::try_from(created).map_err(ApiError::bug)?;
        Ok(Response::new(pb::CreateProductsResponse { products: now, created }))
    }

    async fn update_product(
        &self,
        request: Request<pb::UpdateProductRequest>,
    ) -> Result<Response<pb::UpdateProductResponse>, Status> {
        let message = request.into_inner();
        let id = message.product_id.parse();
        let id = id.map_err(|error| ApiError::bad_field("product_id", error))?;
        let change = convert::sale_change(message)?;
        let updated = self.services.catalogue.update(&id, &change).await;
        let updated = updated.map_err(|error| match error {
            UpdateError::Unknown => Reason::ProductNotFound.into(),
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
        let (metadata, extensions, mut message) = request.into_parts();
        Caller::of(&extensions, self.services.authenticator.is_on())?.set_actor(&mut message.actor);
        let mut fields = Fields::default();
        let product = fields.parse("product_id", &message.product_id);
        let request = match idempotency_key::request_id(&metadata, &message.request_id) {
            Ok(id) => fields.parse("request_id", &id),
            Err((name, problem)) => {
                fields.refuse(name, &problem);
                None
            }
        };
        if message.units < 1 || message.units > UNITS_MAX {
            fields.refuse("units", "must be 1 to 9007199254740992");
        }
        let actor_and_reason =
            convert::actor_and_reason(&mut fields, &message.actor, &message.reason);
        let ((product, request), (actor, reason)) =
            fields.finish(product.zip(request).zip(actor_and_reason))?;
        let units = message.units;
        let restock = Restock { product, units, request, actor, reason };
        let restocked = self.services.catalogue.restock(&restock).await;
        let (supply, duplicate) = match restocked.map_err(ApiError::from)? {
            Restocked::Added(supply) => (supply, false),
            Restocked::AlreadyAdded(supply) => (supply, true),
            Restocked::UnknownProduct => Err(ApiError::from(Reason::ProductNotFound))?,
            Restocked::RequestReused => Err(ApiError::from(Reason::RequestIdReused))?,
            Restocked::TooMany => Err(ApiError::too_many_units())?,
        };
        Ok(Response::new(pb::RestockResponse { supply, duplicate }))
    }

    async fn list_reservations(
        &self,
        request: Request<pb::ListReservationsRequest>,
    ) -> Result<Response<pb::ListReservationsResponse>, Status> {
        let message = request.into_inner();
        let size = convert::page_size(message.page_size)?;
        let mut fields = Fields::default();
        let optional = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let product = optional(&message.product_id).map(|text| fields.parse("product_id", &text));
        let user = optional(&message.user_id).map(|text| fields.parse("user_id", &text));
        if product.is_none() && user.is_none() {
            fields.refuse("product_id", "must not be empty if user_id is empty");
        }
        let list = PagedList::new("reservations", &[&message.product_id, &message.user_id]);
        let after = list.position(&message.page_token, |id| id.parse::<ReservationId>().ok());
        let after = fields.keep("page_token", after);
        let after = fields.finish(after)?.map(|id| id.to_uuid());
        let (product, user) = (product.flatten(), user.flatten());
        let limit = i64::try_from(size + 1).map_err(ApiError::bug)?;
        let ledger = &self.services.ledger;
        let found = ledger.list(product.as_ref(), user.as_ref(), after, limit).await;
        let mut found = found.map_err(ApiError::from)?;
        let more = found.len() > size;
        found.truncate(size);
        let last = found.last().filter(|_| more);
        let next_page_token = last.map(|last| list.token(&last.id.to_string())).unwrap_or_default();
        let reservations = found.into_iter().map(convert::reservation).collect();
        Ok(Response::new(pb::ListReservationsResponse { reservations, next_page_token }))
    }

    async fn list_dead_entries(
        &self,
        request: Request<pb::ListDeadEntriesRequest>,
    ) -> Result<Response<pb::ListDeadEntriesResponse>, Status> {
        Ok(Response::new(dead::list(&self.services, request.into_inner()).await?))
    }

    async fn release_dead_entries(
        &self,
        request: Request<pb::ReleaseDeadEntriesRequest>,
    ) -> Result<Response<pb::ReleaseDeadEntriesResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let pb::ReleaseDeadEntriesRequest { selector, mut actor, reason, dry_run } = message;
        Caller::of(&extensions, self.services.authenticator.is_on())?.set_actor(&mut actor);
        let message = dead::ActionRequest { selector, actor, reason, dry_run };
        let (counts, effects) = dead::apply(&self.services, Action::Release, message).await?;
        Ok(Response::new(pb::ReleaseDeadEntriesResponse {
            released: count(counts.released),
            decided: count(counts.decided),
            unrecognized: count(counts.unrecognized),
            effects,
            no_stock: count(counts.no_stock),
            not_found: count(counts.not_found),
        }))
    }

    async fn retry_dead_entries(
        &self,
        request: Request<pb::RetryDeadEntriesRequest>,
    ) -> Result<Response<pb::RetryDeadEntriesResponse>, Status> {
        let (_, extensions, message) = request.into_parts();
        let pb::RetryDeadEntriesRequest { selector, mut actor, reason, dry_run } = message;
        Caller::of(&extensions, self.services.authenticator.is_on())?.set_actor(&mut actor);
        let message = dead::ActionRequest { selector, actor, reason, dry_run };
        let (counts, effects) = dead::apply(&self.services, Action::Retry, message).await?;
        Ok(Response::new(pb::RetryDeadEntriesResponse {
            stored: count(counts.stored),
            refused: count(counts.refused),
            decided: count(counts.decided),
            released: count(counts.released),
            unrecognized: count(counts.unrecognized),
            effects,
            no_stock: count(counts.no_stock),
            not_found: count(counts.not_found),
        }))
    }

    async fn audit(
        &self,
        request: Request<pb::AuditRequest>,
    ) -> Result<Response<pb::AuditResponse>, Status> {
        let auditor = &self.services.auditor;
        let pb::AuditRequest { full } = request.into_inner();
        let report = if full { auditor.audit_in_full().await } else { auditor.audit().await };
        let verdict = match report.verdict() {
            Verdict::Holds => pb::AuditVerdict::Holds,
            Verdict::Violated => pb::AuditVerdict::Violated,
            Verdict::Unknown => pb::AuditVerdict::Unknown,
        };
        let products = report.products.into_iter().map(|units| pb::ProductAudit {
            product_id: units.product.to_string(),
            supply: units.supply,
            stock: units.stock,
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
