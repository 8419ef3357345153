//! The checkpoints of the audit: an audit that does not read old rows again finds everything that one of all rows finds in
//! new rows, and a later comparison finds what was altered in old rows.

use tokio::task::block_in_place;
use yoink::{
    app::Role,
    audit::{Auditor, Report, Verdict},
    grpc::pb::{AuditRequest, AuditVerdict, RetryDeadEntriesRequest},
};

use crate::harness::{
    Service, TestEnv, dead_entries, eventually, move_to_dead, product, run_yoink,
};

/// The auditor of a worker that covers each row at once.
async fn worker_auditor(env: &TestEnv) -> Auditor {
    env.stores().await.auditor.covering_from(1)
}

/// Sells some units, and waits until each order is stored.
async fn sell(env: &TestEnv, service: &Service, users: &[&str]) {
    for user in users {
        service.buy("shoe", user, "r").await.unwrap();
    }
    env.assert_audit_holds().await;
}

/// An audit of a worker, which must hold.
async fn cover(auditor: &Auditor) -> Report {
    let report = auditor.audit_and_cover().await;
    assert_eq!(report.verdict(), Verdict::Holds, "{report:#?}");
    report
}

/// How many orders the checkpoints cover.
async fn covered(env: &TestEnv) -> i64 {
    let sql = "SELECT coalesce(sum(last - first + 1), 0)::bigint
                 FROM audit_checkpoints, unnest(first_seqs, last_seqs) AS range (first, last)";
    env.count(sql).await
}

async fn execute(env: &TestEnv, sql: &str) {
    let changed = env.sql().await.execute(sql, &[]).await.unwrap();
    assert!(changed > 0, "{sql}");
}

/// A service, five stored orders that a checkpoint covers, and its auditor.
async fn with_covered_orders(env: &TestEnv) -> (Service, Auditor) {
    let service = env.serve(Role::All, &[("audit_interval_ms", "0")]).await;
    for id in ["shoe", "hat"] {
        service.create(product(id, 100)).await;
    }
    sell(env, &service, &["ann", "bob", "cid", "dan", "eve"]).await;
    let auditor = worker_auditor(env).await;
    cover(&auditor).await;
    assert_eq!(covered(env).await, 5);
    (service, auditor)
}

