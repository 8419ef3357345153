//! A connection ends at its age: its calls are answered, and its client opens a new one.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;
use yoink::{
    app::Role,
    grpc::pb::{
        Ack, ListProductsRequest, ReserveUnitRequest,
        inventory_service_client::InventoryServiceClient,
    },
};

use crate::harness::{Service, TestEnv, eventually, product};

/// A client's channel that counts its connections.
async fn counted(service: &Service, connections: &Arc<AtomicUsize>) -> Channel {
    let (address, connections) = (service.grpc, connections.clone());
    let connect = service_fn(move |_: Uri| {
        connections.fetch_add(1, Ordering::SeqCst);
        async move { TcpStream::connect(address).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://yoink").connect_with_connector(connect).await.unwrap()
}

fn request(user: usize, number: usize) -> ReserveUnitRequest {
    ReserveUnitRequest {
        product_id: "shoe".to_owned(),
        user_id: format!("user-{user}"),
        request_id: number.to_string(),
        ..Default::default()
    }
}

/// Whether the client itself reports a request for which it got no answer: it had not sent it when GOAWAY arrived, or sent it
/// after the last stream that GOAWAY names. Clients in Go, Java and C++ send it again by themselves.
fn is_from_the_client(status: &Status) -> bool {
    // The service's refusals carry their reason in the details.
    status.details().is_empty() && [Code::Cancelled, Code::Internal].contains(&status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_buy_on_without_an_error_while_their_connections_end_at_their_age() {
    const CLIENTS: usize = 4;
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("connection_max_age_ms", "1000")]).await;
    service.create(product("shoe", 1_000_000)).await;
    let connections = Arc::default();
    let channels = join_all((0..CLIENTS).map(|_| counted(&service, &connections))).await;
    let buyers = channels.iter().cycle().take(4 * CLIENTS).enumerate().map(|(user, channel)| {
        let mut client = InventoryServiceClient::new(channel.clone());
        let connections = &connections;
        async move {
            let mut number = 0;
            while connections.load(Ordering::SeqCst) < 3 * CLIENTS {
                match client.reserve_unit(request(user, number)).await {
                    Ok(answer) => {
                        // Also that a request which the client reported as failed had not been processed.
                        assert!(!answer.into_inner().duplicate, "it was processed before");
                        number += 1;
                    }
                    Err(status) => assert!(is_from_the_client(&status), "{status:?}"),
                }
            }
            number
        }
    });
    let sold: usize = join_all(buyers).await.into_iter().sum();
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, i64::try_from(sold).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_is_answered_after_the_age_of_its_connection() {
    let env = TestEnv::with_durable_postgres().await;
    let settings = [("connection_max_age_ms", "1000"), ("call_timeout_ms", "60000")];
    let api = env.serve(Role::Api, &settings).await;
    api.create(product("shoe", 1)).await;
    let connections = Arc::default();
    let buyers = InventoryServiceClient::new(counted(&api, &connections).await);
    let stored = ReserveUnitRequest { ack: Ack::Ledger.into(), ..request(1, 1) };
    let answer = async { buyers.clone().reserve_unit(stored).await.unwrap().into_inner() };
    let worker = async {
        eventually("other calls of the client use a new connection", async || {
            drop(buyers.clone().list_products(ListProductsRequest::default()).await);
            (connections.load(Ordering::SeqCst) > 1).then_some(())
        })
        .await;
        env.serve(Role::Worker, &[]).await
    };
    let (answer, _worker) = tokio::join!(answer, worker);
    assert_eq!((answer.remaining, answer.duplicate), (0, false));
    env.assert_audit_holds().await;
}
