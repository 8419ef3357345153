//! TLS to Postgres: each `sslmode`, certificates of clients, channel binding.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
};

use tokio::task::{block_in_place, spawn_blocking};
use yoink::{app::Role, servers::PostgresServer};

use crate::harness::{
    Authority, Binary, Issued, TestEnv, Validity, eventually, product, replace, run_yoink_with,
    scratch_dir, shared,
};

/// Who may connect how: `sealed` and `bound` only with TLS, `known` only with a certificate.
const HBA: &str = "\
hostssl all sealed 127.0.0.1/32 trust
hostssl all known 127.0.0.1/32 trust clientcert=verify-ca
hostssl all bound 127.0.0.1/32 scram-sha-256
host all postgres,yoink_owner,yoink_serve 127.0.0.1/32 trust
";

/// A copy that the server may read, whatever user runs it.
fn give(file: &Path, dir: &Path, name: &str) -> String {
    let (copy, owner) = (dir.join(name), fs::metadata(dir.join("data")).unwrap());
    fs::copy(file, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&copy, Some(owner.uid()), Some(owner.gid())).unwrap();
    copy.to_str().unwrap().to_owned()
}

/// An environment whose Postgres offers TLS, with a certificate of this authority for 127.0.0.1 and db.example.
pub(super) async fn secure_postgres(authority: &Authority) -> TestEnv {
    let server = authority.issue("postgres", &["127.0.0.1", "db.example"], Validity::Now);
    secure_postgres_with(authority, server, "TLSv1.3").await
}

/// The same with another certificate, and this version of TLS at most.
async fn secure_postgres_with(authority: &Authority, server: Issued, version: &str) -> TestEnv {
    let (ca, dir) = (authority.file(), scratch_dir("postgres"));
    let version = format!("ssl_max_protocol_version={version}");
    let start = move || {
        // The first start makes the data directory, which shows whose files the server reads.
        drop(PostgresServer::start(&dir, &["fsync=off"]).unwrap());
        let cert = format!("ssl_cert_file={}", give(&server.certificate, &dir, "server.pem"));
        let key = format!("ssl_key_file={}", give(&server.key, &dir, "server.key"));
        let ca = format!("ssl_ca_file={}", give(ca.as_ref(), &dir, "ca.pem"));
        let settings = ["fsync=off", "ssl=on", &cert, &key, &ca, &version];
        let postgres = PostgresServer::start(&dir, &settings).unwrap();
        fs::write(dir.join("data/pg_hba.conf"), HBA).unwrap();
        postgres
    };
    let postgres = spawn_blocking(start).await.unwrap();
    let mut env = TestEnv::new().await;
    postgres.create_database(&env.database).unwrap();
    env.postgres = Some(postgres);
    let sql = format!(
        "CREATE ROLE sealed LOGIN SUPERUSER; CREATE ROLE known LOGIN SUPERUSER;
         SET password_encryption = 'scram-sha-256'; CREATE ROLE bound LOGIN SUPERUSER PASSWORD 'hunter2';
         SELECT pg_reload_conf(); CREATE TABLE probe_{} ()",
        env.database
    );
    env.sql().await.batch_execute(&sql).await.unwrap();
    eventually("the rules of access apply", async || {
        // Without TLS, which `sealed` may not.
        let url = env.postgres_url().replace("yoink_serve@", "sealed@");
        tokio_postgres::connect(&url, tokio_postgres::NoTls).await.err()
    })
    .await;
    env
}

/// Runs `migrate` with these pairs in `postgres_url`; returns whether it succeeded and what it printed.
pub(super) fn migrate(env: &TestEnv, user: &str, pairs: &str) -> (bool, String) {
    let port =
        env.postgres_url().rsplit_once('/').unwrap().0.rsplit_once(':').unwrap().1.to_owned();
    let database = &env.database;
    let host = if pairs.contains("host=") { "" } else { "host=127.0.0.1" };
    let url = format!("{host} port={port} user={user} dbname={database} {pairs}");
    let done = block_in_place(|| run_yoink_with(env, &[("postgres_url", &url)], &["migrate"]));
    let printed = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8(printed).unwrap())
}

