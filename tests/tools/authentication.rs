//! Authentication through the real Envoy: the table of roles over REST, and what a client gets for wrong credentials.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path, time::SystemTime};

use prost::Message as _;
use serde_json::{Value as Json, json};
use tonic::{Code, Request, transport::Channel};
use yoink::{
    app::Role,
    domain::CallerRole,
    grpc::pb::{AuditRequest, admin_service_client::AdminServiceClient},
};

use crate::{
    envoy::{Answer, Envoy},
    harness::{Service, TestEnv, product, reason, run_yoink, scratch_dir},
    signer::{ALGORITHMS, Signer, claims, wrong_tokens},
};

const NONE: (u16, &str) = (401, "CREDENTIALS_MISSING");
const NO: (u16, &str) = (403, "ROLE_NOT_ALLOWED");
const HIDDEN: (u16, &str) = (404, "RESERVATION_NOT_FOUND");
const OK: (u16, &str) = (200, "no reason");
const TAKEN: (u16, &str) = (202, "no reason");

/// No one, the customer of the data, another customer, a service, an operator and an auditor.
const CALLERS: [&str; 6] = ["no one", "ann", "bob", "backend", "carol", "dave"];

/// Whether a path is that of buyers or of operators, which have listeners of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Buyers,
    Operators,
}

use Side::{Buyers, Operators};

const ORDER: &str = r#"{"productId": "shoe", "userId": "ann"}"#;
const HAT: &str = r#"{"products": [{"productId": "hat", "name": "Hat", "units": "5",
    "price": {"currencyCode": "EUR", "units": "5"}}]}"#;
const NAME: &str = r#"{"name": "Shoe"}"#;
const DELIVERY: &str = r#"{"units": "1", "requestId": "delivery-1"}"#;
const ALL_DEAD: &str = r#"{"selector": {"all": true}, "dryRun": true}"#;

/// A call over REST, and its answer for each caller. `{id}` is a reservation of ann.
type Row = (Side, &'static str, &'static str, &'static str, [(u16, &'static str); 6]);

#[rustfmt::skip]
const ANSWERS: [Row; 14] = [
    (Buyers, "POST", "/v1/reservations", ORDER,            [NONE, TAKEN, NO, TAKEN, NO, NO]),
    (Buyers, "GET", "/v1/products", "",                    [NONE, OK, OK, OK, OK, OK]),
    (Buyers, "GET", "/v1/products/shoe", "",               [NONE, OK, OK, OK, OK, OK]),
    (Buyers, "GET", "/v1/reservations/{id}", "",           [NONE, OK, HIDDEN, OK, OK, OK]),
    (Buyers, "POST", "/orders", ORDER,                     [NONE, TAKEN, NO, TAKEN, NO, NO]),
    (Buyers, "GET", "/products", "",                       [NONE, OK, OK, OK, OK, OK]),
    (Operators, "POST", "/v1/admin/products", HAT,         [NONE, NO, NO, NO, OK, NO]),
    (Operators, "PATCH", "/v1/admin/products/shoe", NAME,  [NONE, NO, NO, NO, OK, NO]),
    (Operators, "POST", "/v1/admin/products/shoe/restock", DELIVERY,
                                                           [NONE, NO, NO, NO, OK, NO]),
    (Operators, "GET", "/v1/admin/reservations?productId=shoe", "",
                                                           [NONE, NO, NO, NO, OK, OK]),
    (Operators, "GET", "/v1/admin/dead-entries", "",       [NONE, NO, NO, NO, OK, OK]),
    (Operators, "POST", "/v1/admin/dead-entries/release", ALL_DEAD,
                                                           [NONE, NO, NO, NO, OK, NO]),
    (Operators, "POST", "/v1/admin/dead-entries/retry", ALL_DEAD,
                                                           [NONE, NO, NO, NO, OK, NO]),
    (Operators, "GET", "/v1/admin/audit", "",              [NONE, NO, NO, NO, OK, OK]),
];

