//! Passwords and private keys: no log and no message contains them.

use std::{collections::HashSet, fs};

use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use tokio::task::block_in_place;
use yoink::grpc::pb::inventory_service_client::InventoryServiceClient;

use super::{
    listeners::request,
    postgres::{migrate, secure_postgres},
    redis::speak_tls,
};
use crate::harness::{
    Authority, Binary, Issued, TestEnv, Validity, eventually, product, run_yoink_with,
};

const POSTGRES_PASSWORD: &str = "hunter2";
const REDIS_PASSWORD: &str = "swordfish";

/// How a private key could be written: the lines of its file without head and end, and 16 bytes in its middle as hexadecimal
/// digits, as `Debug` prints them, and as it prints a text of bytes.
fn forms(issued: &Issued) -> HashSet<String> {
    let text = fs::read_to_string(&issued.key).unwrap();
    let mut forms: HashSet<String> =
        text.lines().filter(|line| !line.starts_with("--")).map(str::to_owned).collect();
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap();
    // In PKCS #8, the number that is the key begins at byte 36.
    let secret = &key.secret_der()[36..52];
    let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    forms.extend([digits.to_uppercase(), digits]);
    let list = |shown: String| shown.trim_matches(['[', ']']).to_owned();
    forms.extend(
        [format!("{secret:?}"), format!("{secret:02x?}"), format!("{secret:x?}")].map(list),
    );
    forms.insert(secret.escape_ascii().to_string());
    forms
}

#[tokio::test(flavor = "multi_thread")]
async fn log_at_level_trace_has_no_password_and_no_part_of_a_key() {
    let authority = Authority::new();
    let mut env = secure_postgres(&authority).await;
    env.redis = TestEnv::with_own_redis().await.redis.take();
    let server = authority.issue("server", &["127.0.0.1"], Validity::Now);
    let client = authority.issue("client", &[], Validity::Now);
    let (migrated, printed) = migrate(&env, "sealed", "sslmode=require");
    assert!(migrated, "{printed}");
    let port = speak_tls(&env, authority.dir(), "yes").await;
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg("app").arg("on").arg(format!(">{REDIS_PASSWORD}"));
    user.arg("~*").arg("&*").arg("+@all");
    let () = user.query_async(&mut env.cli().await).await.unwrap();

    let ca = authority.file();
    let ((cert, key), (client_cert, client_key)) = (server.texts(), client.texts());
    let redis_url = |password: &str| format!("rediss://app:{password}@127.0.0.1:{port}");
    let postgres_url = |password: &str| {
        let url = env.postgres_url().replace("yoink_serve@", &format!("bound:{password}@"));
        format!(
            "{url}?sslmode=verify-full&sslrootcert={ca}&sslcert={client_cert}&sslkey={client_key}&channel_binding=require"
        )
    };
    let (redis, postgres) = (redis_url(REDIS_PASSWORD), postgres_url(POSTGRES_PASSWORD));
    let settings = [
        ("log_filter", "trace"),
        ("redis_url", redis.as_str()),
        ("redis_ca_file", ca.as_str()),
        ("redis_cert_file", client_cert),
        ("redis_key_file", client_key),
        ("postgres_url", postgres.as_str()),
        ("tls_cert_file", cert),
        ("tls_key_file", key),
        ("tls_client_ca_file", ca.as_str()),
        ("grpc_client_auth", "required"),
    ];
    let mut service = Binary::serve(&env, &settings, None);
    let tls = authority.trusted_by_client("127.0.0.1").identity(client.identity());
    let mut buyer = InventoryServiceClient::new(service.channel_with(tls).await);
    let stores = env.stores().await;
    let partitions = stores.deployment.partitions;
    stores.ledger.create_products(&[product("shoe", 10)], partitions, "test").await.unwrap();
    eventually("the product is known, and sold", async || {
        buyer.reserve_unit(request("ann")).await.ok()
    })
    .await;
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 1);

    let mut messages = vec![service.log()];
    assert!(messages[0].contains("TRACE"), "{}", messages[0]);
    for (name, url) in [
        ("redis_url", redis_url(&format!("wrong-{REDIS_PASSWORD}"))),
        ("postgres_url", postgres_url(&format!("wrong-{POSTGRES_PASSWORD}"))),
    ] {
        let wrong = [&settings, &[(name, url.as_str())][..]].concat();
        let args = ["config", "check", "--connect"];
        let done = block_in_place(|| run_yoink_with(&env, &wrong, &args));
        let printed = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        assert_eq!(done.status.code(), Some(2), "{name}: {printed}");
        messages.push(printed);
    }
    let mut secrets: HashSet<String> = forms(&server).union(&forms(&client)).cloned().collect();
    secrets.extend([POSTGRES_PASSWORD, REDIS_PASSWORD].map(str::to_owned));
    for (secret, message) in secrets.iter().flat_map(|it| messages.iter().map(move |m| (it, m))) {
        let found = message.lines().find(|line| line.contains(secret.as_str()));
        assert_eq!(found, None, "contains {secret}");
    }
}
