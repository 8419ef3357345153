//! API keys: created, revoked and replaced by the command while services run.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use serde_json::json;
use tonic::{Code, Request, metadata::MetadataValue};
use yoink::{
    app::Role,
    domain::CallerRole,
    grpc::pb::{ListProductsRequest, inventory_service_client::InventoryServiceClient},
};

use super::{
    REQUIRED, answer, assert_refused, create_key, id_of,
    jwt::key_file,
    limits::scrape,
    list, refused_for,
    signer::{Signer, claims},
    with_token,
};
use crate::harness::{Binary, TestEnv, eventually, product, reason, run_yoink, scratch_dir};

const METRICS_TOKEN: &str = "token-of-the-metrics-7Kq2vX9f";

fn yoink(env: &TestEnv, args: &[&str]) -> (bool, String) {
    let output = tokio::task::block_in_place(|| run_yoink(env, args));
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(printed).unwrap())
}

/// The key with another last character.
fn with_wrong_secret(key: &str) -> String {
    let other = if key.ends_with('0') { "1" } else { "0" };
    format!("{}{other}", &key[..key.len() - 1])
}

#[tokio::test(flavor = "multi_thread")]
async fn load_generator_authenticates_its_calls_and_does_not_show_its_key() {
    let env = TestEnv::new().await;
    let key = create_key(&env, "backend", CallerRole::Service);
    let plain = env.serve(Role::Api, &[]).await;
    plain.create(product("shoe", 100)).await;
    plain.stop().await;
    let service = env.serve(Role::All, &[REQUIRED]).await;
    let target = service.grpc.to_string();
    for (flags, outcome) in [
        (&[] as &[&str], "CREDENTIALS_MISSING"),
        (&["--bearer", &key], "accepted"),
        (&["--api-key", &key], "accepted"),
    ] {
        let args = ["load", "--target", &target, "--products", "shoe", "--calls", "20"];
        let (done, printed) = yoink(&env, &[&args, flags].concat());
        assert!(done && printed.contains(outcome), "{flags:?}: {printed}");
        assert!(!printed.contains(&key), "{printed}");
    }
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credential_is_refused_with_one_answer_and_its_cause_is_counted() {
    let env = TestEnv::new().await;
    let key = create_key(&env, "backend", CallerRole::Service);
    let revoked = create_key(&env, "backend", CallerRole::Service);
    let expired = create_key(&env, "backend", CallerRole::Service);
    env.expire_key(&expired, SystemTime::now()).await;
    let service = env.serve(Role::Api, &[REQUIRED]).await;
    let (done, _) = yoink(&env, &["keys", "revoke", id_of(&revoked)]);
    assert!(done);
    eventually("the revoked key is refused", async || {
        list(service.channel(), Some(&revoked)).await.err()
    })
    .await;

    list(service.channel(), Some(&key)).await.unwrap();
    let missing = list(service.channel(), None).await.unwrap_err();
    assert_eq!(
        (missing.code(), reason(&missing).as_str()),
        (Code::Unauthenticated, "CREDENTIALS_MISSING")
    );
    assert_eq!(missing.metadata().get("www-authenticate").unwrap(), r#"Bearer realm="yoink""#);

    let wrong_secret = with_wrong_secret(&key);
    let unknown = format!("yk_{}_{}", "0".repeat(12), "0".repeat(64));
    for (token, cause) in [
        (wrong_secret.as_str(), "key_secret"),
        (&unknown, "key_unknown"),
        (&revoked, "key_unknown"),
        (&expired, "key_unknown"),
        (&key[..79], "malformed"),
        ("yk_", "malformed"),
        ("garbage", "jwt_unused"),
        ("a.b.c", "jwt_unused"),
    ] {
        let before = refused_for(&service, cause).await;
        assert_refused(list(service.channel(), Some(token)).await, cause);
        assert_eq!(refused_for(&service, cause).await, before + 1, "{cause}");
    }
    let bearer = format!("Bearer {key}");
    for (cause, headers) in [
        ("malformed", [("authorization", b"Basic YTpi".as_slice())].as_slice()),
        ("malformed", &[("authorization", b"Bearer")]),
        ("jwt_unused", &[("authorization", b"Bearer \xc3\xa9")]),
        ("malformed", &[("x-api-key", b"\xff")]),
        ("several", &[("authorization", bearer.as_bytes()), ("authorization", bearer.as_bytes())]),
        ("several", &[("authorization", b"Bearer a.b.c"), ("x-api-key", key.as_bytes())]),
    ] {
        let mut request = Request::new(ListProductsRequest::default());
        for (name, value) in headers {
            request.metadata_mut().append(*name, MetadataValue::try_from(*value).unwrap());
        }
        let before = refused_for(&service, cause).await;
        assert_refused(service.buyers().list_products(request).await.map(drop), cause);
        assert_eq!(refused_for(&service, cause).await, before + 1, "{cause}: {headers:?}");
    }
    // The key alone is accepted in the other header.
    let mut request = Request::new(ListProductsRequest::default());
    request.metadata_mut().insert("x-api-key", key.parse().unwrap());
    service.buyers().list_products(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_key_is_refused() {
    let env = TestEnv::new().await;
    let key = create_key(&env, "backend", CallerRole::Service);
    let service = env.serve(Role::Api, &[REQUIRED]).await;
    list(service.channel(), Some(&key)).await.unwrap();
    env.expire_key(&key, SystemTime::now() + Duration::from_secs(5)).await;
    let refused =
        eventually("the key is refused", async || list(service.channel(), Some(&key)).await.err());
    assert_refused(Err(refused.await), "expired");
    let (_, listed) = yoink(&env, &["keys", "list"]);
    assert!(listed.contains("expired") && listed.contains(id_of(&key)), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_replaced_without_a_refused_call_and_revoked_in_every_process() {
    let env = TestEnv::new().await;
    let old = create_key(&env, "backend", CallerRole::Service);
    let here = env.serve(Role::Api, &[REQUIRED]).await;
    let mut there = Binary::serve_as("api", &env, &[REQUIRED], None);
    let channels = [here.channel(), there.channel().await];
    for channel in &channels {
        list(channel.clone(), Some(&old)).await.unwrap();
    }
    // Both keys are valid until the old one is revoked.
    let new = create_key(&env, "backend", CallerRole::Service);
    for channel in &channels {
        eventually("the new key is accepted", async || {
            list(channel.clone(), Some(&old)).await.unwrap();
            list(channel.clone(), Some(&new)).await.ok()
        })
        .await;
    }
    let (done, printed) = yoink(&env, &["keys", "revoke", id_of(&old)]);
    assert!(done && printed.contains("is revoked"), "{printed}");
    for channel in &channels {
        eventually("the old key is refused", async || {
            list(channel.clone(), Some(&new)).await.unwrap();
            list(channel.clone(), Some(&old)).await.err()
        })
        .await;
    }
    let (done, printed) = yoink(&env, &["keys", "revoke", id_of(&old)]);
    assert!(done && printed.contains("was revoked before"), "{printed}");
    let (done, printed) = yoink(&env, &["keys", "revoke", "0123456789ab"]);
    assert!(!done && printed.contains("no key with this id"), "{printed}");
    let (_, listed) = yoink(&env, &["keys", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let states: Vec<_> = listed.as_array().unwrap().iter().map(|key| &key["state"]).collect();
    assert_eq!(states, ["revoked", "active"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_in_use_while_postgres_is_down() {
    let mut env = TestEnv::with_own_postgres().await;
    let key = create_key(&env, "ann", CallerRole::Customer);
    let mut service = Binary::serve_as("api", &env, &[REQUIRED], None);
    let channel = service.channel().await;
    list(channel.clone(), Some(&key)).await.unwrap();
    env.postgres.as_mut().unwrap().stop();
    eventually("the process has tried to read the keys, and failed", async || {
        service.log().contains("the API keys cannot be read").then_some(())
    })
    .await;
    list(channel.clone(), Some(&key)).await.unwrap();
    assert_refused(list(channel, Some(&with_wrong_secret(&key))).await, "secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_in_no_log_line_no_answer_and_no_metric() {
    let env = TestEnv::new().await;
    let plain = env.serve(Role::Api, &[]).await;
    plain.create(product("shoe", 10)).await;
    let key = create_key(&env, "ann", CallerRole::Customer);
    let wrong = with_wrong_secret(&key);
    let jwt = "eyJhbGciOiJFUzI1NiJ9.c2VjcmV0LW9mLWEtand0.c2lnbmF0dXJlLW9mLWEtand0";
    let (signer, other) = (Signer::ec(), Signer::ec());
    let (accepted, forged) = (signer.token(&claims(json!({}))), other.token(&claims(json!({}))));
    let key_set = key_file(&[signer.jwk("a")]);
    let token_file = scratch_dir("metrics").join("token");
    fs::write(&token_file, METRICS_TOKEN).unwrap();
    let settings = [
        REQUIRED,
        ("log_filter", "trace"),
        ("jwt_jwks_file", key_set.to_str().unwrap()),
        ("jwt_issuer", "https://id.example"),
        ("jwt_audience", "yoink"),
        ("metrics_token_file", token_file.to_str().unwrap()),
    ];
    let mut binary = Binary::serve_as("all", &env, &settings, None);
    let channel = binary.channel().await;
    let mut buyers = InventoryServiceClient::new(channel.clone());
    let request =
        yoink::grpc::pb::ReserveUnitRequest { product_id: "shoe".to_owned(), ..Default::default() };
    buyers.reserve_unit(with_token(request, Some(&key))).await.unwrap();
    assert_eq!(answer(list(channel.clone(), Some(&wrong)).await), "CREDENTIALS_INVALID");
    assert_eq!(answer(list(channel.clone(), Some(jwt)).await), "CREDENTIALS_INVALID");
    list(channel.clone(), Some(&accepted)).await.unwrap();
    assert_eq!(answer(list(channel.clone(), Some(&forged)).await), "CREDENTIALS_INVALID");
    let headers = format!("Authorization: Bearer {METRICS_TOKEN}\r\n");
    let scrape = scrape(binary.http_address().unwrap(), "/metrics", &headers).await;
    assert!(scrape.contains("yoink_authentication_failures_total"), "{scrape}");
    let (_, listed) = yoink(&env, &["keys", "list"]);
    let log = binary.log();
    for cause in ["key_secret", "jwt_key_unknown", "jwt_signature"] {
        assert!(log.contains(cause), "{cause} is not logged");
    }
    let secret = key.rsplit('_').next().unwrap();
    let mut parts = vec![secret, &secret[..32], &secret[32..], METRICS_TOKEN];
    // The claims and the signature of each.
    parts.extend([jwt, &accepted, &forged].into_iter().flat_map(|jwt| jwt.split('.').skip(1)));
    for text in [&log, &scrape, &listed] {
        for part in &parts {
            assert!(!text.contains(part), "a part of a credential is shown: {part}");
        }
    }
    let hash = "SELECT count(*) FROM api_keys WHERE encode(secret_sha256, 'escape') LIKE $1";
    let stored = env.sql().await.query_one(hash, &[&format!("%{secret}%")]).await.unwrap();
    assert_eq!(stored.get::<_, i64>(0), 0);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authentication_is_required_beyond_loopback_and_switching_it_off_is_a_warning() {
    let env = TestEnv::new().await;
    for (setting, expected, logged) in [
        ("auto", "CREDENTIALS_MISSING", "no caller can authenticate"),
        ("off", "OK", "authentication is off: every caller that reaches this address"),
    ] {
        let settings = [("grpc_listen", ":0"), ("authentication", setting)];
        let mut binary = Binary::serve_as("api", &env, &settings, None);
        let channel = binary.channel().await;
        assert_eq!(answer(list(channel, None).await), expected, "{setting}");
        let log = binary.log();
        let warned = log.lines().any(|line| line.contains(" WARN ") && line.contains(logged));
        assert!(warned, "{setting}: {log}");
    }
    let mut loopback = Binary::serve_as("api", &env, &[], None);
    list(loopback.channel().await, None).await.unwrap();
    let log = loopback.log();
    assert!(log.contains("authentication is off: every program on this machine"), "{log}");
}
