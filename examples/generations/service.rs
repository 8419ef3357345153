//! The API in front of designs 1 to 4: `ReserveUnit`, and `GetProduct` with the stock.

use std::{collections::HashMap, sync::Arc};

use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use yoink::grpc::pb::{
    GetProductRequest, GetProductResponse, GetReservationRequest, GetReservationResponse,
    ListProductsRequest, ListProductsResponse, Product, Reservation, ReservationState,
    ReserveUnitRequest, ReserveUnitResponse, inventory_service_server::InventoryService,
};

use crate::designs::{Design, Refusal};

/// The reason of a call that had no connection to a store.
pub(crate) const NO_CONNECTION: &str = "NO_CONNECTION";

pub(crate) struct Service(pub(crate) Arc<dyn Design>);

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, reason) = match &refusal {
            Refusal::SoldOut => (Code::FailedPrecondition, "SOLD_OUT"),
            Refusal::NoConnection(_) => (Code::Unavailable, NO_CONNECTION),
            Refusal::Failed(_) => (Code::Internal, "INTERNAL"),
        };
        let details = ErrorDetails::with_error_info(reason, "generations", HashMap::new());
        Self::with_error_details(code, refusal.to_string(), details)
    }
}

#[tonic::async_trait]
impl InventoryService for Service {
    async fn reserve_unit(
        &self,
        request: Request<ReserveUnitRequest>,
    ) -> Result<Response<ReserveUnitResponse>, Status> {
        let request = request.into_inner();
        let id = self.0.reserve(&request.product_id, &request.user_id).await?;
        let reservation = Reservation {
            reservation_id: id.to_string(),
            product_id: request.product_id,
            user_id: request.user_id,
            request_id: request.request_id,
            state: ReservationState::Accepted.into(),
            ..Default::default()
        };
        Ok(Response::new(ReserveUnitResponse {
            reservation: Some(reservation),
            ..Default::default()
        }))
    }

    async fn get_product(
        &self,
        request: Request<GetProductRequest>,
    ) -> Result<Response<GetProductResponse>, Status> {
        let product_id = request.into_inner().product_id;
        let stock = Some(self.0.stock(&product_id).await?);
        let product = Product { product_id, stock, ..Default::default() };
        Ok(Response::new(GetProductResponse { product: Some(product) }))
    }

    async fn list_products(
        &self,
        _: Request<ListProductsRequest>,
    ) -> Result<Response<ListProductsResponse>, Status> {
        Err(Status::unimplemented("not part of this example"))
    }

    async fn get_reservation(
        &self,
        _: Request<GetReservationRequest>,
    ) -> Result<Response<GetReservationResponse>, Status> {
        Err(Status::unimplemented("not part of this example"))
    }
}
