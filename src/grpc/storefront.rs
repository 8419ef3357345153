//! `StorefrontService`: the legacy API, that of the service that Yoink replaces.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{
    access::Caller,
    admission::Admission,
    error::ApiError,
    idempotency_key,
    inventory::response_with_http_status,
    pb::{self, storefront_service_server::StorefrontService},
    reason::Reason,
    status::log_cause,
};
use crate::{catalogue::ProductWithStock, domain::ProductId};

/// Products that are read at once while a list is streamed.
const PAGE: usize = 500;

pub(super) struct Storefront {
    pub(super) admission: Arc<Admission>,
}

#[expect(clippy::cast_precision_loss, reason = "the legacy API has a JSON number; 2^53 fits")]
fn item(listed: &ProductWithStock) -> pb::ListStorefrontResponse {
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
        let taken = self.admission.take(reserve, None).await?;
        let response = pb::PlaceOrderResponse {
            message: "Order accepted for processing".to_owned(),
            reservation_id: taken.receipt.reservation_id.to_string(),
        };
        // The legacy API answers 202 to every accepted order.
        Ok(response_with_http_status(response, "202"))
    }

    async fn list_storefront(
        &self,
        _request: Request<pb::ListStorefrontRequest>,
    ) -> Result<Response<Self::ListStorefrontStream>, Status> {
        let admission = self.admission.clone();
        let until = Instant::now() + admission.call_timeout;
        // The first page is read before the response begins, so that its error is the status of the call.
        let (first, more) = page(&admission, None, until).await?;
        let after = next_after(&first, more);
        // The others are read as the client reads: memory does not grow with the catalogue, and a client that does not read
        // holds no permit.
        let rest = stream::unfold(after, move |after| {
            let admission = admission.clone();
            async move {
                Some(match page(&admission, Some(&after?), until).await {
                    Err(error) => {
                        let status = Status::from(error);
                        log_cause("yoink.v1.StorefrontService/ListStorefront", &status);
                        (stream::iter(vec![Err(status)]).left_stream(), None)
                    }
                    Ok((listed, more)) => {
                        let next = next_after(&listed, more);
                        (items(listed).right_stream(), next)
                    }
                })
            }
        });
        Ok(Response::new(Box::pin(items(first).chain(rest.flatten()))))
    }
}

/// The items of a page. Each is made when it is sent: until then the list refers to the product in the catalogue.
fn items(
    listed: Vec<ProductWithStock>,
) -> impl Stream<Item = Result<pb::ListStorefrontResponse, Status>> + Send {
    stream::iter(listed.into_iter().map(|listed| Ok(item(&listed))))
}

/// The last product of a page, if another page follows.
fn next_after(listed: &[ProductWithStock], more: bool) -> Option<ProductId> {
    listed.last().filter(|_| more).map(|last| last.product.id.clone())
}

/// A page, if the call has time left and a permit is free.
async fn page(
    admission: &Admission,
    after: Option<&ProductId>,
    until: Instant,
) -> Result<(Vec<ProductWithStock>, bool), ApiError> {
    let _permit = admission.enter()?;
    let page = admission.services.catalogue.list(after, PAGE);
    let page = tokio::time::timeout_at(until, page).await;
    Ok(page.map_err(|_| Reason::DeadlineExceeded)??)
}
