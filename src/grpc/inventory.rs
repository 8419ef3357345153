//! `InventoryService`: calls of buyers.

use std::sync::Arc;

use tonic::{Request, Response, Status, metadata::MetadataValue};

use super::{
    Services,
    access::Caller,
    admission::{Admission, Taken},
    convert,
    error::ApiError,
    idempotency_key,
    page_token::PagedList,
    pb::{self, inventory_service_server::InventoryService},
    reason::{AppliedRule, Reason},
    status::HTTP_STATUS,
};
use crate::{
    domain::{Ack, Partition, Reservation, ReservationId, ReservationState},
    ledger::LookedUp,
    redis::{Applied, RedisCallError},
    stream::{Entry, Found},
};

pub(super) struct Inventory {
    pub(super) admission: Arc<Admission>,
}

/// A response to which Envoy gives this HTTP status; gRPC clients get OK.
pub(super) fn response_with_http_status<T>(message: T, status: &'static str) -> Response<T> {
    let mut response = Response::new(message);
    response.metadata_mut().insert(HTTP_STATUS, MetadataValue::from_static(status));
    response
}

/// A reservation in its current state. The streams are read first, by a script that begins with the fence, and then the
/// ledger, because an order only moves from a stream to the ledger.
async fn look_up(services: &Services, id: ReservationId) -> Result<Reservation, ApiError> {
    let partition = services.stock.partitions().count().get_partition(id.partition());
    let partition = partition.ok_or(Reason::ReservationNotFound)?;
    // Admitted before Redis is read, because look-ups share its connection with reservations.
    let lookup = services.lookups.begin().ok_or(Reason::Overloaded)?;
    let found = services.streams.find(partition, id).await;
    if let Ok(Found::Entry(entry)) = &found {
        return Ok(accepted(id, partition, entry));
    }
    let never_issued = match lookup.find(id).await.map_err(as_not_applied)? {
        LookedUp::Reservation(stored) => return Ok(stored),
        LookedUp::NeverIssued => true,
        LookedUp::Nothing => false,
    };
    match found {
        // The fence held while the streams were read, so the streams had every order of this epoch that the ledger did not have
        // yet. The ledger had all orders up to `stored_seq`: one of these that it does not have was lost.
        Ok(Found::Nothing { epoch, stored_seq }) if epoch == id.epoch() => {
            // The first order of an epoch has seq 1.
            let not_found = never_issued || id.seq() == 0 || id.seq() > stored_seq;
            Err(if not_found { Reason::ReservationNotFound } else { Reason::LostOrUnknown }.into())
        }
        // The epoch has ended or may be lost: the reservation may have existed.
        Ok(_) | Err(RedisCallError::Fenced(_)) => Err(Reason::LostOrUnknown.into()),
        Err(error) => Err(as_not_applied(error)),
    }
}

/// A look-up changes nothing, so its error never states `applied = maybe`.
fn as_not_applied(error: impl Into<ApiError>) -> ApiError {
    let error: ApiError = error.into();
    let per_error = error.reason.spec().applied == AppliedRule::PerError;
    if per_error { ApiError { applied: Some(Applied::No), ..error } } else { error }
}

fn accepted(id: ReservationId, partition: Partition, entry: &Entry) -> Reservation {
    let order = entry.order(partition, &id.entry_id());
    let reserved_at_ms = entry.reserved_at_ms().unwrap_or(0);
    let (product_and_user, request) =
        order.map_or((None, None), |order| (Some((order.product, order.user)), order.request));
    let state = ReservationState::Accepted;
    Reservation { id, state, product_and_user, request, reserved_at_ms }
}

#[tonic::async_trait]
impl InventoryService for Inventory {
    async fn reserve_unit(
        &self,
        request: Request<pb::ReserveUnitRequest>,
    ) -> Result<Response<pb::ReserveUnitResponse>, Status> {
        let _permit = self.admission.enter()?;
        let (metadata, extensions, mut message) = request.into_parts();
        Caller::of(&extensions, self.admission.services.authenticator.is_on())?
            .set_user(&mut message.user_id)?;
        let reserve = idempotency_key::reserve(
            &metadata,
            &message.product_id,
            &message.user_id,
            &message.request_id,
        )?;
        let ack = convert::ack(message.ack)?;
        let request_id = reserve.request.as_ref().map(ToString::to_string).unwrap_or_default();
        let Taken { receipt, duplicate, ack } = self.admission.take(reserve, ack).await?;
        let (state, http_status) = match ack {
            Ack::Ledger => (pb::ReservationState::Confirmed, "201"),
            Ack::Memory | Ack::Disk | Ack::Replica => (pb::ReservationState::Accepted, "202"),
        };
        let reservation = pb::Reservation {
            reservation_id: receipt.reservation_id.to_string(),
            product_id: message.product_id,
            user_id: message.user_id,
            request_id,
            state: state.into(),
            reserved_at: Some(convert::timestamp(receipt.reserved_at_ms)),
            ..Default::default()
        };
        let response = pb::ReserveUnitResponse {
            reservation: Some(reservation),
            remaining: receipt.remaining,
            duplicate,
        };
        let http_status = if duplicate { "200" } else { http_status };
        Ok(response_with_http_status(response, http_status))
    }

    async fn list_products(
        &self,
        request: Request<pb::ListProductsRequest>,
    ) -> Result<Response<pb::ListProductsResponse>, Status> {
        let _permit = self.admission.enter()?;
        let message = request.into_inner();
        let size = convert::page_size(message.page_size)?;
        let list = PagedList::new("products", &[]);
        let after = list.position(&message.page_token, |id| id.parse().ok());
        let after = after.map_err(|error| ApiError::bad_field("page_token", error))?;
        let listed = self.admission.services.catalogue.list(after.as_ref(), size).await;
        let (listed, more) = listed.map_err(ApiError::from)?;
        let last = listed.last().filter(|_| more);
        let next_page_token =
            last.map(|last| list.token(last.product.id.as_str())).unwrap_or_default();
        let products = listed.into_iter().map(convert::product).collect();
        Ok(Response::new(pb::ListProductsResponse { products, next_page_token }))
    }

    async fn get_product(
        &self,
        request: Request<pb::GetProductRequest>,
    ) -> Result<Response<pb::GetProductResponse>, Status> {
        let _permit = self.admission.enter()?;
        let id = request.into_inner().product_id.parse();
        let id = id.map_err(|error| ApiError::bad_field("product_id", error))?;
        let listed = self.admission.services.catalogue.get(&id).await.map_err(ApiError::from)?;
        let product =
            listed.map(convert::product).ok_or_else(|| ApiError::from(Reason::ProductNotFound))?;
        Ok(Response::new(pb::GetProductResponse { product: Some(product) }))
    }

    async fn get_reservation(
        &self,
        request: Request<pb::GetReservationRequest>,
    ) -> Result<Response<pb::GetReservationResponse>, Status> {
        let _permit = self.admission.enter()?;
        let (_, extensions, message) = request.into_parts();
        let caller = Caller::of(&extensions, self.admission.services.authenticator.is_on())?;
        let id = message.reservation_id.parse();
        let id = id.map_err(|error| ApiError::bad_field("reservation_id", error))?;
        let found = look_up(&self.admission.services, id).await;
        let found = found.inspect_err(|error| self.admission.count_shed(error))?;
        if !caller.may_see(&found) {
            // As for an id that no reservation has.
            Err(ApiError::from(Reason::ReservationNotFound))?;
        }
        let reservation = convert::reservation(found);
        Ok(Response::new(pb::GetReservationResponse { reservation: Some(reservation) }))
    }
}
