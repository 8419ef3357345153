//! JWTs: which are accepted, which are refused, and how their keys are replaced.

use std::{
    fs,
    path::{Path, PathBuf},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use yoink::{
    app::Role,
    domain::CallerRole,
    grpc::pb::{GetReservationRequest, ReserveUnitRequest},
};

use super::{
    REQUIRED, answer, assert_refused, create_key, list, refused_for,
    signer::{ALGORITHMS, Signer, claims, now, wrong_tokens},
    with_token,
};
use crate::harness::{Service, TestEnv, eventually, product, scratch_dir};

fn write_keys(file: &Path, keys: &[Value]) {
    // Renamed, as a file that others read should be replaced.
    let new = file.with_extension("new");
    fs::write(&new, json!({"keys": keys}).to_string()).unwrap();
    fs::rename(new, file).unwrap();
}

pub(super) fn key_file(keys: &[Value]) -> PathBuf {
    let file = scratch_dir("jwks").join("jwks.json");
    write_keys(&file, keys);
    file
}

async fn serve(env: &TestEnv, file: &Path, more: &[(&'static str, &str)]) -> Service {
    let settings = [
        REQUIRED,
        ("jwt_jwks_file", file.to_str().unwrap()),
        ("jwt_issuer", "https://id.example"),
        ("jwt_audience", "yoink"),
        ("jwt_algorithms", ALGORITHMS),
    ];
    env.serve(Role::All, &[&settings, more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_jwt_is_refused_with_one_answer_and_its_cause_is_counted() {
    let env = TestEnv::new().await;
    let (ec, rsa) = (Signer::ec(), Signer::rsa());
    let file = key_file(&[ec.jwk("a"), rsa.jwk("r")]);
    let service = serve(&env, &file, &[]).await;
    let valid = ec.token(&claims(json!({})));
    let of_rsa = rsa.token_with(&json!({"alg": "RS256", "kid": "r"}), &claims(json!({})));
    // The second time, a token is not verified again.
    for token in [&valid, &valid, &of_rsa, &of_rsa] {
        list(service.channel(), Some(token)).await.unwrap();
    }
    for (cause, token) in wrong_tokens(&ec, &rsa) {
        let before = refused_for(&service, cause).await;
        assert_refused(list(service.channel(), Some(&token)).await, &token);
        assert_eq!(refused_for(&service, cause).await, before + 1, "{cause}: {token}");
    }
    let mut request = tonic::Request::new(yoink::grpc::pb::ListProductsRequest::default());
    let bytes =
        tonic::metadata::MetadataValue::try_from(b"Bearer a.\xc3\xa9.c".as_slice()).unwrap();
    request.metadata_mut().insert("authorization", bytes);
    assert_refused(service.buyers().list_products(request).await.map(drop), "non-ASCII");
    list(service.channel(), Some(&valid)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn address_that_sends_wrong_credentials_gets_no_signature_verified_on_the_operators_service()
{
    let env = TestEnv::new().await;
    let operator = create_key(&env, "carol", CallerRole::Operator);
    let (signer, other) = (Signer::ec(), Signer::ec());
    let file = key_file(&[signer.jwk("a")]);
    let settings = [("address_calls_per_second", "5"), ("jwt_role_claim", "role")];
    let service = serve(&env, &file, &settings).await;
    let audit = async |token: &str| {
        let request = with_token(yoink::grpc::pb::AuditRequest::default(), Some(token));
        answer(service.admin().audit(request).await)
    };
    let known = signer.token(&claims(json!({"role": "operator"})));
    assert_eq!(audit(&known).await, "OK");
    let forged = other.token(&claims(json!({"role": "operator"})));
    eventually("a forged token is refused without a verification", async || {
        // Many at once, so that enough of them are in one second.
        let answers = join_all((0..100).map(|_| audit(&forged))).await;
        let expected = ["CREDENTIALS_INVALID", "RATE_LIMITED"];
        assert!(answers.iter().all(|answer| expected.contains(&answer.as_str())), "{answers:?}");
        assert_eq!(audit(&known).await, "OK", "it was verified before");
        assert_eq!(audit(&operator).await, "OK", "its key is in memory");
        answers.iter().any(|answer| answer == "RATE_LIMITED").then_some(())
    })
    .await;
    let fresh = signer.token(&claims(json!({"role": "auditor"})));
    eventually("a new token of this address is accepted later", async || {
        (audit(&fresh).await == "OK").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jwt_of_each_algorithm_is_that_of_a_customer_within_the_clock_skew() {
    let env = TestEnv::new().await;
    let signers = [Signer::ec(), Signer::ed(), Signer::rsa()];
    for signer in &signers {
        let file = key_file(&[signer.jwk("a")]);
        let service = serve(&env, &file, &[("jwt_clock_skew_s", "600")]).await;
        for change in [
            json!({}),
            json!({"aud": "yoink", "nbf": null}),
            json!({"exp": now() - 60}),
            json!({"nbf": now() + 60}),
        ] {
            let token = signer.token(&claims(change.clone()));
            let called = list(service.channel(), Some(&token)).await;
            assert_eq!(answer(called), "OK", "{} {change}", signer.algorithm());
        }
        service.stop().await;
    }
    let file = key_file(&[signers[0].jwk("a")]);
    let service = serve(&env, &file, &[]).await;
    let plain = env.serve(Role::Api, &[]).await;
    plain.create(product("shoe", 10)).await;
    let bobs = plain.buy("shoe", "bob", "r").await.unwrap().reservation_id;
    let token = signers[0].token(&claims(json!({})));
    let request = ReserveUnitRequest { product_id: "shoe".to_owned(), ..Default::default() };
    let reserved = eventually("the product is known", async || {
        service.buyers().reserve_unit(with_token(request.clone(), Some(&token))).await.ok()
    })
    .await;
    let reservation = reserved.into_inner().reservation.unwrap();
    assert_eq!(reservation.user_id, "ann");
    for (reservation_id, expected) in
        [(reservation.reservation_id, "OK"), (bobs, "RESERVATION_NOT_FOUND")]
    {
        let request = with_token(GetReservationRequest { reservation_id }, Some(&token));
        assert_eq!(answer(service.buyers().get_reservation(request).await), expected);
    }
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_of_the_settings_name_user_and_role() {
    let env = TestEnv::new().await;
    let signer = Signer::ed();
    let file = key_file(&[signer.jwk("a")]);
    let settings = [("jwt_user_claim", "email"), ("jwt_role_claim", "roles")];
    let service = serve(&env, &file, &settings).await;
    let audit = async |change: Value| {
        let token = signer.token(&claims(change));
        let request = with_token(yoink::grpc::pb::AuditRequest::default(), Some(&token));
        answer(service.admin().audit(request).await)
    };
    let email = "ann@shop.example";
    assert_eq!(audit(json!({"email": email, "roles": ["uma", "auditor"]})).await, "OK");
    assert_eq!(audit(json!({"email": email, "roles": "operator"})).await, "OK");
    assert_eq!(audit(json!({"email": email, "roles": "customer"})).await, "ROLE_NOT_ALLOWED");
    for wrong in [
        json!({"roles": "operator"}),
        json!({"email": email}),
        json!({"email": email, "roles": "root"}),
        json!({"email": email, "roles": ["operator", "auditor"]}),
    ] {
        assert_eq!(audit(wrong.clone()).await, "CREDENTIALS_INVALID", "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_keys_are_replaced_while_the_service_runs() {
    let env = TestEnv::new().await;
    let (old, new) = (Signer::ec(), Signer::ec());
    let file = key_file(&[old.jwk("a")]);
    let service = serve(&env, &file, &[]).await;
    let old_token = old.token(&claims(json!({})));
    let new_token = new.token_with(&json!({"alg": "ES256", "kid": "b"}), &claims(json!({})));
    list(service.channel(), Some(&old_token)).await.unwrap();
    assert_refused(list(service.channel(), Some(&new_token)).await, "unknown");

    write_keys(&file, &[old.jwk("a"), new.jwk("b")]);
    eventually("the new key is used", async || {
        list(service.channel(), Some(&old_token)).await.unwrap();
        list(service.channel(), Some(&new_token)).await.ok()
    })
    .await;
    // A token that was verified before is verified again.
    write_keys(&file, &[new.jwk("b")]);
    let refused = eventually("the old key is dropped", async || {
        list(service.channel(), Some(&new_token)).await.unwrap();
        list(service.channel(), Some(&old_token)).await.err()
    });
    assert_refused(Err(refused.await), "dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_stay_in_use_while_their_file_cannot_be_used_and_a_start_is_refused() {
    let env = TestEnv::new().await;
    let (signer, next) = (Signer::ec(), Signer::ec());
    let file = key_file(&[signer.jwk("a")]);
    let service = serve(&env, &file, &[]).await;
    let token = signer.token(&claims(json!({})));
    fs::write(&file, "not json").unwrap();
    let path = file.to_str().unwrap().to_owned();
    let settings = [
        REQUIRED,
        ("jwt_jwks_file", path.as_str()),
        ("jwt_issuer", "https://id.example"),
        ("jwt_audience", "yoink"),
    ];
    let start = tokio::task::block_in_place(|| {
        crate::harness::run_yoink_with(&env, &settings, &["serve", "--role", "api"])
    });
    let message = String::from_utf8_lossy(&start.stderr).into_owned();
    assert!(!start.status.success() && message.contains("jwt_jwks_file"), "{message}");
    list(service.channel(), Some(&token)).await.unwrap();
    // The file is read again: the service has tried, and used, what it had before.
    write_keys(&file, &[signer.jwk("a"), next.jwk("b")]);
    let next_token = next.token_with(&json!({"alg": "ES256", "kid": "b"}), &claims(json!({})));
    eventually("the corrected file is used", async || {
        list(service.channel(), Some(&token)).await.unwrap();
        list(service.channel(), Some(&next_token)).await.ok()
    })
    .await;
}