fn assert_names(report: &Report, what: &str) {
    let found = report.violations.join("\n");
    assert_eq!(report.verdict(), Verdict::Violated, "{what}: {report:#?}");
    assert!(found.contains(what), "{what}: {found}");
    assert!(report.differences > 0, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_old_row_is_found_by_a_full_audit_and_by_a_worker_after_twelve_hours() {
    for (sql, undo, named) in [
        (
            "UPDATE reservations SET user_id = 'fay' WHERE user_id = 'bob'",
            "UPDATE reservations SET user_id = 'bob' WHERE user_id = 'fay'",
            "their rows are not those that it was made from",
        ),
        (
            "UPDATE reservations SET product_id = 'hat' WHERE user_id = 'bob'",
            "UPDATE reservations SET product_id = 'shoe' WHERE user_id = 'bob'",
            "the checkpoint counts 5 confirmed units of product shoe, and the rows that it covers have 4",
        ),
        (
            "UPDATE reservations SET request_id = NULL WHERE user_id = 'bob'",
            "UPDATE reservations SET request_id = 'r' WHERE user_id = 'bob'",
            "request ids of a bucket, and the rows that it covers have",
        ),
    ] {
        let env = TestEnv::new().await;
        let (service, auditor) = with_covered_orders(&env).await;
        execute(&env, sql).await;
        assert_names(&auditor.audit_in_full().await, named);
        let output = block_in_place(|| run_yoink(&env, &["audit", "--full"]));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(named), "{output:?}");
        for (full, verdict) in [(true, AuditVerdict::Violated), (false, AuditVerdict::Holds)] {
            let answer = service.admin().audit(AuditRequest { full }).await.unwrap().into_inner();
            assert_eq!(answer.verdict(), verdict, "{answer:?}");
            assert_eq!(answer.findings.join("\n").contains(named), full, "{answer:?}");
        }
        // An ordinary round reads new rows, and holds.
        cover(&auditor).await;
        let earlier =
            "UPDATE audit_checkpoints SET verified_at = verified_at - interval '12 hours'";
        execute(&env, earlier).await;
        // It is found again in each round, until it is corrected.
        for _ in 0..2 {
            assert_names(&auditor.audit_and_cover().await, named);
        }
        execute(&env, undo).await;
        cover(&auditor).await;
        let sql = "SELECT count(*) FROM audit_checkpoints WHERE verified_at < now() - interval '11 hours'";
        assert_eq!(env.count(sql).await, 0);
        sell(&env, &service, &["gil"]).await;
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_that_was_verified_in_the_future_is_compared() {
    let env = TestEnv::new().await;
    let (service, auditor) = with_covered_orders(&env).await;
    execute(&env, "UPDATE reservations SET user_id = 'fay' WHERE user_id = 'bob'").await;
    cover(&auditor).await;
    execute(&env, "UPDATE audit_checkpoints SET verified_at = now() + interval '1 hour'").await;
    let named = "their rows are not those that it was made from";
    assert_names(&auditor.audit_and_cover().await, named);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_with_other_buckets_is_compared_before_it_is_replaced() {
    let env = TestEnv::new().await;
    let (service, auditor) = with_covered_orders(&env).await;
    execute(&env, "UPDATE reservations SET user_id = 'fay' WHERE user_id = 'bob'").await;
    // As if idempotency_window_ms had been changed.
    execute(&env, "UPDATE audit_checkpoints SET bucket_width_ms = 1").await;
    let others = "SELECT count(*) FROM audit_checkpoints WHERE bucket_width_ms = 1";
    for _ in 0..2 {
        let named = "their rows are not those that it was made from";
        assert_names(&auditor.audit_and_cover().await, named);
        assert_eq!(env.count(others).await, 1, "it stays until the rows are right");
    }
    execute(&env, "UPDATE reservations SET user_id = 'bob' WHERE user_id = 'fay'").await;
    // No row is new, and it counts in the right buckets from now on.
    cover(&auditor.clone().covering_from(1_000)).await;
    assert_eq!((env.count(others).await, covered(&env).await), (0, 5));
    sell(&env, &service, &["gil"]).await;
    cover(&auditor).await;
    let report = auditor.audit_in_full().await;
    assert_eq!(report.verdict(), Verdict::Holds, "{report:#?}");
    assert_eq!(covered(&env).await, 6);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_over_a_covered_voided_one_is_found_by_the_next_audit() {
    for state in ["confirmed", "voided"] {
        let env = TestEnv::new().await;
        let (service, auditor) = with_covered_orders(&env).await;
        service.stop().await;
        let add = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id <> 'bad')";
        env.sql().await.batch_execute(add).await.unwrap();
        let settings = [("deliveries_max", "1"), ("audit_interval_ms", "0")];
        let service = env.serve(Role::All, &settings).await;
        service.buy("shoe", "bad", "r").await.unwrap();
        eventually("the order is voided", async || {
            (env.count("SELECT count(*) FROM reservations WHERE state = 'voided'").await == 1)
                .then_some(())
        })
        .await;
        env.assert_audit_holds().await;
        cover(&auditor).await;
        assert_eq!(covered(&env).await, 6);
        let (columns, values) = match state {
            "confirmed" => ("product_id, user_id, units", "'shoe', 'mal', 1"),
            _ => ("void_reason", "'again'"),
        };
        let insert = format!(
            "INSERT INTO reservations (reservation_id, state, partition, epoch, seq, reserved_at, {columns})
             SELECT gen_random_uuid(), '{state}', partition, epoch, seq, reserved_at, {values}
               FROM reservations WHERE state = 'voided'"
        );
        execute(&env, &insert).await;
        assert_names(&auditor.audit().await, "order 1-6 has more than one row in the ledger");
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_that_cannot_cover_more_rows_is_reported() {
    let env = TestEnv::new().await;
    let (service, auditor) = with_covered_orders(&env).await;
    assert!(cover(&auditor).await.blocked.is_empty());
    let unnumbered = "INSERT INTO reservations (reservation_id, state, partition, epoch, seq, reserved_at, void_reason)
                      SELECT gen_random_uuid(), 'voided', partition, 0, 0, reserved_at, 'of an earlier version'
                        FROM reservations WHERE user_id = 'ann'";
    execute(&env, unnumbered).await;
    for _ in 0..2 {
        let report = cover(&auditor).await;
        assert!(report.blocked[0].ends_with(": a seq is below 1"), "{report:#?}");
        assert_eq!(covered(&env).await, 5);
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losses_are_counted_from_rows_where_a_comparison_finds_the_checkpoint_wrong() {
    let env = TestEnv::new().await;
    let (service, auditor) = with_covered_orders(&env).await;
    service.stop().await;
    let rebuilt = block_in_place(|| run_yoink(&env, &["rebuild", "--all"]));
    assert!(rebuilt.status.success(), "{rebuilt:?}");
    drop(auditor);
    let auditor = worker_auditor(&env).await;
    assert!(cover(&auditor).await.lost.is_empty());
    execute(&env, "DELETE FROM reservations WHERE user_id = 'bob'").await;
    let earlier = "UPDATE audit_checkpoints SET verified_at = verified_at - interval '12 hours'";
    execute(&env, earlier).await;
    let report = auditor.audit_and_cover().await;
    assert_names(&report, "the checkpoint counts 5 orders, and the rows that it covers have 4");
    assert_eq!(report.lost.iter().map(|lost| lost.count).sum::<u64>(), 1, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_old_row_is_found_by_a_full_audit() {
    let env = TestEnv::new().await;
    let (service, auditor) = with_covered_orders(&env).await;
    service.stop().await;
    execute(&env, "DELETE FROM reservations WHERE user_id = 'bob'").await;
    cover(&auditor).await;
    let report = auditor.audit_in_full().await;
    assert_names(&report, "the checkpoint counts 5 orders, and the rows that it covers have 4");
    assert_names(&report, "order 1-2 was accepted and is in neither store");
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_checkpoint_is_found() {
    for (sql, named, at_once) in [
        ("units = ARRAY[6]", "the checkpoint counts 6 confirmed units of product shoe", true),
        ("last_seqs = ARRAY[4]", "product shoe, and the rows that it covers have 4", true),
        ("last_seqs = ARRAY[6]", "the checkpoint covers orders beyond 1-5", true),
        (
            "request_ids = ARRAY (SELECT n + 1 FROM unnest(request_ids) n)",
            "request ids of a bucket, and the rows that it covers have",
            true,
        ),
        ("checksum = checksum # 1", "their rows are not those that it was made from", false),
    ] {
        let env = TestEnv::new().await;
        let (service, auditor) = with_covered_orders(&env).await;
        execute(&env, &format!("UPDATE audit_checkpoints SET {sql}")).await;
        assert_names(&auditor.audit_in_full().await, named);
        if at_once {
            // It stays until an operator removes the checkpoint.
            for _ in 0..2 {
                assert_names(&auditor.audit_and_cover().await, named);
            }
        }
        execute(&env, "DELETE FROM audit_checkpoints").await;
        cover(&auditor).await;
        assert_eq!(covered(&env).await, 5);
        assert_eq!(auditor.audit_in_full().await.verdict(), Verdict::Holds);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_hides_no_error_in_new_rows() {
    for (sql, named) in [
        ("DELETE FROM reservations WHERE user_id = 'fay'", "order 1-6 was accepted and is in neither store"),
        ("UPDATE reservations SET product_id = 'hat' WHERE user_id = 'fay'", "product hat"),
        ("UPDATE reservations SET seq = seq + 100 WHERE user_id = 'fay'", "order 1-6 was accepted"),
        ("UPDATE reservations SET epoch = 0 WHERE user_id = 'fay'", "order 1-6 was accepted"),
        ("UPDATE products SET sold = sold - 1 WHERE product_id = 'shoe'", "counts 6 units as sold"),
        (
            "INSERT INTO reservations (reservation_id, state, product_id, user_id, units, partition, epoch, seq, reserved_at)
             SELECT gen_random_uuid(), 'confirmed', product_id, 'mal', 1, partition, 0, 3, reserved_at
               FROM reservations WHERE user_id = 'ann'",
            "product shoe",
        ),
    ] {
        let env = TestEnv::new().await;
        let (service, auditor) = with_covered_orders(&env).await;
        sell(&env, &service, &["fay", "gil"]).await;
        service.stop().await;
        execute(&env, sql).await;
        assert_names(&auditor.audit().await, named);
        // A worker covers nothing while something is wrong.
        assert_names(&auditor.audit_and_cover().await, named);
        assert_eq!(covered(&env).await, 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn order_that_waits_while_later_ones_are_covered_is_not_missed() {
    let env = TestEnv::new().await;
    let (service, auditor) = with_covered_orders(&env).await;
    let add = "ALTER TABLE reservations ADD CONSTRAINT poison CHECK (user_id NOT LIKE 'bad%')";
    env.sql().await.batch_execute(add).await.unwrap();
    service.stop().await;
    let settings =
        [("deliveries_max", "1"), ("dead_letter_release", "manual"), ("audit_interval_ms", "0")];
    let service = env.serve(Role::All, &settings).await;
    service.buy("shoe", "bad", "r").await.unwrap();
    service.buy("shoe", "fay", "r").await.unwrap();
    eventually("one is dead and one is stored", async || {
        let report = auditor.audit().await;
        let shoe = report.products.iter().find(|units| units.product.as_str() == "shoe")?;
        ((shoe.in_dead, shoe.confirmed) == (1, 6)).then_some(())
    })
    .await;
    cover(&auditor).await;
    assert_eq!(covered(&env).await, 6);
    env.sql().await.batch_execute("ALTER TABLE reservations DROP CONSTRAINT poison").await.unwrap();
    let request = RetryDeadEntriesRequest { selector: dead_entries::all(), ..Default::default() };
    let retried = service.admin().retry_dead_entries(request).await.unwrap().into_inner();
    assert_eq!(retried.stored, 1, "{retried:?}");
    // Its row has an earlier seq than rows that are covered.
    let report = auditor.audit().await;
    assert_eq!(report.verdict(), Verdict::Holds, "{report:#?}");
    execute(&env, "DELETE FROM reservations WHERE user_id = 'bad'").await;
    assert_names(&auditor.audit().await, "order 1-6 was accepted and is in neither store");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_order_that_is_voided_later_is_counted_although_its_epoch_is_covered() {
    let env = TestEnv::new().await;
    let (service, auditor) = with_covered_orders(&env).await;
    service.stop().await;
    let rebuild = || block_in_place(|| run_yoink(&env, &["rebuild", "--all"]));
    assert!(rebuild().status.success());
    // As if Redis had accepted two more, which no store has.
    execute(&env, "UPDATE reported_marks SET seq = 7 WHERE seq = 5").await;
    drop(auditor);
    let auditor = worker_auditor(&env).await;
    let lost = cover(&auditor).await.lost;
    assert_eq!(lost.iter().map(|lost| lost.count).sum::<u64>(), 2, "{lost:?}");
    let void = "INSERT INTO reservations (reservation_id, state, partition, epoch, seq, reserved_at, void_reason)
                SELECT gen_random_uuid(), 'voided', partition, epoch, 7, reserved_at, 'found again'
                  FROM reservations WHERE user_id = 'eve'";
    execute(&env, void).await;
    for _ in 0..2 {
        let lost = cover(&auditor).await.lost;
        assert_eq!(lost.iter().map(|lost| lost.count).sum::<u64>(), 1, "{lost:?}");
    }
    assert_eq!(covered(&env).await, 6);
    let full = auditor.audit_in_full().await;
    assert_eq!((full.verdict(), full.lost.len()), (Verdict::Holds, 1), "{full:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_cover_at_the_same_time_keep_one_right_checkpoint() {
    let env = TestEnv::new().await;
    let (service, first) = with_covered_orders(&env).await;
    let second = worker_auditor(&env).await;
    for n in 0..10 {
        service.buy("shoe", &format!("user-{n}"), "r").await.unwrap();
        let (one, other) = tokio::join!(first.audit_and_cover(), second.audit_and_cover());
        for report in [one, other] {
            assert_ne!(report.verdict(), Verdict::Violated, "{report:#?}");
        }
    }
    env.assert_audit_holds().await;
    cover(&first).await;
    assert_eq!(covered(&env).await, 15);
    let report = second.audit_in_full().await;
    assert_eq!(report.verdict(), Verdict::Holds, "{report:#?}");
    service.stop().await;
}

/// Adds this many entries to the orders stream, as buyers would, each with its unit.
async fn accept(env: &TestEnv, partition: u16, entries: u32) {
    let script = "local epoch = redis.call('HGET', KEYS[1], 'epoch')
        local seq = redis.call('HINCRBY', KEYS[1], 'seq', ARGV[1])
        for n = seq - ARGV[1] + 1, seq do
          redis.call('XADD', KEYS[2], epoch .. '-' .. string.format('%.0f', n), 'v', '3', 't',
            '1700000000000', 'o', 'ab shoe user-' .. string.format('%.0f', n))
        end
        redis.call('HINCRBY', KEYS[3], 'shoe', -ARGV[1])";
    let key = |name: &str| format!("{}:{{{partition}}}:{name}", env.prefix);
    let mut cli = env.cli().await;
    for _ in 0..entries.div_ceil(5_000) {
        let mut call = redis::cmd("EVAL");
        call.arg(script).arg(3).arg(key("meta")).arg(key("orders")).arg(key("stock")).arg(5_000);
        let () = call.query_async(&mut cli).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_longer_than_a_page_are_audited_and_rebuilt() {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 100_000)).await;
    let stores = env.stores().await;
    let partition = stores.deployment.partitions.of(&"shoe".parse().unwrap());
    let users = ["ann", "bob", "cid"].map(str::to_owned);
    move_to_dead(&env, &api, ("shoe", None), users).await;
    accept(&env, partition.number(), 45_000).await;
    let report = stores.auditor.audit().await;
    assert_eq!(report.verdict(), Verdict::Holds, "{report:#?}");
    let units = &report.products[0];
    assert_eq!((units.in_orders, units.in_dead, units.stock), (45_000, 3, 54_997));
    // One that is missing is named.
    let mut cli = env.cli().await;
    let orders = format!("{}:{{{partition}}}:orders", env.prefix);
    let _: i64 =
        redis::cmd("XDEL").arg(&orders).arg("1-41234").query_async(&mut cli).await.unwrap();
    assert_names(
        &stores.auditor.audit().await,
        "order 1-41234 was accepted and is in neither store",
    );
    api.stop().await;
    let output = block_in_place(|| run_yoink(&env, &["rebuild", "--all"]));
    assert!(output.status.success(), "{output:?}");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (45_002, 54_998));
}
