//! Each user of a store may do what it needs and nothing more: `deploy/redis.acl`, and the roles of
//! `deploy/postgres/roles.sql`. Every other test here runs the service as these users, too.

use redis::{RedisResult, Value};
use tokio::task::block_in_place;
use tokio_postgres::{NoTls, error::SqlState};
use tokio_util::task::TaskTracker;
use yoink::app::Role;

use crate::harness::{Binary, TestEnv, product, run_yoink_with, try_redis_cli};

/// The addresses of both stores for readers.
fn of_readers(env: &TestEnv) -> [(&'static str, String); 2] {
    let redis = env.redis_url().replace("//yoink:", "//yoink_read:");
    [
        ("redis_url", redis),
        ("postgres_url", env.postgres_url().replace("yoink_serve@", "yoink_read@")),
    ]
}

/// Runs a command as the readers of both stores; returns its exit code, and what it printed.
fn run_as_reader(env: &TestEnv, args: &[&str]) -> (Option<i32>, String) {
    let settings = of_readers(env);
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let output = block_in_place(|| run_yoink_with(env, &settings, args));
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_audit_export_and_list_and_change_nothing() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let id = service.buy("shoe", "ann", "r").await.unwrap().reservation_id;
    env.assert_audit_holds().await;
    for (args, shown) in [
        (&["audit"][..], "shoe"),
        (&["export"], id.as_str()),
        (&["dead", "list"], ""),
        (&["rebuild", "--dry-run"], ""),
    ] {
        let (code, printed) = run_as_reader(&env, args);
        assert_eq!(code, Some(0), "{args:?}: {printed}");
        assert!(printed.contains(shown), "{args:?}: {printed}");
    }
    let (code, printed) = run_as_reader(&env, &["restock", "shoe", "5"]);
    assert_eq!(code, Some(2), "{printed}");
    assert!(printed.contains("permission denied for table"), "{printed}");
    let (code, printed) = run_as_reader(&env, &["serve"]);
    assert_eq!(code, Some(2), "{printed}");
    assert!(
        printed.contains("the Postgres role yoink_read has no privilege for INSERT"),
        "{printed}"
    );
    assert!(printed.contains("commands that the scripts of this program use (DEL, "), "{printed}");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
}

/// The SQLSTATE of each statement that fails on a connection to this address.
async fn states(url: &str, statements: &[&str]) -> Vec<Option<SqlState>> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    // It ends with its client.
    TaskTracker::new().spawn(connection);
    let mut states = Vec::new();
    for statement in statements {
        let failed = client.batch_execute(statement).await.err();
        states.push(failed.and_then(|error| error.code().cloned()));
    }
    states
}

