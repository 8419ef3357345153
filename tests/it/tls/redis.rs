//! Redis over TLS: a real redis-server with a certificate of a throw-away authority.

use std::path::Path;

use tokio::task::block_in_place;
use yoink::{
    app::Role,
    grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient},
    servers::RedisServer,
};

use super::certificates;
use crate::harness::{
    Authority, Binary, TestEnv, Validity, eventually, product, replace, run_yoink_with,
};

/// Lets a Redis use these certificates, for connections that begin now.
async fn use_certificates(env: &TestEnv, certificates: &Path, clients: &str) {
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("tls-auth-clients").arg(clients);
    for (name, file) in [
        ("tls-cert-file", "server.pem"),
        ("tls-key-file", "server.key"),
        ("tls-ca-cert-file", "ca.pem"),
    ] {
        set.arg(name).arg(certificates.join(file).to_str().unwrap());
    }
    let () = set.query_async(&mut env.cli().await).await.unwrap();
}

/// Lets a Redis speak TLS on a port beside its own; returns that port.
pub(super) async fn speak_tls(env: &TestEnv, certificates: &Path, clients: &str) -> u16 {
    use_certificates(env, certificates, clients).await;
    let mut cli = env.cli().await;
    eventually("Redis listens on a free port", async || {
        let port: u16 = rand::random_range(10_000..32_000);
        let mut listen = redis::cmd("CONFIG");
        listen.arg("SET").arg("tls-port").arg(port);
        // It reports whether it could bind the port, so no other server answers there.
        listen.query_async::<()>(&mut cli).await.ok().map(|()| port)
    })
    .await
}

/// The address of this port, for the user of the service.
fn over_tls(port: u16) -> String {
    RedisServer::url_at(port).replace("redis://", "rediss://")
}

