//! Streams that the sidecar turns into a JSON array.
//!
//! An error that ends a gRPC stream stands in its trailers, and the transcoder closes the array all the same:
//! a part of a list would look like the whole. So such a stream is reset instead, and the body that the
//! client gets is visibly incomplete.

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
use tower::{Layer, Service};

use super::status::is_error;

/// Set by the transcoder on the calls that it makes.
const TRANSCODED: &str = "x-envoy-original-path";

/// Puts [`ResetOnError`] around a service.
#[derive(Clone)]
pub(super) struct ResetTranscoded;

impl<S> Layer<S> for ResetTranscoded {
    type Service = ResetOnError<S>;

    fn layer(&self, inner: S) -> ResetOnError<S> {
        ResetOnError { inner }
    }
}

/// A service whose transcoded answers are reset where an error ends them.
#[derive(Clone)]
pub(super) struct ResetOnError<S> {
    inner: S,
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
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            // An error that is known before the first message stands in the head, which ends the stream.
            let begun = !response.headers().contains_key(Status::GRPC_STATUS);
            Ok(if transcoded && begun { response.map(reset_on_error) } else { response })
        })
    }
}

/// The body, whose trailers are an error of the body where they say that the call failed.
fn reset_on_error(body: Body) -> Body {
    let frames = BodyStream::new(body).map(|frame| {
        let frame = frame?;
        match frame.trailers_ref().and_then(Status::from_header_map) {
            Some(status) if is_error(&status) => Err(status),
            Some(_) | None => Ok(frame),
        }
    });
    Body::new(StreamBody::new(frames))
}
