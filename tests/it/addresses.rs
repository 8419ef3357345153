//! How the stores are reached: Unix sockets, key=value pairs, several hosts, and nothing but `postgres_url`.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
};

use tokio::task::{block_in_place, spawn_blocking};
use yoink::{
    app::Role,
    servers::{AppendFsync, PostgresServer, RedisServer},
};

use crate::harness::{
    Binary, BuyerLoad, TestEnv, eventually, product, promote, run_yoink_in, run_yoink_with,
    scratch_dir, shared, standby,
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn service_on_unix_sockets_sells_across_a_redis_kill_and_restart() {
    // The path of a socket has at most 107 bytes, and a checkout may be anywhere. Postgres may run as another user.
    let sockets_dir = tempfile::Builder::new().prefix("yoink-").tempdir().unwrap();
    fs::set_permissions(sockets_dir.path(), Permissions::from_mode(0o777)).unwrap();
    let sockets = sockets_dir.path().display();
    let socket = format!("{sockets}/redis.sock");
    let listens = format!("exec \"$@\" --unixsocket {socket}");
    let directories = format!("unix_socket_directories={sockets}");
    let (redis_dir, postgres_dir) = (scratch_dir("redis"), scratch_dir("postgres"));
    let mut env = TestEnv::new().await;
    let (redis, postgres) = spawn_blocking(move || {
        let wrapper = ["sh", "-c", &listens, "sh"];
        let settings = ["fsync=off", "max_connections=500", &directories];
        let redis = RedisServer::start_under(&redis_dir, AppendFsync::Always, &wrapper).unwrap();
        (redis, PostgresServer::start(&postgres_dir, &settings).unwrap())
    })
    .await
    .unwrap();
    block_in_place(|| postgres.create_database(&env.database)).unwrap();
    let (port, database) = (postgres.port(), env.database.clone());
    (env.redis, env.postgres) = (Some(redis), Some(postgres));

    let redis_url = format!("unix://{socket}?user=admin&pass=private");
    let dsn = format!("host={sockets} port={port} user=postgres dbname={database}");
    let settings = [("redis_url", redis_url.as_str()), ("postgres_url", dsn.as_str())];
    for command in [&["migrate"][..], &["config", "check", "--connect"]] {
        let done = block_in_place(|| run_yoink_with(&env, &settings, command));
        assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
    }
    let service = env.serve(Role::All, &settings).await;
    service.create(product("shoe", 100_000)).await;
    let load = BuyerLoad::new("buyer", 8, &["shoe"]).start(vec![service.channel()]);
    load.sells(150).await;
    // Every connection of the service is one of the sockets'.
    let over_tcp = "SELECT count(*) FROM pg_stat_activity
                     WHERE application_name = 'yoink' AND client_addr IS NOT NULL";
    let over_socket = over_tcp.replace("IS NOT NULL", "IS NULL");
    assert_eq!(env.count(over_tcp).await, 0);
    assert!(env.count(&over_socket).await > 0);
    let readers = eventually("a worker waits for orders", async || {
        let mut list = redis::cmd("CLIENT");
        let clients: String = list.arg("LIST").query_async(&mut env.cli().await).await.unwrap();
        let readers = clients.lines().filter(|line| line.contains("cmd=xreadgroup"));
        let readers: Vec<String> = readers.map(str::to_owned).collect();
        (!readers.is_empty()).then_some(readers)
    });
    let readers = readers.await;
    assert!(readers.iter().all(|line| line.contains(&format!("addr={socket}:0"))), "{readers:?}");

    let mut redis = env.redis.take().unwrap();
    let redis = spawn_blocking(move || {
        redis.kill();
        redis.restart().unwrap();
        redis
    });
    env.redis = Some(redis.await.unwrap());
    load.sells(150).await;
    let account = load.end().await.assert_all_answers_kept(&env, &service).await;
    assert!(account.confirmed >= 300);
    env.assert_audit_holds().await;
}

/// What libpq and sqlx would take from the environment, all of it wrong.
const OF_LIBPQ: [(&str, &str); 9] = [
    ("PGHOST", "127.0.0.1"),
    ("PGPORT", "1"),
    ("PGUSER", "nobody"),
    ("PGPASSWORD", "wrong"),
    ("PGDATABASE", "nowhere"),
    ("PGSSLMODE", "verify-full"),
    ("PGSSLROOTCERT", "/no/such/file"),
    ("PGOPTIONS", "-c default_transaction_read_only=on -c search_path=nowhere"),
    ("PGAPPNAME", "other"),
];

#[tokio::test(flavor = "multi_thread")]
async fn migrate_and_serve_use_the_dsn_and_ignore_pg_variables() {
    let env = TestEnv::new().await;
    let fresh = format!("{}_fresh", env.database);
    env.sql().await.batch_execute(&format!("CREATE DATABASE {fresh}")).await.unwrap();
    let port = shared().postgres.port();
    let dsn = format!("host=127.0.0.1 port={port} user=postgres dbname={fresh} sslmode=disable");
    let settings = [("postgres_url", dsn.as_str())];
    for command in ["migrate", "migrate", "export"] {
        let done = block_in_place(|| run_yoink_in(&env, &settings, &OF_LIBPQ, &[command]));
        assert!(done.status.success(), "{command}: {}", text(&done.stderr));
    }
    let mut service = Binary::serve_with("all", &env, &settings, &OF_LIBPQ);
    service.channel().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_and_serve_refuse_the_same_addresses_with_the_same_message() {
    let env = TestEnv::new().await;
    let url = env.postgres_url();
    for (postgres_url, why) in [
        (format!("{url}?sslmode=allow"), "a wrong sslmode"),
        (format!("{url}?sslmode=require"), "server does not support TLS"),
        (format!("{url}?sslrootcert=/ca.pem"), "an sslmode that verifies nothing"),
        (format!("{url}?sslmode=verify-ca&sslrootcert=/no/ca.pem"), "/no/ca.pem cannot be read"),
        (url.replace("yoink_serve@", "yoink_serve:hunt#er2@"), "write %23"),
        (url.replace("yoink_serve@", "yoink_serve:hunt%er2@"), "write %25"),
        ("host=127.0.0.1 user=postgres target_session_attrs=read-only".to_owned(), "read-write"),
    ] {
        let settings = [("postgres_url", postgres_url.as_str())];
        let message = ["migrate", "serve", "audit"].map(|command| {
            let refused = block_in_place(|| run_yoink_with(&env, &settings, &[command]));
            assert_eq!(refused.status.code(), Some(2), "{command}: {}", text(&refused.stderr));
            text(&refused.stderr).replace("yoink: cannot start: ", "yoink: ")
        });
        assert!(message[0].contains(why) && !message[0].contains("hunt"), "{}", message[0]);
        assert!(message.iter().all(|words| *words == message[0]), "{message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_migrations_are_applied_once() {
    let env = TestEnv::new().await;
    let fresh = format!("{}_fresh", env.database);
    env.sql().await.batch_execute(&format!("CREATE DATABASE {fresh}")).await.unwrap();
    let address: yoink::ledger::Address = shared().postgres.superuser_url(&fresh).parse().unwrap();
    let migrate = || yoink::ledger::migrate(&address);
    let all = tokio::join!(migrate(), migrate(), migrate());
    for migrated in [all.0, all.1, all.2] {
        assert!(matches!(migrated, Ok(yoink::ledger::Migrated::UpToDate(_))), "{migrated:?}");
    }
    // And a database that was migrated from other files is left alone.
    let url = shared().postgres.superuser_url(&fresh);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    let other = "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1";
    let changed = async move { client.batch_execute(other).await };
    let (changed, _ended) = tokio::join!(changed, connection);
    changed.unwrap();
    let error = migrate().await.unwrap_err().to_string();
    assert!(error.contains("migration 1 was applied from another file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writable_host_of_several_is_used_before_and_after_a_failover() {
    let dir = scratch_dir("primary");
    let mut env = TestEnv::with_own_redis().await;
    let (primary, second) = spawn_blocking(move || {
        let settings = ["fsync=off", "max_connections=500"];
        let primary = PostgresServer::start(&dir, &settings).unwrap();
        let second = standby(&dir, primary.port());
        (primary, second)
    })
    .await
    .unwrap();
    block_in_place(|| primary.create_database(&env.database)).unwrap();
    // No server listens on the first, the second is a standby.
    let url = format!(
        "postgres://postgres@127.0.0.1:1,127.0.0.1:{},127.0.0.1:{}/{}",
        second.port(),
        primary.port(),
        env.database
    );
    let migrated = block_in_place(|| run_yoink_with(&env, &[("postgres_url", &url)], &["migrate"]));
    assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    env.postgres = Some(primary);
    let service = env.serve(Role::All, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 100)).await;
    for n in 0..5 {
        service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
    }
    env.assert_audit_holds().await;

    let position = env.sql().await.query_one("SELECT pg_current_wal_lsn()::text", &[]).await;
    let sent: String = position.unwrap().get(0);
    let mut primary = env.postgres.take().unwrap();
    env.postgres = Some(second);
    eventually("the standby has everything", async || {
        let sql = format!("SELECT (pg_last_wal_replay_lsn() >= '{sent}')::int::bigint");
        (env.count(&sql).await == 1).then_some(())
    })
    .await;
    block_in_place(|| primary.kill());
    promote(env.postgres.as_ref().unwrap()).await;
    // Another timeline: every partition is rebuilt, and then sells from the new primary.
    eventually("it sells again", async || service.buy("shoe", "late", "r").await.ok()).await;
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (6, 94));
}
