//! `StorefrontService`: the contract of the service that Yoink comes from.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status};

use super::{
    Counter, convert,
    error::ApiError,
    inventory::{accepted_response, take},
    pb::{self, storefront_service_server::StorefrontService},
};
use crate::catalogue::Listed;

/// Products that are read at a time while a list is streamed.
const PAGE: usize = 500;

pub(super) struct Storefront {
    counter: Arc<Counter>,
}

impl Storefront {
    pub(super) fn new(counter: Arc<Counter>) -> Self {
        Self { counter }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the original's contract is a JSON number; 2^53 fits"
)]
fn item(listed: &Listed) -> pb::ListStorefrontResponse {
    pb::ListStorefrontResponse {
        id: listed.product.id.to_string(),
        name: listed.product.sale.name.clone(),
        price: listed.product.sale.price.as_f64(),
        stock: listed.stock.map(|stock| stock as f64),
    }
}

#[tonic::async_trait]
impl StorefrontService for Storefront {
    type ListStorefrontStream =
        Pin<Box<dyn Stream<Item = Result<pb::ListStorefrontResponse, Status>> + Send>>;

    async fn place_order(
        &self,
        request: Request<pb::PlaceOrderRequest>,
    ) -> Result<Response<pb::PlaceOrderResponse>, Status> {
        let asked = request.into_inner();
        let reserve = convert::reserve(&asked.product_id, &asked.user_id, &asked.request_id)?;
        let (receipt, _) = take(&self.counter, reserve).await?;
        Ok(accepted_response(pb::PlaceOrderResponse {
            message: "Order accepted for processing".to_owned(),
            reservation_id: receipt.reservation_id.to_string(),
        }))
    }

    async fn list_storefront(
        &self,
        _request: Request<pb::ListStorefrontRequest>,
    ) -> Result<Response<Self::ListStorefrontStream>, Status> {
        let catalogue = self.counter.rooms.catalogue.clone();
        // Page by page, as the client reads: nothing grows with the catalogue.
        let pages = stream::unfold(Some(None), move |after| {
            let catalogue = catalogue.clone();
            async move {
                let page = catalogue.list(after?.as_ref(), PAGE).await;
                let (items, next) = match page {
                    Err(error) => (vec![Err(Status::from(ApiError::from(error)))], None),
                    Ok((listed, more)) => {
                        let last = listed.last().map(|last| last.product.id.clone());
                        let items = listed.iter().map(|listed| Ok(item(listed))).collect();
                        (items, last.filter(|_| more).map(Some))
                    }
                };
                Some((stream::iter(items), next))
            }
        });
        Ok(Response::new(Box::pin(pages.flatten())))
    }
}