#[tokio::test(flavor = "multi_thread")]
async fn role_of_the_service_cannot_change_a_stored_reservation_or_the_schema() {
    let env = TestEnv::new().await;
    let refused = [
        "UPDATE reservations SET user_id = 'bob'",
        "UPDATE reservations SET recorded_at = now()",
        "DELETE FROM reservations",
        "TRUNCATE reservations",
        "UPDATE supply_changes SET units = 7",
        "DELETE FROM supply_changes",
        "UPDATE products SET product_id = 'other'",
        "DELETE FROM products",
        "DELETE FROM partitions",
        "UPDATE deployment SET partitions = 4",
        "DELETE FROM reported_marks",
        "UPDATE dead_actions SET actor = 'other'",
        "UPDATE schema_compatibility SET oldest_program = 0",
        "INSERT INTO _sqlx_migrations SELECT * FROM _sqlx_migrations",
        "CREATE TABLE other ()",
        "CREATE TEMPORARY TABLE other ()",
        "ALTER TABLE products DROP CONSTRAINT products_sold_within_supply",
        "DROP TRIGGER reservations_product_exists ON reservations",
        "CREATE ROLE other",
        "SELECT setval('catalogue_version', 1)",
    ];
    let states_of_service = states(&env.postgres_url(), &refused).await;
    for (statement, state) in refused.iter().zip(states_of_service) {
        assert_eq!(state, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
    }
    let [_, (_, reader)] = of_readers(&env);
    let writes = [
        "INSERT INTO reservations DEFAULT VALUES",
        "UPDATE products SET sold = 0",
        "SELECT nextval('catalogue_version')",
        "SELECT FROM partitions FOR KEY SHARE",
    ];
    let states_of_reader = states(&reader, &writes).await;
    for (statement, state) in writes.iter().zip(states_of_reader) {
        assert_eq!(state, Some(SqlState::INSUFFICIENT_PRIVILEGE), "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn start_without_a_privilege_names_the_role_and_the_table() {
    let env = TestEnv::new().await;
    let revoke = "REVOKE INSERT (seq) ON reported_marks FROM yoink_serve;
                  REVOKE DELETE ON dead_actions FROM yoink_serve;
                  REVOKE USAGE ON SEQUENCE catalogue_version FROM yoink_serve";
    env.sql().await.batch_execute(revoke).await.unwrap();
    let mut refused = Binary::serve(&env, &[], None);
    assert_eq!(refused.ended().await.code(), Some(2), "{}", refused.log());
    let missing = "the Postgres role yoink_serve has no privilege for INSERT (seq) on reported_marks; \
                   DELETE on dead_actions; USAGE on catalogue_version: ";
    assert!(refused.log().contains(missing), "{}", refused.log());
    let args = ["config", "check", "--connect"];
    let checked = block_in_place(|| run_yoink_with(&env, &[], &args));
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&checked.stdout).contains(missing));

    let owner = env.owner_url();
    let settings = [("postgres_url", owner.as_str())];
    let migrated = block_in_place(|| run_yoink_with(&env, &settings, &["migrate"]));
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 1)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn start_names_the_commands_that_redis_does_not_permit() {
    let env = TestEnv::with_own_redis().await;
    let permit = async |rules: &[&str]| {
        let mut set = redis::cmd("ACL");
        set.arg("SETUSER").arg("yoink").arg(rules);
        let () = set.query_async(&mut env.cli().await).await.unwrap();
    };
    permit(&["-hincrby", "-xgroup|delconsumer", "-xadd"]).await;
    let mut refused = Binary::serve(&env, &[], None);
    assert_eq!(refused.ended().await.code(), Some(2), "{}", refused.log());
    let commands = "(HINCRBY, XADD, XGROUP DELCONSUMER): give the user of redis_url";
    assert!(refused.log().contains(commands), "{}", refused.log());

    permit(&["+hincrby", "+xgroup|delconsumer", "+xadd"]).await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 1)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_ack_is_refused_if_redis_reads_its_file_as_a_user_without_permissions() {
    let env = TestEnv::with_own_redis().await;
    let set = async |rule: &str| {
        let mut set = redis::cmd("ACL");
        let set = set.arg("SETUSER").arg("default").arg(rule);
        let () = set.query_async(&mut env.cli().await).await.unwrap();
    };
    let disk = [("ack", "disk")];
    env.serve(Role::All, &disk).await.stop().await;
    set("-@all").await;
    let mut refused = Binary::serve(&env, &disk, None);
    assert_eq!(refused.ended().await.code(), Some(2), "{}", refused.log());
    assert!(refused.log().contains("ack = disk needs"), "{}", refused.log());
    set("+@all").await;
    env.serve(Role::All, &disk).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_refuses_other_users_keys_channels_and_commands() {
    let env = TestEnv::with_own_redis().await;
    let without_user = format!("redis://127.0.0.1:{}", env.redis().port());
    for url in [without_user.as_str(), &env.redis_url().replace(":private@", ":wrong@")] {
        let ping: RedisResult<String> = match try_redis_cli(url).await {
            Ok(mut connection) => redis::cmd("PING").query_async(&mut connection).await,
            Err(error) => Err(error),
        };
        assert!(ping.is_err(), "{url}");
    }
    let [(_, reader), _] = of_readers(&env);
    for (url, words) in [
        (&env.redis_url(), &["GET", "other"][..]),
        (&env.redis_url(), &["HGET", "other:{0}:meta", "status"]),
        (&env.redis_url(), &["PUBLISH", "other", ""]),
        (&env.redis_url(), &["FLUSHALL"]),
        (&env.redis_url(), &["KEYS", "*"]),
        (&env.redis_url(), &["CONFIG", "SET", "appendonly", "no"]),
        (&env.redis_url(), &["ACL", "LIST"]),
        (&env.redis_url(), &["REPLICAOF", "NO", "ONE"]),
        (&env.redis_url(), &["SCRIPT", "FLUSH"]),
        (&env.redis_url(), &["MONITOR"]),
        (&reader, &["HSET", "yoink:{0}:meta", "status", "open"]),
        (&reader, &["EVAL", "return redis.call('DEL', KEYS[1])", "1", "yoink:{0}:meta"]),
    ] {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let mut connection = try_redis_cli(url).await.unwrap();
        let answer: RedisResult<Value> = command.query_async(&mut connection).await;
        let refused = answer.unwrap_err().to_string();
        let permissions = ["permission", "The user executing the script", "ACL failure"];
        assert!(permissions.iter().any(|word| refused.contains(word)), "{words:?}: {refused}");
    }
}
