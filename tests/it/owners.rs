//! A database whose tables belong to another role than `yoink_owner`, and several databases on one server.

use std::{
    path::Path,
    process::{Command, Output},
};

use tokio::task::{block_in_place, spawn_blocking};
use tokio_postgres::{Client, NoTls, error::SqlState};
use tokio_util::task::TaskTracker;
use yoink::{app::Role, servers::PostgresServer};

use crate::harness::{Service, TestEnv, product, scratch_dir};

async fn try_connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    // It ends with its client.
    TaskTracker::new().spawn(connection);
    Ok(client)
}

/// The SQLSTATE of a statement that fails, also if the connection fails.
async fn state(url: &str, statement: &str) -> Option<SqlState> {
    let done = match try_connect(url).await {
        Ok(client) => client.batch_execute(statement).await,
        Err(error) => Err(error),
    };
    done.err().map(|error| error.code().unwrap().clone())
}

/// A database `yoink` on a Postgres of its own, which has no role of `deploy/postgres/roles.sql`. It belongs to a role,
/// which has migrated it.
async fn owned_by(role: &str) -> TestEnv {
    let dir = scratch_dir("postgres");
    let start = move || PostgresServer::start(&dir, &["fsync=off", "max_connections=500"]).unwrap();
    let postgres = spawn_blocking(start).await.unwrap();
    let mut env = TestEnv::new().await;
    env.database = "yoink".to_owned();
    let superuser = try_connect(&postgres.superuser_url("postgres")).await.unwrap();
    if role != "postgres" {
        superuser.batch_execute(&format!("CREATE ROLE {role} LOGIN")).await.unwrap();
    }
    let create = format!("CREATE DATABASE yoink OWNER {role}");
    superuser.batch_execute(&create).await.unwrap();
    env.postgres = Some(postgres);
    yoink::ledger::migrate(&url_of(&env, role).parse().unwrap()).await.unwrap();
    // A sequence of a column cannot change its owner by itself.
    let more =
        "CREATE TABLE report (id serial PRIMARY KEY); CREATE VIEW ids AS SELECT id FROM report";
    try_connect(&url_of(&env, role)).await.unwrap().batch_execute(more).await.unwrap();
    env
}

fn url_of(env: &TestEnv, role: &str) -> String {
    env.superuser_url().replace("postgres@", &format!("{role}@"))
}

/// Runs a line of the documents in the directory of the sources, with PGHOST, PGPORT and PGUSER.
fn run(env: &TestEnv, line: &str) -> Output {
    let yoink = Path::new(env!("CARGO_BIN_EXE_yoink")).parent().unwrap();
    let psql = PostgresServer::program("psql").unwrap();
    let psql = psql.parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-euc", line]).current_dir(env!("CARGO_MANIFEST_DIR"));
    shell.env("PATH", format!("{}:{}:{path}", yoink.display(), psql.display()));
    shell.env("PGHOST", "127.0.0.1").env("PGPORT", env.postgres().port().to_string());
    shell.env("PGUSER", "postgres").env("PSQLRC", "/dev/null");
    block_in_place(|| shell.output().unwrap())
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The lines of the commands in a section of docs/operations.md.
fn documented(heading: &str) -> Vec<&'static str> {
    let section = include_str!("../../docs/operations.md").split(heading).nth(1).unwrap();
    let section = section.split("\n#").next().unwrap();
    section.lines().filter_map(|line| line.strip_prefix("    ")).collect()
}

async fn buy(service: &Service, bought: &mut i64) {
    *bought += 1;
    service.buy("shoe", &format!("user-{bought}"), "r").await.unwrap();
}

