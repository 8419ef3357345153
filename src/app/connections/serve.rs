//! Serves the connections to gRPC, and asks each of them to end at its time.
//!
//! Must never: cut a call in progress before its time.

use std::{convert::Infallible, future::ready, io, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    body::Body,
    codegen::http::{Request, Response},
    service::Routes,
    transport::{self, server::Router},
};
use tower::{Layer, Service};

use super::connection::Connection;

/// The server of the connections.
#[derive(Clone)]
pub(in crate::app) struct Serve<L> {
    pub(in crate::app) router: Router<L>,
    /// How long the calls of a connection may take to end after it is asked to end, because the certificate of its client has
    /// expired.
    pub(in crate::app) grace: Duration,
}

impl<L, S> Serve<L>
where
    L: Layer<Routes, Service = S> + Clone + Send + 'static,
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    /// Serves them until `shutdown`, and then until their calls have ended. tonic can ask only all connections of a server to
    /// end. So a connection whose client presented a certificate has a server of its own.
    pub(in crate::app) async fn run(
        self,
        incoming: impl Stream<Item = Connection>,
        shutdown: CancellationToken,
    ) -> Result<(), transport::Error> {
        let with_certificate = TaskTracker::new();
        let others = incoming.filter_map(|mut connection| {
            let Some(left) = connection.certificate_left() else {
                return ready(Some(Ok::<_, io::Error>(connection)));
            };
            connection.end_after(left.saturating_add(self.grace));
            let (ended, shutdown) = (connection.ended(), shutdown.clone());
            let over = async move {
                tokio::select! {
                    () = tokio::time::sleep(left) => {}
                    () = shutdown.cancelled() => {}
                    () = ended.cancelled() => {}
                }
            };
            with_certificate.spawn(self.clone().run_one(connection, over));
            ready(None)
        });
        let shutdown = shutdown.clone().cancelled_owned();
        let router = self.router.clone();
        let served = router.serve_with_incoming_shutdown(others, shutdown).await;
        with_certificate.close();
        with_certificate.wait().await;
        served
    }

    /// Serves one connection until `over`, then asks it to end, and waits until it has.
    async fn run_one(self, connection: Connection, over: impl Future<Output = ()>) {
        let only = stream::once(ready(Ok::<_, io::Error>(connection))).chain(stream::pending());
        if let Err(error) = self.router.serve_with_incoming_shutdown(only, over).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "a connection cannot be served: it is closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use tokio::{
        net::{TcpListener, TcpStream},
        sync::{Notify, Semaphore},
        task::JoinSet,
    };
    use tonic::transport::Server;

    use super::{
        super::connection::{Counted, Lifetime, Limit},
        *,
    };
    use crate::{telemetry::Metrics, tls};

    /// A connection, and the stream of its client.
    async fn connection() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let counted = Counted::new(Metrics::new().unwrap().listener("grpc"));
        let stream = tls::Stream::Plain(stream);
        let limit = Limit::Permit { lifetime: Lifetime::begin(), _permit: permit };
        (Connection::new(stream, limit, counted), client)
    }

    fn serve(routes: axum::Router) -> Serve<tower::layer::util::Identity> {
        let router = Server::builder().add_routes(Routes::from(routes));
        Serve { router, grace: Duration::ZERO }
    }

    #[tokio::test]
    async fn connection_whose_time_is_over_answers_its_calls_and_takes_no_more() {
        let (begun, answer, over) =
            (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let handler = {
            let (begun, answer) = (begun.clone(), answer.clone());
            async move || {
                begun.notify_one();
                answer.notified().await;
            }
        };
        let (connection, client) = connection().await;
        let mut tasks = JoinSet::new();
        let routes = axum::Router::new().route("/call", get(handler));
        let ends = over.clone();
        tasks.spawn(serve(routes).run_one(connection, async move { ends.notified().await }));
        let (mut client, driver) = h2::client::handshake(client).await.unwrap();
        tasks.spawn(async move { driver.await.unwrap() });
        let request = Request::get("http://shop.example/call").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        begun.notified().await;
        over.notify_one();
        let refuses = async {
            while client.clone().ready().await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let refused = tokio::time::timeout(Duration::from_secs(60), refuses).await;
        assert!(refused.is_ok(), "the connection takes more calls");
        answer.notify_one();
        assert_eq!(response.await.unwrap().status(), 200);
        drop(client);
        // Both sides end without an error.
        tasks.join_all().await;
    }

    #[tokio::test]
    async fn server_of_a_connection_ends_with_it() {
        let (connection, client) = connection().await;
        let ended = connection.ended();
        let served =
            serve(axum::Router::new()).run_one(connection, async move { ended.cancelled().await });
        drop(client);
        served.await;
    }
}
