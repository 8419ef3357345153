//! Each user of a store may do what it needs and nothing more: `deploy/redis.acl`, and the roles of
//! `deploy/postgres/roles.sql`. Every other test here runs the service as these users, too.

use redis::{AsyncCommands as _, RedisResult, Value};
use tokio::task::block_in_place;
use tokio_postgres::{NoTls, error::SqlState};
use tokio_util::task::TaskTracker;
use yoink::{
    app::Role,
    domain::{Epoch, PartitionEpoch, ReservationId},
};

use crate::harness::{
    Binary, TestEnv, eventually, get, move_to_dead, product, run_yoink_with, try_redis_cli,
};

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
    assert!(printed.contains("commands that this program uses (DEL, "), "{printed}");
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
async fn start_without_any_privilege_names_the_role_and_what_grants_them() {
    let env = TestEnv::new().await;
    let sql = env.sql().await;
    let database = &env.database;
    let refused = async |revoke: &str, named: &[&str]| {
        sql.batch_execute(revoke).await.unwrap();
        let mut refused = Binary::serve(&env, &[], None);
        assert_eq!(refused.ended().await.code(), Some(2), "{}", refused.log());
        let args = ["config", "check", "--connect"];
        let checked = block_in_place(|| run_yoink_with(&env, &[], &args));
        assert_eq!(checked.status.code(), Some(2));
        let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
        for name in named {
            assert!(refused.log().contains(name), "{name}: {}", refused.log());
            assert!(checked.contains(name), "{name}: {checked}");
        }
    };
    let revoke = "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM yoink_serve;
                  REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM yoink_serve";
    let missing = "the Postgres role yoink_serve has no privilege for SELECT on deployment; SELECT on partitions; ";
    refused(revoke, &[missing, "then `yoink migrate` as its owner"]).await;
    let revoke = "REVOKE ALL ON SCHEMA public FROM yoink_serve, PUBLIC";
    let missing = "the Postgres role yoink_serve has no privilege for USAGE on the schema public: run deploy/postgres/roles.sql";
    refused(revoke, &[missing]).await;
    let revoke = format!("REVOKE ALL ON DATABASE {database} FROM yoink_serve");
    let advice = "give the role of postgres_url its privileges with deploy/postgres/roles.sql";
    refused(&revoke, &["permission denied for database", advice]).await;

    let grant = format!(
        "GRANT CONNECT ON DATABASE {database} TO yoink_serve;
         GRANT USAGE ON SCHEMA public TO yoink_owner, yoink_serve"
    );
    sql.batch_execute(&grant).await.unwrap();
    let owner = env.owner_url();
    let settings = [("postgres_url", owner.as_str())];
    let migrated = block_in_place(|| run_yoink_with(&env, &settings, &["migrate"]));
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    env.serve(Role::All, &[]).await.stop().await;
}

