//! Resets a stream that Envoy transcodes to a JSON array and that ends with an error.
//!
//! gRPC reports the error in the trailers, but the transcoder ignores it and closes the array: the client would mistake
//! a part of the list for the whole list. After a reset the body is visibly incomplete.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::StreamExt as _;
use http_body_util::{BodyStream, StreamBody};
use tonic::{
    Status,
    body::Body,
    codegen::http::{Request, Response},
};
use tower::Service;

use super::status::code_name;

/// The header that the transcoder sets on its calls.
const TRANSCODED: &str = "x-envoy-original-path";

/// A service whose transcoded response streams are reset when an error ends them.
#[derive(Clone)]
pub(super) struct ResetOnError<S> {
    pub(super) inner: S,
}

impl<S> Service<Request<Body>> for ResetOnError<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let transcoded = request.headers().contains_key(TRANSCODED);
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            // An error before the first message is in the headers, and the transcoder reports it.
            let begun = !response.headers().contains_key(Status::GRPC_STATUS);
            Ok(if transcoded && begun { response.map(reset_on_error) } else { response })
        })
    }
}

/// The same body, which fails where its trailers report an error.
fn reset_on_error(body: Body) -> Body {
    let frames = BodyStream::new(body).map(|frame| {
        let frame = frame?;
        match frame.trailers_ref().and_then(Status::from_header_map) {
            Some(status) if code_name(status.code()) != "OK" => Err(status),
            Some(_) | None => Ok(frame),
        }
    });
    Body::new(StreamBody::new(frames))
}
