//! Certificates that are renewed while the service runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::task::JoinSet;
use tonic::transport::Channel;
use yoink::grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient};

use super::listeners::{SecureService, connect, lists};
use crate::harness::{Authority, Binary, TestEnv, Validity, WAIT_MAX, eventually, replace};

/// The certificate that a new connection is shown.
async fn shown(address: std::net::SocketAddr, authority: &Authority) -> Vec<u8> {
    let stream = connect(address, authority, "h2").await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificate_is_used_for_new_connections_and_no_call_fails() {
    let env = TestEnv::new().await;
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let renewed = authority.issue("renewed", &["127.0.0.1"], Validity::Now);
    let service = Arc::new(SecureService::start(&env, &server, &[]).await);
    let before = shown(service.grpc, &authority).await;
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for buyer in 0..4 {
        let (service, stop, calls) = (service.clone(), stop.clone(), calls.clone());
        let tls = authority.trusted_by_client("127.0.0.1");
        // Half of the buyers keep their connection, and the others open one for each call.
        let kept =
            if buyer % 2 == 0 { Some(service.channel(tls.clone()).await.unwrap()) } else { None };
        tasks.spawn(async move {
            let mut number = 0;
            while !stop.load(SeqCst) {
                let channel: Channel = match &kept {
                    Some(channel) => channel.clone(),
                    None => service.channel(tls.clone()).await.unwrap(),
                };
                let request = ReserveUnitRequest {
                    product_id: "shoe".to_owned(),
                    user_id: format!("user-{buyer}"),
                    request_id: number.to_string(),
                    ..Default::default()
                };
                InventoryServiceClient::new(channel).reserve_unit(request).await.unwrap();
                number += 1;
                calls.fetch_add(1, SeqCst);
            }
        });
    }
    eventually("calls are answered", async || (calls.load(SeqCst) > 20).then_some(())).await;
    renewed.replace(&server);
    eventually("new connections are shown the new certificate", async || {
        (shown(service.grpc, &authority).await != before).then_some(())
    })
    .await;
    eventually("the other listener, too", async || {
        let stream = connect(service.http, &authority, "http/1.1").await.unwrap();
        (stream.get_ref().1.peer_certificates().unwrap()[0].to_vec() != before).then_some(())
    })
    .await;
    let then = calls.load(SeqCst);
    eventually("calls go on", async || (calls.load(SeqCst) > then + 20).then_some(())).await;
    stop.store(true, SeqCst);
    tasks.join_all().await;
    let sold = i64::try_from(calls.load(SeqCst)).unwrap();
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, sold);
    Arc::into_inner(service).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_authority_of_clients_is_used_for_new_connections() {
    let env = TestEnv::new().await;
    let (authority, clients, later) = (Authority::new(), Authority::new(), Authority::new());
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let ca = clients.file();
    let settings = [("tls_client_ca_file", ca.as_str()), ("grpc_client_auth", "required")];
    let service = SecureService::start(&env, &server, &settings).await;
    let tls = |issuer: &Authority| {
        let client = issuer.issue("client", &["ann.example"], Validity::Now);
        authority.trusted_by_client("127.0.0.1").identity(client.identity())
    };
    let old = service.channel(tls(&clients)).await.unwrap();
    assert!(lists(old.clone(), WAIT_MAX).await);
    replace(later.file().as_ref(), ca.as_ref());
    eventually("a client of the new authority is accepted", async || {
        let channel = service.channel(tls(&later)).await.ok()?;
        // Shorter than the whole wait.
        lists(channel, Duration::from_secs(5)).await.then_some(())
    })
    .await;
    assert!(lists(old, WAIT_MAX).await, "the connection that existed stays");
    let refused = match service.channel(tls(&clients)).await {
        Ok(channel) => !lists(channel, WAIT_MAX).await,
        Err(_) => true,
    };
    assert!(refused, "a new connection of a client of the old authority is accepted");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_logged_and_the_old_ones_stay() {
    let env = TestEnv::new().await;
    let authority = Authority::new();
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let renewed = authority.issue("renewed", &["127.0.0.1"], Validity::Now);
    let (cert, key) = server.texts();
    let secret = std::fs::read_to_string(key).unwrap().lines().nth(1).unwrap().to_owned();
    let settings = [("tls_cert_file", cert), ("tls_key_file", key), ("log_filter", "debug")];
    let service = Binary::serve(&env, &settings, None);
    let address = eventually("it listens", async || service.address()).await;
    let before = shown(address, &authority).await;
    // Only half of the pair.
    replace(&renewed.certificate, &server.certificate);
    eventually("the mismatch is logged", async || {
        let log = service.log();
        log.contains("tls_key_file cannot be used").then_some(())
    })
    .await;
    assert!(
        service.log().contains("new connections use what was read before"),
        "{}",
        service.log()
    );
    assert_eq!(shown(address, &authority).await, before);
    std::fs::remove_file(&server.key).unwrap();
    eventually("the missing file is logged", async || {
        service.log().contains("cannot be read").then_some(())
    })
    .await;
    assert_eq!(shown(address, &authority).await, before);
    replace(&renewed.key, &server.key);
    eventually("the new pair is used", async || {
        (shown(address, &authority).await != before).then_some(())
    })
    .await;
    assert!(!service.log().contains("PRIVATE KEY") && !service.log().contains(&secret));
}