#[tokio::test(flavor = "multi_thread")]
async fn rediss_sells_over_tls_and_refuses_an_unknown_authority() {
    let env = TestEnv::with_own_redis().await;
    let certificates = certificates();
    let port = speak_tls(&env, &certificates, "no").await;
    let url = over_tls(port);
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
    eventually("workers wait for orders, over TLS only", async || {
        let mut list = redis::cmd("CLIENT");
        let clients: String = list.arg("LIST").query_async(&mut env.cli().await).await.unwrap();
        let is_encrypted = |line: &&str| line.contains(&format!("laddr=127.0.0.1:{port} "));
        let waits = |line: &str| line.contains("cmd=xreadgroup");
        assert!(!clients.lines().any(|line| waits(line) && !is_encrypted(&line)), "{clients}");
        let encrypted: Vec<&str> = clients.lines().filter(is_encrypted).collect();
        (encrypted.len() >= 3 && encrypted.into_iter().any(waits)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authority_and_client_certificate_for_redis_are_files_of_the_settings() {
    let env = TestEnv::with_own_redis().await;
    let (authority, other) = (Authority::new(), Authority::new());
    authority.issue("server", &["127.0.0.1"], Validity::Now);
    let port = speak_tls(&env, authority.dir(), "yes").await;
    let url = over_tls(port);
    let ca = authority.file();
    let client = authority.issue("client", &[], Validity::Now);
    let (cert, key) = client.texts();
    let (other_ca, foreign) = (other.file(), other.issue("client", &[], Validity::Now));
    let check = |more: &[(&'static str, &str)]| {
        let settings = [&[("redis_url", url.as_str())], more].concat();
        let args = ["config", "check", "--connect"];
        let done = block_in_place(|| run_yoink_with(&env, &settings, &args));
        let printed = [done.stdout, done.stderr].concat();
        (done.status.code().unwrap(), String::from_utf8(printed).unwrap())
    };
    let identity = [("redis_cert_file", cert), ("redis_key_file", key)];
    let (code, printed) = check(&[&[("redis_ca_file", ca.as_str())], identity.as_slice()].concat());
    assert_eq!(code, 0, "{printed}");
    assert!(printed.contains("redis_url = \"rediss://"), "{printed}");
    for (settings, why) in [
        (vec![("redis_ca_file", ca.as_str())], "ertificate"),
        (vec![("redis_ca_file", other_ca.as_str()), identity[0], identity[1]], "UnknownIssuer"),
        (
            vec![
                ("redis_ca_file", ca.as_str()),
                ("redis_cert_file", foreign.texts().0),
                ("redis_key_file", foreign.texts().1),
            ],
            "UnknownCA",
        ),
        (
            vec![
                ("redis_ca_file", ca.as_str()),
                identity[0],
                ("redis_key_file", foreign.texts().1),
            ],
            "is not the key of the certificate in redis_cert_file",
        ),
        (
            vec![("redis_ca_file", "/no/such/ca.pem")],
            "redis_ca_file cannot be used: /no/such/ca.pem",
        ),
    ] {
        let (code, printed) = check(&settings);
        assert!(code == 2 && printed.contains(why), "{why}: {code} {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_of_redis_that_has_expired_or_is_for_another_name_is_refused() {
    let env = TestEnv::with_own_redis().await;
    let authority = Authority::new();
    authority.issue("server", &["127.0.0.1"], Validity::Now);
    let port = speak_tls(&env, authority.dir(), "no").await;
    let (url, ca) = (over_tls(port), authority.file());
    let settings = [("redis_url", url.as_str()), ("redis_ca_file", ca.as_str())];
    for (name, validity, problem) in [
        ("127.0.0.1", Validity::Now, ""),
        ("127.0.0.1", Validity::Expired, "expired"),
        ("redis.example", Validity::Now, "not valid for name"),
    ] {
        authority.issue("server", &[name], validity);
        use_certificates(&env, authority.dir(), "no").await;
        let args = ["config", "check", "--connect"];
        let done = block_in_place(|| run_yoink_with(&env, &settings, &args));
        let printed = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        assert_eq!(done.status.success(), problem.is_empty(), "{name}, {validity:?}: {printed}");
        assert!(printed.contains(problem), "{name}, {validity:?}: {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_authority_of_redis_is_used_when_the_service_connects_again() {
    let env = TestEnv::with_own_redis().await;
    let (authority, later) = (Authority::new(), Authority::new());
    for issuer in [&authority, &later] {
        issuer.issue("server", &["127.0.0.1"], Validity::Now);
    }
    let port = speak_tls(&env, authority.dir(), "no").await;
    let (url, ca) = (over_tls(port), authority.file());
    let settings = [("redis_url", url.as_str()), ("redis_ca_file", ca.as_str())];
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    use_certificates(&env, later.dir(), "no").await;
    replace(later.file().as_ref(), ca.as_ref());
    let mut kill = redis::cmd("CLIENT");
    let () =
        kill.arg("KILL").arg("TYPE").arg("normal").query_async(&mut env.cli().await).await.unwrap();
    eventually("it sells over connections that the new authority has signed", async || {
        service.buy("shoe", "bob", "r").await.ok()
    })
    .await;
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 2);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authority_of_the_system_that_cannot_be_read_is_reported_at_the_start() {
    let env = TestEnv::new().await;
    let authority = Authority::new();
    let (ca, broken) = (authority.file(), authority.dir().join("broken.pem"));
    std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    let settings = [("redis_url", "rediss://127.0.0.1:1"), ("redis_ca_file", ca.as_str())];
    for file in ["/no/such.pem", broken.to_str().unwrap()] {
        let environment = [("SSL_CERT_FILE", file)];
        let mut service = Binary::serve_with("all", &env, &settings, &environment);
        assert_eq!(service.ended().await.code(), Some(2), "{}", service.log());
        let message = "a certificate authority of the system cannot be read";
        assert!(service.log().contains(message), "{}", service.log());
    }
}