/// Runs `migrate` as `sealed` with each of these pairs: it succeeds, or prints the problem.
fn assert_migrates(env: &TestEnv, cases: &[(String, &str)]) {
    for (pairs, problem) in cases {
        let (migrated, printed) = migrate(env, "sealed", pairs);
        assert_eq!(migrated, problem.is_empty(), "{pairs}: {printed}");
        assert!(printed.contains(*problem), "{pairs}: {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sslmode_verifies_what_it_promises() {
    let (authority, other) = (Authority::new(), Authority::new());
    let env = secure_postgres(&authority).await;
    let (ca, other_ca) = (authority.file(), other.file());
    let by_name = |name: &str| format!("host={name} hostaddr=127.0.0.1");
    let (right, wrong) = (by_name("db.example"), by_name("bank.example"));
    let cases = [
        ("sslmode=disable".to_owned(), "no pg_hba.conf entry"),
        (String::new(), ""),
        ("sslmode=prefer".to_owned(), ""),
        ("sslmode=require".to_owned(), ""),
        (format!("sslmode=require sslrootcert={ca}"), ""),
        (format!("sslmode=require sslrootcert={other_ca}"), "UnknownIssuer"),
        (format!("sslmode=verify-ca sslrootcert={ca}"), ""),
        (format!("sslmode=verify-ca sslrootcert={ca} {wrong}"), ""),
        (format!("sslmode=verify-ca sslrootcert={other_ca}"), "UnknownIssuer"),
        (format!("sslmode=verify-full sslrootcert={ca}"), ""),
        (format!("sslmode=verify-full sslrootcert={ca} {right}"), ""),
        (format!("sslmode=verify-full sslrootcert={ca} {wrong}"), "not valid for name"),
        (format!("sslmode=verify-full sslrootcert={other_ca}"), "UnknownIssuer"),
        ("sslmode=verify-full".to_owned(), "UnknownIssuer"),
        (
            "sslmode=verify-ca sslrootcert=/no/ca.pem".to_owned(),
            "postgres_url cannot be used: /no/ca.pem",
        ),
    ];
    assert_migrates(&env, &cases);
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_certificate_is_refused_where_the_authority_is_verified() {
    let authority = Authority::new();
    let server = authority.issue("postgres", &["127.0.0.1", "db.example"], Validity::Expired);
    let env = secure_postgres_with(&authority, server, "TLSv1.3").await;
    let ca = authority.file();
    let wrong = "host=bank.example hostaddr=127.0.0.1";
    let cases = [
        ("sslmode=prefer".to_owned(), ""),
        ("sslmode=require".to_owned(), ""),
        (format!("sslmode=require sslrootcert={ca}"), "expired"),
        (format!("sslmode=verify-ca sslrootcert={ca}"), "expired"),
        // verify-ca accepts a wrong name, which must not hide that the certificate has expired.
        (format!("sslmode=verify-ca sslrootcert={ca} {wrong}"), "expired"),
        (format!("sslmode=verify-full sslrootcert={ca}"), "expired"),
        (format!("sslmode=verify-full sslrootcert={ca} {wrong}"), "expired"),
    ];
    assert_migrates(&env, &cases);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_of_version_1_is_accepted_where_nothing_is_verified() {
    for version in ["TLSv1.2", "TLSv1.3"] {
        let authority = Authority::new();
        let server = authority.version_1("postgres");
        let (own, _) = server.texts();
        let (own, ca) = (own.to_owned(), authority.file());
        let env = secure_postgres_with(&authority, server, version).await;
        let refused = "error performing TLS handshake";
        let cases = [
            ("sslmode=disable".to_owned(), "no pg_hba.conf entry"),
            ("sslmode=prefer".to_owned(), ""),
            ("sslmode=require".to_owned(), ""),
            (format!("sslmode=require sslrootcert={ca}"), refused),
            (format!("sslmode=verify-ca sslrootcert={ca}"), refused),
            (format!("sslmode=verify-ca sslrootcert={own}"), refused),
            (format!("sslmode=verify-full sslrootcert={ca}"), refused),
        ];
        assert_migrates(&env, &cases);
        let pairs = "sslmode=require channel_binding=require password=hunter2";
        let (migrated, printed) = migrate(&env, "bound", pairs);
        assert!(migrated, "{version}: {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_of_the_client_and_channel_binding_are_used() {
    let (authority, other) = (Authority::new(), Authority::new());
    let env = secure_postgres(&authority).await;
    let ca = authority.file();
    let client = authority.issue("client", &[], Validity::Now);
    let foreign = other.issue("client", &[], Validity::Now);
    let full = format!("sslmode=verify-full sslrootcert={ca}");
    let with = |(cert, key): (&str, &str)| format!("{full} sslcert={cert} sslkey={key}");
    // Without its alert, if the connection was reset before the client could read it.
    let foreign_refused = &["UnknownCA", "reset", "closed", "pipe"][..];
    for (user, pairs, problems) in [
        ("known", with(client.texts()), &[][..]),
        ("known", full.clone(), &["requires a valid client certificate"]),
        ("known", with(foreign.texts()), foreign_refused),
        ("bound", format!("{full} channel_binding=require password=hunter2"), &[]),
        ("bound", format!("{full} channel_binding=disable password=hunter2"), &[]),
        ("bound", format!("{full} password=hunter3"), &["password authentication failed"]),
        // `sealed` needs no password, so nothing can be bound.
        ("sealed", format!("{full} channel_binding=require"), &["channel binding"]),
    ] {
        let (migrated, printed) = migrate(&env, user, &pairs);
        assert_eq!(migrated, problems.is_empty(), "{user}: {printed}");
        let named = problems.iter().any(|problem| printed.contains(problem));
        assert!(migrated || named, "{user}: {printed}");
        assert!(!printed.contains("hunter"), "{printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_of_a_service_uses_tls() {
    let authority = Authority::new();
    let env = secure_postgres(&authority).await;
    let ca = authority.file();
    let (migrated, printed) = migrate(&env, "sealed", "sslmode=require");
    assert!(migrated, "{printed}");
    let query = format!("?sslmode=verify-full&sslrootcert={ca}");
    let url = env.postgres_url().replace("yoink_serve@", "sealed@") + &query;
    let service = env.serve(Role::All, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 100)).await;
    for user in ["ann", "bob"] {
        service.buy("shoe", user, "r").await.unwrap();
    }
    eventually("the orders are stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == 2).then_some(())
    })
    .await;
    let plain = "SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl)
                   FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'sealed'";
    let row = env.sql().await.query_one(plain, &[]).await.unwrap();
    let (encrypted, plain): (i64, i64) = (row.get(0), row.get(1));
    assert!(encrypted >= 1 && plain == 0, "{encrypted} with TLS, {plain} without");
    env.assert_audit_holds().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_authority_of_postgres_is_used_when_the_service_connects_again() {
    let (authority, later) = (Authority::new(), Authority::new());
    let env = secure_postgres(&authority).await;
    let ca = authority.file();
    let (migrated, printed) = migrate(&env, "sealed", "sslmode=require");
    assert!(migrated, "{printed}");
    let query = format!("?sslmode=verify-full&sslrootcert={ca}");
    let url = env.postgres_url().replace("yoink_serve@", "sealed@") + &query;
    let service = env.serve(Role::All, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 100)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
    let sql = env.sql().await;
    let data: String = sql.query_one("SHOW data_directory", &[]).await.unwrap().get(0);
    let (dir, issued) = (Path::new(&data).parent().unwrap(), ["127.0.0.1", "db.example"]);
    let renewed = later.issue("postgres", &issued, Validity::Now);
    give(&renewed.certificate, dir, "server.pem");
    give(&renewed.key, dir, "server.key");
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let verified = format!("sslmode=verify-full sslrootcert={}", later.file());
    eventually("Postgres presents the new certificate", async || {
        migrate(&env, "sealed", &verified).0.then_some(())
    })
    .await;
    replace(later.file().as_ref(), ca.as_ref());
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sealed'";
    sql.batch_execute(end).await.unwrap();
    eventually("it stores over a connection that the new authority has signed", async || {
        service.buy("shoe", "bob", "r").await.ok()
    })
    .await;
    assert_eq!(env.assert_audit_holds().await.products[0].confirmed, 2);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefer_without_tls_beyond_loopback_is_a_warning_and_require_fails() {
    spawn_blocking(shared).await.unwrap();
    let env = TestEnv::new().await;
    let (migrated, printed) = migrate(&env, "postgres", "sslmode=require");
    assert!(
        !migrated && printed.contains("now: error performing TLS handshake: server does not"),
        "{printed}"
    );
    let (port, database) = (shared().postgres.port(), &env.database);
    let at = |address: &str| {
        format!("host=db.example hostaddr={address} port={port} user=postgres dbname={database}")
    };
    // This address leads to this machine, but is not a loopback address.
    let (url, loopback) = (at("0.0.0.0"), at("127.0.0.1"));
    let mut service = Binary::serve(&env, &[("postgres_url", &url)], None);
    service.channel().await;
    let warning = "connections to Postgres at db.example are not encrypted";
    assert_eq!(service.log().matches(warning).count(), 1, "{}", service.log());
    // The login fails, and a password would have been sent.
    let unknown = url.replace("user=postgres", "user=unknown");
    for (url, warned) in
        [(&url, true), (&unknown, true), (&loopback, false), (&env.postgres_url(), false)]
    {
        let args = ["config", "check", "--connect"];
        let done = block_in_place(|| run_yoink_with(&env, &[("postgres_url", url)], &args));
        let printed = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
        assert_eq!(printed.contains(warning), warned, "{printed}");
    }
}
