//! A schema that a newer program has migrated: older programs continue as long as the schema allows it.

use tokio::task::block_in_place;
use yoink::app::Role;

use crate::harness::{TestEnv, product, run_yoink_with};

/// The output of a command of the owner of the database, and whether it succeeds.
fn run(env: &TestEnv, command: &str) -> (bool, String) {
    let owner = env.owner_url();
    let settings = [("postgres_url", owner.as_str())];
    let output = block_in_place(|| run_yoink_with(env, &settings, &[command]));
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn program_starts_on_a_newer_additive_schema_and_refuses_any_other() {
    let env = TestEnv::new().await;
    let running = env.serve(Role::All, &[]).await;
    running.create(product("shoe", 10)).await;
    running.buy("shoe", "ann", "r").await.unwrap();
    let sql = env.sql().await;
    let newer = "ALTER TABLE reservations ADD COLUMN note text;
                 INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9001, 'a later release', true, '\\x00', 0)";
    sql.batch_execute(newer).await.unwrap();

    running.buy("shoe", "bob", "r").await.unwrap();
    env.assert_audit_holds().await;
    running.stop().await;
    let restarted = env.serve(Role::All, &[]).await;
    restarted.buy("shoe", "cid", "r").await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!(report.products[0].confirmed, 3);
    let (done, printed) = run(&env, "migrate");
    assert!(done, "{printed}");
    assert!(printed.contains("9001, newer than this program's"), "{printed}");
    assert!(printed.contains("nothing was changed"), "{printed}");

    sql.batch_execute("UPDATE schema_compatibility SET oldest_program = 9000").await.unwrap();
    for command in ["serve", "audit"] {
        let (done, printed) = run(&env, command);
        assert!(!done, "{command}: {printed}");
        assert!(printed.contains("install a newer yoink"), "{command}: {printed}");
        assert!(printed.contains("9001") && printed.contains("9000"), "{command}: {printed}");
    }
    // An older schema is refused.
    sql.batch_execute("DELETE FROM _sqlx_migrations WHERE version >= 5").await.unwrap();
    let (done, printed) = run(&env, "audit");
    assert!(!done && printed.contains("run `yoink migrate`"), "{printed}");
    restarted.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_fails_with_the_reason_if_another_session_holds_its_lock() {
    let env = TestEnv::new().await;
    let sql = env.sql().await;
    sql.batch_execute("BEGIN; LOCK TABLE _sqlx_migrations").await.unwrap();
    let (done, printed) = run(&env, "migrate");
    assert!(!done, "{printed}");
    assert!(printed.contains("holds a lock that the migration needs"), "{printed}");
    sql.batch_execute("ROLLBACK").await.unwrap();
    // The lock that a migration holds from its start to its end.
    let lock = 0x3d32_ad9e_i64 * i64::from(crc32fast::hash(env.database.as_bytes()));
    sql.execute("SELECT pg_advisory_lock($1)", &[&lock]).await.unwrap();
    let (done, printed) = run(&env, "migrate");
    assert!(!done && printed.contains("another `yoink migrate` is running"), "{printed}");
    sql.execute("SELECT pg_advisory_unlock($1)", &[&lock]).await.unwrap();
    let (done, printed) = run(&env, "migrate");
    assert!(done, "{printed}");
}