/// Follows the documented steps for a database that this role owns, with a service that sells before and after each of them.
async fn assert_steps_change_the_owner(old: &str) {
    let env = owned_by(old).await;
    let old_url = url_of(&env, old);
    let as_old = [("postgres_url", old_url.as_str())];
    let mut service = env.serve(Role::All, &as_old).await;
    service.create(product("shoe", 100)).await;
    let mut bought = 0;
    let (mut commands, mut switched) = (0, false);
    for line in documented("\n### A database that another role owns\n") {
        buy(&service, &mut bought).await;
        if line.starts_with("# Restart each process") {
            let restarted = env.serve(Role::All, &[]).await;
            buy(&restarted, &mut bought).await;
            service.stop().await;
            (service, switched) = (restarted, true);
        } else {
            let port = env.postgres().port();
            let line = line.replace("@db/", &format!("@127.0.0.1:{port}/")).replace("ann", old);
            let done = run(&env, &line);
            assert!(done.status.success(), "{line}: {}", printed(&done));
            commands += 1;
        }
        buy(&service, &mut bought).await;
        if !switched {
            // The old role may still do everything, also from a new connection and in a process that starts now.
            let change = "UPDATE products SET name = name; DELETE FROM api_keys";
            assert_eq!(state(&old_url, change).await, None, "after {line}");
            service.stop().await;
            service = env.serve(Role::All, &as_old).await;
        }
    }
    assert_eq!((commands, switched), (3, true), "the steps of docs/operations.md");
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, bought);
    if old != "postgres" {
        let refused = state(&old_url, "SELECT FROM reservations").await;
        assert_eq!(refused, Some(SqlState::INSUFFICIENT_PRIVILEGE));
    }
    let others = "SELECT count(*) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND pg_get_userbyid(relowner) <> 'yoink_owner'";
    assert_eq!(env.count(others).await, 0);
    let done = run(&env, "psql --dbname yoink --file deploy/postgres/roles.sql");
    assert!(done.status.success(), "a repetition: {}", printed(&done));
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_steps_change_the_owner_while_processes_of_the_old_role_sell() {
    assert_steps_change_the_owner("ann").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_steps_change_the_owner_of_tables_of_the_superuser() {
    assert_steps_change_the_owner("postgres").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_not_made_if_running_processes_could_not_connect_again() {
    let env = owned_by("ann").await;
    let superuser = env.sql().await;
    let grant = "CREATE ROLE bob LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO bob";
    superuser.batch_execute(grant).await.unwrap();
    let bob = try_connect(&url_of(&env, "bob")).await.unwrap();
    let roles = |options: &str| {
        run(&env, &format!("psql --dbname yoink {options} --file deploy/postgres/roles.sql"))
    };
    for (options, why) in [
        ("", "belong to the role ann: run this again with --set old=ann"),
        ("--set old=carl", "the role carl (--set old=carl) does not exist"),
        ("--set old=bob", "belong to the role ann: run this again with --set old=ann"),
        (
            "--set old=ann",
            "processes are connected to this database as bob, and could not connect again",
        ),
    ] {
        let refused = roles(options);
        assert!(!refused.status.success(), "{options}");
        assert!(printed(&refused).contains(why), "{options}: {}", printed(&refused));
        let nothing = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'yoink%'";
        assert_eq!(env.count(nothing).await, 0, "{options}: nothing was changed");
        assert_eq!(state(&url_of(&env, "ann"), "DELETE FROM api_keys").await, None);
    }
    superuser.batch_execute("ALTER ROLE ann NOINHERIT").await.unwrap();
    let refused = roles("--set old=ann");
    assert!(
        printed(&refused).contains("run ALTER ROLE ann INHERIT first"),
        "{}",
        printed(&refused)
    );
    let permit = "ALTER ROLE ann INHERIT; GRANT CONNECT ON DATABASE yoink TO bob";
    superuser.batch_execute(permit).await.unwrap();
    let done = roles("--set old=ann");
    assert!(done.status.success(), "{}", printed(&done));
    bob.batch_execute("SELECT FROM reservations").await.unwrap();
    assert_eq!(state(&url_of(&env, "bob"), "SELECT FROM reservations").await, None);
    assert_eq!(state(&url_of(&env, "ann"), "DELETE FROM api_keys").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_grants_nothing_in_databases_to_which_the_roles_were_not_permitted_to_connect() {
    let env = TestEnv::new().await;
    let superuser = env.sql().await;
    let (other, owner) = (format!("{}_other", env.database), format!("owner_{}", env.database));
    for sql in [
        format!("CREATE ROLE {owner} LOGIN"),
        // As every new database, all roles may connect to it.
        format!("CREATE DATABASE {other} OWNER {owner}"),
    ] {
        superuser.batch_execute(&sql).await.unwrap();
    }
    let in_other = |role: &str| {
        url_of(&env, role).replace(&format!("/{}", env.database), &format!("/{other}"))
    };
    yoink::ledger::migrate(&in_other(&owner).parse().unwrap()).await.unwrap();
    yoink::ledger::migrate(&env.owner_url().parse().unwrap()).await.unwrap();
    for role in ["yoink_serve", "yoink_read"] {
        let refused = state(&in_other(role), "SELECT FROM reservations").await;
        assert_eq!(refused, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{role}");
        assert_eq!(state(&url_of(&env, role), "SELECT FROM reservations").await, None, "{role}");
    }
    assert_eq!(state(&in_other(&owner), "DELETE FROM reservations").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_takes_nothing_from_a_role_that_owns_the_tables() {
    let env = TestEnv::new().await;
    let own = format!("{}_own", env.database);
    for sql in [
        format!("CREATE DATABASE {own} OWNER yoink_serve"),
        format!("GRANT CONNECT ON DATABASE {own} TO yoink_serve, yoink_read"),
    ] {
        env.sql().await.batch_execute(&sql).await.unwrap();
    }
    let in_own =
        |role: &str| url_of(&env, role).replace(&format!("/{}", env.database), &format!("/{own}"));
    for _ in 0..2 {
        yoink::ledger::migrate(&in_own("yoink_serve").parse().unwrap()).await.unwrap();
        let change = "UPDATE reservations SET user_id = 'bob'; DELETE FROM products";
        assert_eq!(state(&in_own("yoink_serve"), change).await, None);
        assert_eq!(state(&in_own("yoink_read"), "SELECT FROM reservations").await, None);
    }
}
