//! Client certificates as credentials, by the roles of their names.

use yoink::{domain::CallerRole, grpc::pb::inventory_service_client::InventoryServiceClient};

use super::listeners::{SecureService, request};
use crate::{
    auth::{REQUIRED, answer, create_key, with_token},
    harness::{Authority, Issued, TestEnv, Validity},
};

#[tokio::test(flavor = "multi_thread")]
async fn verified_certificate_authenticates_by_a_name_that_has_a_role() {
    let env = TestEnv::new().await;
    let (authority, clients) = (Authority::new(), Authority::new());
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let backend = ["proxy.example", "spiffe://shop/backend"];
    let backend = clients.issue("backend", &backend, Validity::Now);
    let auditor = clients.issue("auditor", &["auditor.example"], Validity::Now);
    let other = clients.issue("other", &["other.example"], Validity::Now);
    let key = create_key(&env, "dave", CallerRole::Auditor);
    let ca = clients.file();
    let settings = [
        REQUIRED,
        ("tls_client_ca_file", ca.as_str()),
        ("grpc_client_auth", "optional"),
        ("client_certificate_roles", "spiffe://shop/backend=service,auditor.example=auditor"),
    ];
    let service = SecureService::start(&env, &server, &settings).await;
    let reserve = async |issued: Option<&Issued>, token: Option<&str>| {
        let mut tls = authority.trusted_by_client("127.0.0.1");
        if let Some(issued) = issued {
            tls = tls.identity(issued.identity());
        }
        let channel = service.channel(tls).await.unwrap();
        let request = with_token(request("ann"), token);
        answer(InventoryServiceClient::new(channel).reserve_unit(request).await)
    };
    assert_eq!(reserve(Some(&backend), None).await, "OK");
    assert_eq!(reserve(Some(&auditor), None).await, "ROLE_NOT_ALLOWED");
    for issued in [None, Some(&other)] {
        assert_eq!(reserve(issued, None).await, "CREDENTIALS_MISSING", "{issued:?}");
    }
    // The certificate may be that of a proxy, so a credential of the call takes precedence.
    assert_eq!(reserve(Some(&backend), Some(&key)).await, "ROLE_NOT_ALLOWED");
    assert_eq!(reserve(Some(&backend), Some("garbage")).await, "CREDENTIALS_INVALID");
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 1);
    service.stop().await;
}
