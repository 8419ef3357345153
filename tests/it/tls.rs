//! Redis over TLS: a real redis-server with a certificate of a throw-away authority.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use yoink::grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient};

use crate::harness::{Binary, TestEnv, eventually, product, scratch_dir};

/// Runs openssl in a directory.
fn openssl(dir: &Path, args: &str) {
    let mut command = Command::new("openssl");
    let output = command.args(args.split(' ')).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An authority (`ca.pem`) and what it signed for 127.0.0.1 (`server.pem`, `server.key`).
pub fn certificates() -> PathBuf {
    let dir = scratch_dir("tls");
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    let authority = "-keyout ca.key -out ca.pem -days 2 -subj /CN=throw-away";
    openssl(&dir, &format!("req -x509 {key} {authority}"));
    openssl(&dir, &format!("req {key} -keyout server.key -out server.csr -subj /CN=redis"));
    let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names";
    openssl(&dir, &format!("x509 -req -in server.csr {sign} -out server.pem"));
    dir
}

/// Lets a Redis speak TLS on a port beside its own; returns that port.
async fn speak_tls(env: &TestEnv, certificates: &Path) -> u16 {
    let mut cli = env.cli().await;
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("tls-auth-clients").arg("no");
    for (name, file) in [
        ("tls-cert-file", "server.pem"),
        ("tls-key-file", "server.key"),
        ("tls-ca-cert-file", "ca.pem"),
    ] {
        set.arg(name).arg(certificates.join(file).to_str().unwrap());
    }
    let () = set.query_async(&mut cli).await.unwrap();
    eventually("Redis listens on a free port", async || {
        let port: u16 = rand::random_range(10_000..32_000);
        let mut listen = redis::cmd("CONFIG");
        listen.arg("SET").arg("tls-port").arg(port);
        // It reports whether it could bind the port, so no other server answers there.
        listen.query_async::<()>(&mut cli).await.ok().map(|()| port)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn rediss_sells_over_tls_and_refuses_an_unknown_authority() {
    let env = TestEnv::with_own_redis().await;
    let certificates = tokio::task::block_in_place(certificates);
    let port = speak_tls(&env, &certificates).await;
    let url = format!("rediss://127.0.0.1:{port}");
    let settings = [("redis_url", url.as_str())];

    let mut untrusting = Binary::serve(&env, &settings, None);
    assert_eq!(untrusting.ended().await.code(), Some(2), "{}", untrusting.log());
    assert!(untrusting.log().contains("certificate"), "{}", untrusting.log());

    let authority = certificates.join("ca.pem");
    let environment = [("SSL_CERT_FILE", authority.to_str().unwrap())];
    let mut service = Binary::serve_with("all", &env, &settings, &environment);
    let channel = service.channel().await;
    let stores = env.stores().await;
    let partitions = stores.deployment.partitions;
    stores.ledger.create_products(&[product("shoe", 100)], partitions, "test").await.unwrap();
    for n in 0..30 {
        let request = ReserveUnitRequest {
            product_id: "shoe".to_owned(),
            user_id: format!("user-{n}"),
            request_id: "r".to_owned(),
            ..Default::default()
        };
        let mut buyers = InventoryServiceClient::new(channel.clone());
        let bought = eventually("the product is known, and sold", async || {
            buyers.reserve_unit(request.clone()).await.ok()
        });
        assert_eq!(bought.await.into_inner().remaining, 99 - n);
    }
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (30, 70));
    // Commands and blocking reads, all of them over TLS.
    let clients: String =
        redis::cmd("CLIENT").arg("LIST").query_async(&mut env.cli().await).await.unwrap();
    let encrypted =
        clients.lines().filter(|line| line.contains(&format!("laddr=127.0.0.1:{port}")));
    assert!(encrypted.clone().any(|line| line.contains("cmd=xreadgroup")), "{clients}");
    assert!(encrypted.count() >= 3, "{clients}");
    let plain = clients.lines().filter(|line| !line.contains(&format!(":{port} ")));
    assert!(plain.clone().all(|line| !line.contains("cmd=xreadgroup")), "{clients}");
}
