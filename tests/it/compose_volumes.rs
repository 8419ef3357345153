//! The volumes of the compose file: those of an earlier version, what a run that was killed leaves, and volumes that do not
//! belong together.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use yoink::servers::PostgresServer;

use crate::harness::{Binary, Deployment, eventually, make_passwords, scratch_dir};

fn users() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis.acl")
}

/// The files of a volume, each with its content.
fn content(dir: &Path) -> Vec<(String, String)> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files
        .map(|file| {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(file).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn value(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

/// The volume `passwords` of the version that had one role of Postgres and one password of Redis.
fn write_earlier_passwords(dir: &Path) {
    let settings = "redis_url = \"redis://:redis-then@redis:6379\"\n\
                    postgres_url = \"postgres://yoink:yoink-then@postgres:5432/yoink\"\n";
    for (name, owner, text) in [
        ("postgres-superuser", 999, "superuser-then"),
        ("postgres-yoink", 999, "yoink-then"),
        ("redis.conf", 999, "requirepass redis-then\n"),
        ("grafana-admin", 472, "grafana-then"),
        ("yoink.toml", 10001, settings),
    ] {
        let file = dir.join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(&file, Some(owner), None).unwrap();
        }
    }
}

/// The volume of Postgres of that version: the database belongs to the role `yoink`, and the tables to `owner`.
async fn earlier_postgres(dir: &Path, owner: &str, password: &str) -> PostgresServer {
    let postgres = Deployment::start_postgres(dir);
    let superuser = postgres.superuser_url("yoink").replace('@', ":superuser-then@");
    let (client, connection) =
        tokio_postgres::connect(&superuser, tokio_postgres::NoTls).await.unwrap();
    let roles = "CREATE ROLE yoink LOGIN NOSUPERUSER PASSWORD 'yoink-then';
                 ALTER DATABASE yoink OWNER TO yoink";
    let made = async move { client.batch_execute(roles).await };
    let (made, _ended) = tokio::join!(made, connection);
    made.unwrap();
    let url = superuser.replace("postgres:superuser-then@", &format!("{owner}:{password}@"));
    yoink::ledger::migrate(&url.parse().unwrap()).await.unwrap();
    postgres
}

/// Whether the service sells, at its listener without TLS.
async fn sells(yoink: &mut Binary) {
    use yoink::grpc::pb::{ReserveUnitRequest, inventory_service_client::InventoryServiceClient};
    let mut buyer = InventoryServiceClient::new(yoink.channel().await);
    let request = ReserveUnitRequest {
        product_id: "sneaker-42".to_owned(),
        user_id: "ann".to_owned(),
        request_id: "order-1".to_owned(),
        ..Default::default()
    };
    // First the partitions are opened and the catalogue is read.
    eventually("it sells", async || buyer.reserve_unit(request.clone()).await.ok()).await;
}

/// Starts this version on the volumes of the earlier one.
async fn assert_started_on_earlier_volumes(owner: &str, password: &str) {
    let dir = scratch_dir("earlier");
    let passwords = dir.join("passwords");
    fs::create_dir(&passwords).unwrap();
    write_earlier_passwords(&passwords);
    let postgres = earlier_postgres(&dir, owner, password).await;
    let deployment = Deployment::start_on(&dir, postgres).await;
    assert_eq!(value(&passwords, "postgres-superuser"), "superuser-then");
    assert_eq!(value(&passwords, "grafana-admin"), "grafana-then");
    assert!(!passwords.join("redis.conf").exists() && !passwords.join("postgres-yoink").exists());
    let owners = "SELECT DISTINCT pg_get_userbyid(owner) FROM (
        SELECT relowner FROM pg_class WHERE relnamespace = 'public'::regnamespace
        UNION SELECT proowner FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION SELECT datdba FROM pg_database WHERE datname = 'yoink') AS object (owner)";
    assert_eq!(deployment.ask(owners), "yoink_owner");
    let before = "SELECT rolcanlogin OR pg_has_role(oid, 'yoink_owner', 'MEMBER')
        FROM pg_roles WHERE rolname = 'yoink'";
    assert_eq!(deployment.ask(before), "f", "nothing uses this role any more");
    for service in ["migrate", "import", "migrate"] {
        let output = deployment.run(service);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut admin = deployment.serve("admin");
    sells(&mut admin).await;
    let _worker = deployment.serve("yoink");
    eventually("the audit holds", async || deployment.audit().status.success().then_some(())).await;
    let repeated = deployment.make_roles();
    let printed = [repeated.stdout, repeated.stderr].concat();
    assert!(repeated.status.success() && printed.is_empty(), "{}", printed.escape_ascii());
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_with_one_role_get_the_passwords_and_roles_of_this_version() {
    assert_started_on_earlier_volumes("yoink", "yoink-then").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_whose_tables_belong_to_the_superuser_get_their_new_owner() {
    assert_started_on_earlier_volumes("postgres", "superuser-then").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_that_do_not_belong_together_are_refused_with_the_reason() {
    let deployment = Deployment::start().await;
    fs::write(deployment.passwords.join("postgres-superuser"), "of another volume").unwrap();
    let refused = deployment.make_roles();
    let printed = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{printed}");
    assert!(printed.contains("the volumes `passwords` and `postgres-data` do not"), "{printed}");
    assert_eq!(printed.lines().count(), 1, "{printed}");
}

#[test]
fn files_that_are_missing_are_made_from_the_passwords_that_exist() {
    let dir = scratch_dir("passwords");
    make_passwords(&dir, &users());
    let whole = content(&dir);
    let derived = ["owner.toml", "redis.acl"];
    for name in derived {
        fs::remove_file(dir.join(name)).unwrap();
    }
    make_passwords(&dir, &users());
    assert_eq!(content(&dir), whole);

    // A run that was killed before it moved its file, which its reader owns already.
    fs::remove_file(dir.join("redis.acl")).unwrap();
    let left = dir.join("redis.acl.new");
    fs::write(&left, "user ").unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o400)).unwrap();
    make_passwords(&dir, &users());
    assert_eq!(content(&dir), whole);

    // A password that is lost is replaced, and what is made from it follows.
    let lost = value(&dir, "yoink.toml");
    fs::remove_file(dir.join("yoink.toml")).unwrap();
    make_passwords(&dir, &users());
    let new = value(&dir, "yoink.toml");
    let password = new.split("redis://yoink:").nth(1).unwrap().split('@').next().unwrap();
    assert!(!lost.contains(password));
    assert!(value(&dir, "owner.toml").contains(password));
    let hash: String = Sha256::digest(password).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(value(&dir, "redis.acl").contains(&format!("user yoink on #{hash} ")));
}

#[test]
fn users_of_redis_follow_the_file_of_a_new_version_and_keep_their_passwords() {
    let dir = scratch_dir("passwords");
    make_passwords(&dir, &users());
    let newer = scratch_dir("users").join("redis.acl");
    let text = fs::read_to_string(users()).unwrap();
    fs::write(&newer, text.replace(" +wait ", " +wait +touch ")).unwrap();
    let before = value(&dir, "redis.acl");
    make_passwords(&dir, &newer);
    let after = value(&dir, "redis.acl");
    assert_ne!(after, before);
    assert_eq!(after.replace(" +wait +touch ", " +wait "), before);
}
