//! Authentication and roles.

mod api_keys;
mod jwks_url;
mod jwt;
mod limits;
mod paths;
mod roles;
mod signer;

use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_types::{ErrorDetail, StatusExt as _};
use yoink::{
    domain::{CallerRole, UserId},
    grpc::pb::{ListProductsRequest, inventory_service_client::InventoryServiceClient},
};

use crate::harness::{Service, TestEnv, get, reason, run_yoink};

/// Authentication for a service on loopback, where it is off by default.
pub const REQUIRED: (&str, &str) = ("authentication", "required");

/// Creates a key by the command.
pub fn create_key(env: &TestEnv, principal: &str, role: CallerRole) -> String {
    let args = ["keys", "create", principal, "--role", role.as_str()];
    let output = tokio::task::block_in_place(|| run_yoink(env, &args));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let key = String::from_utf8(output.stdout).unwrap().trim_end().to_owned();
    assert_eq!(key.len(), 80, "nothing but the key");
    assert!(principal.parse::<UserId>().is_ok());
    key
}

/// The id of a key.
pub fn id_of(key: &str) -> &str {
    key.split('_').nth(1).unwrap()
}

/// A request with a bearer token.
pub fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value: MetadataValue<Ascii> = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// A call that every principal may make.
pub async fn list(channel: Channel, token: Option<&str>) -> Result<(), Status> {
    let request = with_token(ListProductsRequest::default(), token);
    InventoryServiceClient::new(channel).list_products(request).await.map(drop)
}

/// `OK`, or the reason of the error.
pub fn answer<T>(result: Result<T, Status>) -> String {
    match result {
        Ok(_) => "OK".to_owned(),
        Err(status) => reason(&status),
    }
}

/// Checks that a refusal reveals nothing: every wrong credential has the same answer.
pub fn assert_refused(result: Result<(), Status>, what: &str) {
    let Err(status) = result else { panic!("{what} is accepted") };
    assert_eq!(status.code(), Code::Unauthenticated, "{what}: {status:?}");
    assert_eq!(reason(&status), "CREDENTIALS_INVALID", "{what}");
    assert_eq!(status.message(), "the credentials are not accepted", "{what}");
    let details = status.get_error_details_vec();
    let [ErrorDetail::ErrorInfo(info)] = details.as_slice() else { panic!("{what}: {details:?}") };
    assert!(info.metadata.is_empty(), "{what}: {info:?}");
    let challenge = status.metadata().get("www-authenticate").unwrap();
    assert_eq!(challenge, r#"Bearer realm="yoink", error="invalid_token""#, "{what}");
}

/// How many calls were refused for a cause.
pub async fn refused_for(service: &Service, cause: &str) -> u64 {
    let scrape = get(service.http, "/metrics").await;
    let label = format!("cause=\"{cause}\"");
    let sample = scrape.lines().find(|line| {
        line.starts_with("yoink_authentication_failures_total{") && line.contains(&label)
    });
    sample.map_or(0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}