/// Changes what the user of the service may do in Redis.
async fn permit(env: &TestEnv, rules: &[&str]) {
    let mut set = redis::cmd("ACL");
    set.arg("SETUSER").arg("yoink").arg(rules);
    let () = set.query_async(&mut env.cli().await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn start_names_the_commands_that_redis_does_not_permit() {
    let env = TestEnv::with_own_redis().await;
    permit(&env, &["-hincrby", "-xgroup|delconsumer", "-xadd", "-xreadgroup"]).await;
    let mut refused = Binary::serve(&env, &[], None);
    assert_eq!(refused.ended().await.code(), Some(2), "{}", refused.log());
    let commands = "(HINCRBY, XADD, XGROUP DELCONSUMER, XREADGROUP): give the user of redis_url";
    assert!(refused.log().contains(commands), "{}", refused.log());

    permit(&env, &["+hincrby", "+xgroup|delconsumer", "+xadd", "+xreadgroup"]).await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 1)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_that_redis_does_not_permit_is_named() {
    let env = TestEnv::with_own_redis().await;
    let stores = env.stores().await;
    // The first is called only for a database other than 0, and the next three only in a cluster. The last two may be refused.
    let not_needed =
        ["select", "cluster|info", "cluster|nodes", "cluster|slots", "config|get", "acl|dryrun"];
    let users = include_str!("../../deploy/redis.acl");
    let user = users.lines().find(|line| line.starts_with("user yoink on ")).unwrap();
    let commands = user.split(' ').filter_map(|rule| rule.strip_prefix('+'));
    let mut checked = 0;
    for command in commands.filter(|command| !not_needed.contains(command)) {
        permit(&env, &[&format!("-{command}")]).await;
        let named =
            stores.lifecycle.not_permitted().await.unwrap().map(|refused| refused.to_string());
        let name = format!("({})", command.to_uppercase().replace('|', " "));
        assert!(named.as_ref().is_some_and(|named| named.contains(&name)), "{name}: {named:?}");
        permit(&env, &[&format!("+{command}")]).await;
        assert_eq!(stores.lifecycle.not_permitted().await.unwrap(), None, "{command}");
        checked += 1;
    }
    assert!(checked > 30, "{checked} commands");
    permit(&env, &["resetchannels"]).await;
    let named = stores.lifecycle.not_permitted().await.unwrap().unwrap().to_string();
    assert!(named.contains("(PUBLISH on its channels)"), "{named}");
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_would_be_refused_midway_does_not_begin() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let id = move_to_dead(&env, &service, ("shoe", None), ["ann".to_owned()]).await[0];
    permit(&env, &["-hincrby", "-hscan"]).await;
    for args in
        [&["rebuild", "--all"][..], &["dead", "release", "--all"], &["dead", "retry", "--all"]]
    {
        let output = block_in_place(|| run_yoink_with(&env, &[], args));
        let printed = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {printed}");
        assert!(printed.contains("commands that this program uses (HINCRBY, HSCAN)"), "{printed}");
    }
    let rows = "SELECT count(*) FROM reservations";
    let closed = "SELECT count(*) FROM partitions WHERE status <> 'open' OR epoch <> 1";
    assert_eq!((env.count(rows).await, env.count(closed).await), (0, 0), "nothing has begun");
    permit(&env, &["+hincrby", "+hscan"]).await;
    let released = ["dead", "release", &id.to_string()];
    let output = block_in_place(|| run_yoink_with(&env, &[], &released));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (0, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn service_sells_and_rebuilds_nothing_while_redis_does_not_permit_a_command() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let id = service.buy("shoe", "ann", "r").await.unwrap().reservation_id;
    let id: ReservationId = id.parse().unwrap();
    env.assert_audit_holds().await;
    permit(&env, &["-rename"]).await;
    eventually("readiness names it", async || {
        let ready = get(service.http, "/readyz").await;
        (ready.starts_with("HTTP/1.1 503") && ready.contains("(RENAME)")).then_some(())
    })
    .await;
    assert_eq!(service.refusal("shoe", "bob", "r").await, "RECOVERING");
    let meta = format!("{}:{{{}}}:meta", env.prefix, id.partition());
    let () = env.cli().await.hset(&meta, "status", "closed").await.unwrap();
    eventually("a rebuild cannot begin", async || {
        let ready = get(service.http, "/readyz").await;
        ready.contains("the user of Redis cannot be used: Redis does not permit").then_some(())
    })
    .await;
    assert_eq!(env.count("SELECT max(epoch) FROM partitions").await, 1);
    permit(&env, &["+rename"]).await;
    eventually("it sells again", async || service.buy("shoe", "bob", "r").await.ok()).await;
    let again = service.buy("shoe", "ann", "r").await.unwrap();
    assert_eq!((again.duplicate, again.reservation_id), (true, id.to_string()));
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_that_redis_refuses_midway_leaves_the_partition_closed() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[("recovery", "manual")]).await;
    service.create(product("shoe", 10)).await;
    let bought = service.buy("shoe", "ann", "r").await.unwrap();
    let id: ReservationId = bought.reservation_id.parse().unwrap();
    env.assert_audit_holds().await;
    let stores = env.stores().await;
    let partition = stores.deployment.partitions.get_partition(id.partition()).unwrap();
    permit(&env, &["-rename"]).await;
    // The script alone: a rebuild would find the missing permission before.
    let at = PartitionEpoch { partition, epoch: Epoch(2) };
    stores.lifecycle.begin_rebuild(at).await.unwrap_err();
    let meta = format!("{}:{{{partition}}}:meta", env.prefix);
    let left: (String, String) = env.cli().await.hmget(&meta, &["status", "epoch"]).await.unwrap();
    assert_eq!(left, ("closed".to_owned(), "2".to_owned()));
    permit(&env, &["+rename"]).await;
    let rebuilt = block_in_place(|| run_yoink_with(&env, &[], &["rebuild"]));
    assert!(rebuilt.status.success(), "{}", String::from_utf8_lossy(&rebuilt.stdout));
    eventually("it sells again", async || service.buy("shoe", "bob", "r").await.ok()).await;
    let again = service.buy("shoe", "ann", "r").await.unwrap();
    assert_eq!((again.duplicate, again.reservation_id), (true, bought.reservation_id));
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