/// Creates an API key by the command.
pub fn create_key(env: &TestEnv, principal: &str, role: CallerRole) -> String {
    let args = ["keys", "create", principal, "--role", role.as_str()];
    let output = tokio::task::block_in_place(|| run_yoink(env, &args));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// The keys of the callers, in the order of [`CALLERS`].
fn create_keys(env: &TestEnv) -> Vec<Option<String>> {
    let roles = [
        CallerRole::Customer,
        CallerRole::Customer,
        CallerRole::Service,
        CallerRole::Operator,
        CallerRole::Auditor,
    ];
    let keys = CALLERS[1..].iter().zip(roles).map(|(name, role)| Some(create_key(env, name, role)));
    [None].into_iter().chain(keys).collect()
}

async fn start(env: &TestEnv) -> (String, Service, Envoy) {
    let plain = env.serve(Role::All, &[]).await;
    plain.create(product("shoe", 100)).await;
    let reservation_id = plain.buy("shoe", "ann", "r").await.unwrap().reservation_id;
    plain.stop().await;
    let service = env.serve(Role::All, &[("authentication", "required")]).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    (reservation_id, service, envoy)
}

async fn call(
    address: SocketAddr,
    envoy: &Envoy,
    (method, path, body): (&str, &str, &str),
    headers: &[(&str, &str)],
) -> Answer {
    let body: Option<Json> = (!body.is_empty()).then(|| serde_json::from_str(body).unwrap());
    envoy.json(address, (method.parse().unwrap(), path), headers, body.as_ref()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_is_answered_by_the_role_of_its_caller_on_its_own_listener() {
    let env = TestEnv::new().await;
    let keys = create_keys(&env);
    let (reservation_id, _service, envoy) = start(&env).await;
    for (side, method, path, body, expected) in ANSWERS {
        let path = path.replace("{id}", &reservation_id);
        let (address, other) = match side {
            Buyers => (envoy.address, envoy.operators),
            Operators => (envoy.operators, envoy.address),
        };
        for ((caller, key), expected) in CALLERS.iter().zip(&keys).zip(expected) {
            let what = format!("{method} {path} by {caller}");
            let bearer = key.as_ref().map(|key| format!("Bearer {key}"));
            let headers: Vec<_> =
                bearer.iter().map(|value| ("authorization", value.as_str())).collect();
            let answer = call(address, &envoy, (method, &path, body), &headers).await;
            assert_eq!((answer.status.as_u16(), answer.reason()), expected, "{what}");
            let challenge = answer.headers.get("www-authenticate");
            let challenge = challenge.map(|value| value.to_str().unwrap());
            let expected = key.is_none().then_some(r#"Bearer realm="yoink""#);
            assert_eq!(challenge, expected, "{what}");
            let answer = call(other, &envoy, (method, &path, body), &headers).await;
            assert_eq!(answer.status.as_u16(), 404, "{what}, at the other listener");
        }
    }
    env.assert_audit_holds().await;
}

/// The methods and paths of each call, as the proto files have them.
fn rules() -> Vec<BTreeSet<(String, String)>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/yoink/v1");
    let rules = |call: &str| {
        let methods = ["get", "put", "post", "delete", "patch"].into_iter();
        let rules = methods.flat_map(|method| {
            let before = format!("{method}: \"");
            let paths = call.split(before.as_str()).skip(1);
            let paths = paths.map(|rest| rest.split('"').next().unwrap().to_owned());
            paths.map(move |path| (method.to_uppercase(), path)).collect::<Vec<_>>()
        });
        rules.collect()
    };
    let mut found = Vec::new();
    for file in fs::read_dir(dir).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        found.extend(text.split("\n  rpc ").skip(1).map(rules));
    }
    found
}

fn is_of(path: &str, template: &str) -> bool {
    let path = path.split('?').next().unwrap();
    let (path, template) = (path.split('/'), template.split('/'));
    path.clone().count() == template.clone().count()
        && path.zip(template).all(|(part, of)| part == of || of.starts_with('{'))
}

#[test]
fn answers_are_expected_for_every_call_of_the_api() {
    let set = prost_types::FileDescriptorSet::decode(yoink::grpc::DESCRIPTOR_SET).unwrap();
    let services = set.file.iter().flat_map(|file| &file.service);
    let calls = rules();
    assert_eq!(services.map(|service| service.method.len()).sum::<usize>(), calls.len());
    assert!(calls.iter().all(|rules| !rules.is_empty()), "a call has no path: {calls:?}");
    let rules: BTreeSet<_> = calls.into_iter().flatten().collect();
    let expected = ANSWERS.map(|(_, method, path, ..)| {
        let mut of = rules.iter().filter(|(verb, rule)| verb == method && is_of(path, rule));
        let found = of.next().unwrap_or_else(|| panic!("{method} {path} is not a path of the API"));
        assert!(of.next().is_none(), "{method} {path} is a path of two calls");
        found.clone()
    });
    assert_eq!(expected.into_iter().collect::<BTreeSet<_>>(), rules);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_call_grpc_at_their_listener() {
    let env = TestEnv::new().await;
    let keys = [CallerRole::Service, CallerRole::Auditor];
    let keys = keys.map(|role| create_key(&env, "carol", role));
    let (_, _service, envoy) = start(&env).await;
    let channel = Channel::from_shared(format!("http://{}", envoy.operators)).unwrap();
    let mut admin = AdminServiceClient::new(channel.connect().await.unwrap());
    let mut audit = async |key: &str| {
        let mut request = Request::new(AuditRequest::default());
        request.metadata_mut().insert("x-api-key", key.parse().unwrap());
        admin.audit(request).await
    };
    let refused = audit(&keys[0]).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::PermissionDenied, "ROLE_NOT_ALLOWED")
    );
    audit(&keys[1]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credential_is_401_with_one_body_for_every_cause() {
    let env = TestEnv::new().await;
    let [key, revoked, expired] =
        [(); 3].map(|()| create_key(&env, "backend", CallerRole::Service));
    let revoke = ["keys", "revoke", revoked.split('_').nth(1).unwrap()];
    assert!(tokio::task::block_in_place(|| run_yoink(&env, &revoke)).status.success());
    env.expire_key(&expired, SystemTime::now()).await;
    let (ec, rsa) = (Signer::ec(), Signer::rsa());
    let key_set = scratch_dir("jwks").join("jwks.json");
    fs::write(&key_set, json!({"keys": [ec.jwk("a"), rsa.jwk("r")]}).to_string()).unwrap();
    let settings = [
        ("authentication", "required"),
        ("jwt_jwks_file", key_set.to_str().unwrap()),
        ("jwt_issuer", "https://id.example"),
        ("jwt_audience", "yoink"),
        ("jwt_algorithms", ALGORITHMS),
    ];
    let service = env.serve(Role::All, &settings).await;
    let envoy = Envoy::in_front_of(service.grpc).await;
    let list = async |headers: &[(&str, &str)]| {
        call(envoy.address, &envoy, ("GET", "/v1/products", ""), headers).await
    };
    let bearer = |token: &str| format!("Bearer {token}");
    let token = bearer(&ec.token(&claims(json!({}))));
    for header in [("x-api-key", key.as_str()), ("authorization", &token)] {
        let listed = list(&[header]).await;
        assert_eq!((listed.status.as_u16(), listed.reason()), OK);
    }
    let other = if key.ends_with('0') { "1" } else { "0" };
    let wrong_secret = format!("{}{other}", &key[..key.len() - 1]);
    let unknown = format!("yk_{}_{}", "0".repeat(12), "0".repeat(64));
    let wrong = [wrong_secret, unknown, revoked, expired, "é".to_owned()];
    let wrong = wrong.into_iter().chain(wrong_tokens(&ec, &rsa).into_iter().map(|(_, jwt)| jwt));
    let mut refused: Vec<_> = wrong.map(|it| vec![("authorization", bearer(&it))]).collect();
    refused.extend([
        vec![("authorization", "Basic YTpi".to_owned())],
        vec![("x-api-key", "garbage".to_owned())],
        vec![("x-api-key", "é".to_owned())],
        vec![("authorization", token.clone()), ("x-api-key", key.clone())],
    ]);
    let mut bodies = BTreeSet::new();
    for headers in &refused {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = list(&headers).await;
        let found = (answer.status.as_u16(), answer.reason());
        assert_eq!(found, (401, "CREDENTIALS_INVALID"), "{headers:?}");
        let challenge = &answer.headers["www-authenticate"];
        assert_eq!(challenge, r#"Bearer realm="yoink", error="invalid_token""#);
        bodies.insert(answer.body.to_string());
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
}
