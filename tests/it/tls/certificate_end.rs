//! A connection ends after the certificate of its client has expired, and its calls are answered before.

use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, header::CONTENT_TYPE};
use prost::Message as _;
use rustls::ALL_VERSIONS;
use tokio::{net::TcpStream, task::JoinSet};
use yoink::grpc::pb::{Ack, ReserveUnitRequest};

use super::listeners::{SecureService, client_config, handshake, request};
use crate::harness::{Authority, TestEnv, Validity, eventually};

/// A call by a connection of its own, with a certificate that expires soon; `None` if it has expired already.
async fn call(
    service: &SecureService,
    (authority, clients): (&Authority, &Authority),
    user: &str,
    drivers: &mut JoinSet<()>,
) -> Option<(SendRequest<Bytes>, ResponseFuture)> {
    let soon = Validity::For(Duration::from_secs(5));
    let issued = clients.issue(user, &["ann.example"], soon);
    let config = client_config(ALL_VERSIONS, authority, "h2", Some(&issued));
    let stream = TcpStream::connect(service.grpc).await.unwrap();
    let stream = handshake(stream, config).await.ok()?;
    let (client, connection) = h2::client::handshake(stream).await.ok()?;
    drivers.spawn(async move { drop(connection.await) });
    let uri = format!("https://{}/yoink.v1.InventoryService/ReserveUnit", service.grpc);
    let head = Request::post(uri).header(CONTENT_TYPE, "application/grpc").body(()).unwrap();
    let mut client = client.ready().await.ok()?;
    let (answer, mut body) = client.send_request(head, false).ok()?;
    let message = ReserveUnitRequest { ack: Ack::Ledger.into(), ..request(user) }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    body.send_data(Bytes::from([&[0], length.as_slice(), &message].concat()), true).ok()?;
    Some((client, answer))
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_takes_no_more_calls_when_its_certificate_has_expired_and_answers_those_before()
{
    let env = TestEnv::with_durable_postgres().await;
    let (authority, clients) = (Authority::new(), Authority::new());
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let ca = clients.file();
    let settings = [
        ("tls_client_ca_file", ca.as_str()),
        ("grpc_client_auth", "required"),
        ("call_timeout_ms", "600000"),
    ];
    let service = SecureService::start(&env, &server, &settings).await;
    // No order is stored while the rows of the partitions are locked, so the call waits.
    let lock = env.sql().await;
    lock.batch_execute("BEGIN; SELECT FROM partitions FOR UPDATE").await.unwrap();
    let (mut drivers, mut calls) = (JoinSet::new(), 0);
    let (client, answer) = eventually("a call waits", async || {
        calls += 1;
        let user = format!("user-{calls}");
        let (client, answer) = call(&service, (&authority, &clients), &user, &mut drivers).await?;
        let accepted = eventually("the order is accepted, or the connection ends", async || {
            let report = env.audit().await;
            let in_orders = report.products.first().is_some_and(|shoe| shoe.in_orders > 0);
            let ends = client.clone().ready().await.is_err();
            (in_orders || ends).then_some(in_orders)
        });
        accepted.await.then_some((client, answer))
    })
    .await;
    eventually("the connection takes no more calls", async || {
        client.clone().ready().await.is_err().then_some(())
    })
    .await;
    lock.batch_execute("COMMIT").await.unwrap();
    let mut body = answer.await.unwrap().into_body();
    while let Some(data) = body.data().await {
        drop(data.unwrap());
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    drop(client);
    drivers.join_all().await;
    env.assert_audit_holds().await;
    service.stop().await;
}
