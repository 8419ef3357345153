//! The auditor finds data that was changed, and names it.

use yoink::{app::Role, audit::Verdict};

use crate::harness::{Binary, TestEnv, eventually, get, product};

/// A sale that a worker audits by itself; two orders are stored, two wait. The worker's watch knows the last one that
/// is stored, and closes the partition where the ledger no longer has it: what tests remove is the first one.
async fn sale(env: &TestEnv, role: &str) -> Binary {
    let api = env.serve(Role::All, &[]).await;
    api.create(product("shoe", 10)).await;
    api.create(product("hat", 10)).await;
    api.buy("shoe", "ann", "r").await.unwrap();
    api.buy("shoe", "eve", "").await.unwrap();
    env.assert_audit_holds().await;
    api.stop().await;
    let waiting = env.serve(Role::Api, &[]).await;
    waiting.buy("shoe", "bob", "r").await.unwrap();
    waiting.buy("shoe", "cid", "r").await.unwrap();
    waiting.stop().await;
    let settings = [("audit_interval_ms", "100"), ("recovery", "manual")];
    let mut binary = Binary::serve_as(role, env, &settings, None);
    binary.channel().await;
    binary
}

async fn key(env: &TestEnv, name: &str) -> String {
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    format!("{}:{{{partition}}}:{name}", env.prefix)
}

/// Waits until the audit of the running worker, and one made now, name what is wrong.
async fn named(env: &TestEnv, worker: &Binary, what: &[&str]) {
    eventually("the worker logs it", async || {
        let message = worker.log();
        what.iter().all(|what| message.contains(what)).then_some(())
    })
    .await;
    let report = env.audit().await;
    assert_eq!(report.verdict(), Verdict::Violated);
    let reported = report.violations.join("\n");
    assert!(what.iter().all(|what| reported.contains(what)), "{reported}");
    assert!(report.differences > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_names_a_lost_unit_and_a_doubled_unit() {
    for (units, off) in [(-1, "(difference 1)"), (1, "(difference -1)")] {
        let env = TestEnv::new().await;
        let worker = sale(&env, "worker").await;
        env.assert_audit_holds().await;
        let mut command = redis::cmd("HINCRBY");
        command.arg(key(&env, "stock").await).arg("shoe").arg(units);
        let _: i64 = command.query_async(&mut env.cli().await).await.unwrap();
        named(&env, &worker, &["product shoe", off]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_names_a_leaked_entry() {
    let env = TestEnv::new().await;
    let worker = sale(&env, "worker").await;
    env.assert_audit_holds().await;
    // Orders stay in Redis: the schema requires a column that the program does not know.
    let strange = "ALTER TABLE reservations ADD COLUMN note text NOT NULL DEFAULT '';
                   ALTER TABLE reservations ALTER COLUMN note DROP DEFAULT";
    env.sql().await.batch_execute(strange).await.unwrap();
    let api = env.serve(Role::Api, &[]).await;
    let bought = api.buy("shoe", "dan", "r").await.unwrap();
    let orders = key(&env, "orders").await;
    let mut command = redis::cmd("XRANGE");
    let entries: Vec<(String, Vec<String>)> =
        command.arg(&orders).arg("-").arg("+").query_async(&mut env.cli().await).await.unwrap();
    assert_eq!(entries.len(), 1, "{bought:?}");
    let mut delete = redis::cmd("XDEL");
    delete.arg(&orders).arg(&entries[0].0);
    let _: i64 = delete.query_async(&mut env.cli().await).await.unwrap();
    let nowhere = format!("{} was accepted and is in neither store", entries[0].0);
    named(&env, &worker, &["product shoe", &nowhere]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_names_a_missing_request_id() {
    let env = TestEnv::new().await;
    let worker = sale(&env, "worker").await;
    env.assert_audit_holds().await;
    let mut command = redis::cmd("KEYS");
    let pattern = format!("{}:*", key(&env, "idempotency").await);
    let windows: Vec<String> =
        command.arg(pattern).query_async(&mut env.cli().await).await.unwrap();
    let mut delete = redis::cmd("HDEL");
    delete.arg(&windows[0]).arg("ann/shoe/r");
    let deleted: i64 = delete.query_async(&mut env.cli().await).await.unwrap();
    assert_eq!(deleted, 1);
    named(&env, &worker, &["3 orders have a request id, but 2 request ids are remembered"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_names_altered_removed_and_hidden_rows() {
    for (sql, named_as) in [
        (
            "UPDATE reservations SET product_id = 'hat' WHERE user_id = 'ann'",
            vec!["product shoe", "product hat"],
        ),
        ("DELETE FROM reservations WHERE user_id = 'ann'", vec!["is in neither store"]),
        (
            "UPDATE products SET sold = sold - 1 WHERE product_id = 'shoe'",
            vec!["counts 3 units as sold"],
        ),
    ] {
        let env = TestEnv::new().await;
        let worker = sale(&env, "worker").await;
        env.assert_audit_holds().await;
        env.sql().await.batch_execute(sql).await.unwrap();
        named(&env, &worker, &named_as).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_names_a_doubled_order_that_hides_a_lost_one() {
    let env = TestEnv::new().await;
    let worker = sale(&env, "worker").await;
    env.assert_audit_holds().await;
    // The sum is unchanged: one order is gone, and another has its seq.
    let sql = "UPDATE reservations SET seq = seq + 100 WHERE user_id = 'bob'";
    env.sql().await.batch_execute(sql).await.unwrap();
    named(&env, &worker, &["is in neither store"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_makes_its_first_audit_soon_although_its_interval_is_a_day() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("audit_interval_ms", "86400000")]).await;
    let name = "\nyoink_audit_last_timestamp_seconds{";
    eventually("each partition was audited", async || {
        let audited = get(service.http, "/metrics").await.matches(name).count();
        (audited == usize::from(env.partitions)).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gauge_shows_the_size_of_the_difference() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("audit_interval_ms", "100")]).await;
    service.create(product("shoe", 10)).await;
    let gauge = async |value: &str| {
        let line = format!("yoink_audit_differences{{otel_scope_name=\"yoink\"}} {value}\n");
        eventually(&line, async || {
            get(service.http, "/metrics").await.contains(&line).then_some(())
        })
        .await;
    };
    gauge("0").await;
    let stock = key(&env, "stock").await;
    for units in [3, -3] {
        let mut command = redis::cmd("HINCRBY");
        command.arg(&stock).arg("shoe").arg(units);
        let _: i64 = command.query_async(&mut env.cli().await).await.unwrap();
        gauge(if units > 0 { "3" } else { "0" }).await;
    }
    env.assert_audit_holds().await;
}
