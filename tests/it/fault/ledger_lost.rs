//! A ledger that lost data, simulated by changing rows: detection, commands, and crashes during the repair.

use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::Signal;
use tokio::task::block_in_place;
use yoink::{
    app::Role,
    grpc::pb::{ProductStatus, UpdateProductRequest},
};

use super::crash::REBUILD_POINTS;
use crate::harness::{
    Binary, Bought, Service, TestEnv, eventually, get, product, reason, run_yoink,
};

async fn until_stored(env: &TestEnv, rows: i64) {
    eventually("they are stored", async || {
        (env.count("SELECT count(*) FROM reservations").await == rows).then_some(())
    })
    .await;
    env.assert_audit_holds().await;
}

/// Takes the orders of a user out of the ledger, as if they had never been committed.
async fn delete_stored_order(env: &TestEnv, user: &str) {
    let sql = format!(
        "WITH gone AS (DELETE FROM reservations WHERE user_id = '{user}' RETURNING product_id)
         UPDATE products SET sold = sold - n
           FROM (SELECT product_id, count(*) AS n FROM gone GROUP BY product_id) g
          WHERE products.product_id = g.product_id"
    );
    env.sql().await.batch_execute(&sql).await.unwrap();
}

fn rebuild(env: &TestEnv, args: &[&str]) -> (Option<i32>, String) {
    let output = block_in_place(|| run_yoink(env, &[&["rebuild"], args].concat()));
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
}

async fn rows(env: &TestEnv) -> Vec<(i64, String)> {
    let sql = "SELECT epoch, status FROM partitions ORDER BY partition";
    let rows = env.sql().await.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn partition_of(env: &TestEnv, id: &str) -> u16 {
    env.stores().await.deployment.partitions.of(&id.parse().unwrap()).number()
}

async fn sells_again(service: &Service, user: &str) -> Bought {
    eventually("it sells again", async || service.buy("shoe", user, "r").await.ok()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_order_is_detected_if_postgres_hides_its_timeline() {
    let mut env = TestEnv::with_own_postgres().await;
    env.redis = TestEnv::with_own_redis().await.redis;
    let rights = "CREATE ROLE seller LOGIN IN ROLE yoink_serve;
        REVOKE EXECUTE ON FUNCTION pg_current_wal_lsn() FROM PUBLIC";
    env.sql().await.batch_execute(rights).await.unwrap();
    let url = env.postgres_url().replace("yoink_serve@", "seller@");
    let service = env.serve(Role::All, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    service.buy("shoe", "bob", "r").await.unwrap();
    until_stored(&env, 2).await;
    delete_stored_order(&env, "bob").await;
    let number = partition_of(&env, "shoe").await;
    eventually("it is rebuilt", async || {
        let row = rows(&env).await[usize::from(number)].clone();
        (row == (2, "open".to_owned())).then_some(())
    })
    .await;
    assert!(sells_again(&service, "ann").await.duplicate);
    assert_eq!(service.refusal("shoe", "bob", "r").await, "LOST_OR_UNKNOWN");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
    assert_eq!((report.lost.len(), report.lost[0].count), (1, 1));
    assert_eq!(rows(&env).await[usize::from(1 - number)].0, 1, "the other partition is unchanged");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reverted_partition_row_gets_an_epoch_above_that_of_redis() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let number = partition_of(&env, "shoe").await;
    let (code, printed) = rebuild(&env, &["--partition", &number.to_string()]);
    assert_eq!(code, Some(0), "{printed}");
    // Accepted in epoch 2, and waiting when the row goes back to epoch 1.
    let waiting = sells_again(&service, "ann").await;
    let back = format!("UPDATE partitions SET epoch = 1, opened = 1 WHERE partition = {number}");
    env.sql().await.batch_execute(&back).await.unwrap();
    let worker = env.serve(Role::Worker, &[]).await;
    eventually("it is rebuilt", async || {
        let row = rows(&env).await[usize::from(number)].clone();
        (row == (3, "open".to_owned())).then_some(())
    })
    .await;
    let again = sells_again(&service, "ann").await;
    assert_eq!((again.duplicate, again.reservation_id), (true, waiting.reservation_id));
    env.assert_audit_holds().await;
    worker.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_takes_partition_numbers_or_all_and_its_dry_run_shows_the_steps() {
    let env = TestEnv::with_own_redis().await;
    let settings = [("recovery", "manual")];
    let worker = env.serve(Role::Worker, &settings).await;
    let service = env.serve(Role::Api, &settings).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    service.buy("shoe", "bob", "r").await.unwrap();
    until_stored(&env, 2).await;
    worker.stop().await;
    let number = partition_of(&env, "shoe").await;
    let (this, other) = (number.to_string(), usize::from(1 - number));
    let lost = service.buy("shoe", "cid", "r").await.unwrap();
    // An order that was stored is gone, and one waits: 7 units are for sale, and 8 will be.
    delete_stored_order(&env, "ann").await;
    let (code, plan) = rebuild(&env, &["--partition", &this, "--dry-run"]);
    assert_eq!(code, Some(0), "{plan}");
    for line in [
        "it would be open in epoch 2",
        "1 entries would be stored or voided",
        "1 accepted orders of epoch 1 are in neither store",
        "product shoe: stock 7 now, 8 afterwards",
    ] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    let all = rebuild(&env, &["--all", "--dry-run"]).1;
    assert!(all.contains("partition 0: ") && all.contains("partition 1: "), "{all}");
    assert!(rows(&env).await.iter().all(|(epoch, _)| *epoch == 1), "a dry run changes nothing");
    assert_eq!(rebuild(&env, &["--partition", "2"]).0, Some(2), "partition 2 does not exist");
    assert_eq!(
        rebuild(&env, &["--all", "--partition", "1"]).0,
        Some(2),
        "--all and --partition exclude each other"
    );

    let (code, printed) = rebuild(&env, &["--partition", &this]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("1 orders from its streams were stored and 0 voided"), "{printed}");
    assert!(printed.contains("of user ann for product shoe was lost"), "{printed}");
    assert!(printed.contains("lost exactly 1 of epoch 1"), "{printed}");
    let epochs: Vec<i64> = rows(&env).await.into_iter().map(|(epoch, _)| epoch).collect();
    assert_eq!((epochs[usize::from(number)], epochs[other]), (2, 1));
    let again = sells_again(&service, "cid").await;
    assert_eq!((again.duplicate, again.reservation_id), (true, lost.reservation_id));
    assert_eq!(service.refusal("shoe", "ann", "r").await, "LOST_OR_UNKNOWN");

    let (code, printed) = rebuild(&env, &["--all"]);
    assert_eq!(code, Some(0), "{printed}");
    let epochs: Vec<i64> = rows(&env).await.into_iter().map(|(epoch, _)| epoch).collect();
    assert_eq!((epochs[usize::from(number)], epochs[other]), (3, 2));
    assert!(sells_again(&service, "cid").await.duplicate);
    assert_eq!(service.refusal("shoe", "ann", "r").await, "LOST_OR_UNKNOWN", "still");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (2, 8));
    service.stop().await;
}

/// Ends a rebuild at a crash point, with one order kept and one lost, and lets another process rebuild.
async fn crash_while_looking_up(point: &str) {
    let env = TestEnv::with_own_redis().await;
    let first = env.serve(Role::All, &[("recovery", "manual")]).await;
    first.create(product("shoe", 10)).await;
    let kept = first.buy("shoe", "ann", "r").await.unwrap();
    first.buy("shoe", "bob", "r").await.unwrap();
    until_stored(&env, 2).await;
    first.stop().await;
    let service = env.serve(Role::Api, &[]).await;
    delete_stored_order(&env, "bob").await;
    // What the gateway reported is lost with it: only Redis still knows how many it accepted.
    env.sql().await.batch_execute("DELETE FROM reported_marks").await.unwrap();
    let mut rebuilder = Binary::serve(&env, &[], Some(point));
    let status = rebuilder.ended().await;
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32), "{point}: {}", rebuilder.log());
    let next = env.serve(Role::Worker, &[]).await;
    let again = sells_again(&service, "ann").await;
    assert_eq!((again.duplicate, again.reservation_id), (true, kept.reservation_id), "{point}");
    assert_eq!(service.refusal("shoe", "bob", "r").await, "LOST_OR_UNKNOWN", "{point}");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9), "{point}");
    assert_eq!((report.lost.len(), report.lost[0].count), (1, 1), "{point}");
    next.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_request_ids_survive_a_crash_between_any_two_rebuild_steps() {
    let crashes = REBUILD_POINTS.iter().map(|point| Box::pin(crash_while_looking_up(point)));
    futures_util::future::join_all(crashes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_takes_effect_after_the_ledger_lost_catalogue_changes() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let update = |name: &str, status: ProductStatus| {
        let (product_id, name) = ("shoe".to_owned(), name.to_owned());
        let request =
            UpdateProductRequest { product_id, name, status: status.into(), ..Default::default() };
        let mut admin = service.admin();
        async move { admin.update_product(request).await.unwrap() }
    };
    for name in ["one", "two", "three"] {
        update(name, ProductStatus::OnSale).await;
    }
    service.buy("shoe", "ann", "r").await.unwrap();
    until_stored(&env, 1).await;
    // The state after a failover that lost the three changes and their version numbers.
    let lost = "UPDATE products SET name = 'zero', version = version - 3;
                SELECT setval('catalogue_version', (SELECT max(version) FROM products))";
    env.sql().await.batch_execute(lost).await.unwrap();
    let (code, printed) = rebuild(&env, &["--all"]);
    assert_eq!(code, Some(0), "{printed}");
    sells_again(&service, "bob").await;

    // Its version is one that this process has seen before, of a change that is lost.
    update("stopped", ProductStatus::Stopped).await;
    assert_eq!(service.refusal("shoe", "late", "r").await, "SALE_STOPPED");
    env.assert_audit_holds().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reverted_partition_row_fences_its_partition_even_with_manual_rebuild() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[("recovery", "manual")]).await;
    service.create(product("shoe", 10)).await;
    let (code, printed) = rebuild(&env, &["--all"]);
    assert_eq!(code, Some(0), "{printed}");
    sells_again(&service, "ann").await;
    until_stored(&env, 1).await;
    // As if the rebuild had never been committed.
    let back = "UPDATE partitions SET epoch = 1, opened = 1";
    env.sql().await.batch_execute(back).await.unwrap();
    eventually("sales are refused", async || {
        let refusal = service.buy("shoe", "bob", "r").await.err()?;
        (reason(&refusal) == "RECOVERING").then_some(())
    })
    .await;
    let (code, printed) = rebuild(&env, &[]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(rows(&env).await.iter().all(|row| *row == (3, "open".to_owned())));
    sells_again(&service, "cid").await;
    env.assert_audit_holds().await;
    service.stop().await;
}

/// Sets a partition back to new, as if the commit that opened it had been lost.
async fn lose_opening(env: &TestEnv, number: u16, epoch: i64) {
    let sql = format!(
        "UPDATE partitions SET epoch = {epoch}, opened = 0, status = 'new' WHERE partition = {number}"
    );
    env.sql().await.batch_execute(&sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_with_lost_opening_uses_no_epoch_before_it_is_rebuilt_by_command() {
    let env = TestEnv::new().await;
    let settings = [("recovery", "manual")];
    let worker = env.serve(Role::Worker, &settings).await;
    let service = env.serve(Role::Api, &settings).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "r").await.unwrap();
    until_stored(&env, 1).await;
    worker.stop().await;
    let waiting = service.buy("shoe", "bob", "r").await.unwrap();
    let number = partition_of(&env, "shoe").await;
    delete_stored_order(&env, "ann").await;
    lose_opening(&env, number, 0).await;
    // One process knew the partition as open. The other one tries to open what is new at its start.
    let fresh = env.serve(Role::Api, &settings).await;
    let line = format!(
        "partition {number} is fenced: Postgres lost commits: it no longer holds the opening of the partition; run \
         `yoink rebuild --partition {number}`"
    );
    for process in [&service, &fresh] {
        eventually("readiness states the cause", async || {
            get(process.http, "/readyz").await.contains(&line).then_some(())
        })
        .await;
        assert_eq!(process.refusal("shoe", "cid", "r").await, "RECOVERING");
    }
    let row = async || rows(&env).await[usize::from(number)].clone();
    assert_eq!(row().await, (0, "new".to_owned()), "no epoch was used");
    let (code, plan) = rebuild(&env, &["--dry-run"]);
    assert_eq!(code, Some(0), "{plan}");
    for line in [
        "fenced (Postgres lost commits: it no longer holds the opening of the partition) in epoch 0; it would be open in \
         epoch 2",
        "1 entries would be stored or voided",
        "1 accepted orders of epoch 1 are in neither store",
    ] {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    let all = rebuild(&env, &["--all", "--dry-run"]).1;
    assert!(all.contains("partition 0: ") && all.contains("partition 1: "), "{all}");
    let (code, printed) = rebuild(&env, &["--partition", &number.to_string()]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("1 orders from its streams were stored and 0 voided"), "{printed}");
    assert_eq!(row().await, (2, "open".to_owned()));
    let again = sells_again(&service, "bob").await;
    assert_eq!((again.duplicate, again.reservation_id), (true, waiting.reservation_id));
    assert_eq!(service.refusal("shoe", "ann", "r").await, "LOST_OR_UNKNOWN");
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
    assert_eq!((report.lost.len(), report.lost[0].count), (1, 1));
    fresh.stop().await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partition_with_lost_opening_is_rebuilt_above_the_epochs_of_both_stores() {
    // In the second case, later attempts at opening it have used epochs.
    for (epoch, rebuilt) in [(0, 2), (5, 6)] {
        let env = TestEnv::new().await;
        let service = env.serve(Role::All, &[]).await;
        service.create(product("shoe", 10)).await;
        let bought = service.buy("shoe", "ann", "r").await.unwrap();
        until_stored(&env, 1).await;
        let number = partition_of(&env, "shoe").await;
        lose_opening(&env, number, epoch).await;
        eventually("it is rebuilt, and no other epoch was used", async || {
            let row = rows(&env).await[usize::from(number)].clone();
            (row == (rebuilt, "open".to_owned())).then_some(())
        })
        .await;
        let again = sells_again(&service, "ann").await;
        assert_eq!((again.duplicate, again.reservation_id), (true, bought.reservation_id));
        let report = env.assert_audit_holds().await;
        assert_eq!((report.products[0].confirmed, report.products[0].stock), (1, 9));
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn products_lost_with_the_opening_of_their_partition_are_not_sold() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let number = partition_of(&env, "shoe").await;
    // Nothing was sold. Redis has the product, and the ledger lost it with the opening.
    let lost = "DELETE FROM supply_changes; DELETE FROM products";
    env.sql().await.batch_execute(lost).await.unwrap();
    // Above the epoch that this process knows: only Redis shows that the partition was open.
    lose_opening(&env, number, 5).await;
    eventually("it is rebuilt", async || {
        let row = rows(&env).await[usize::from(number)].clone();
        (row == (6, "open".to_owned())).then_some(())
    })
    .await;
    eventually("the product is unknown", async || {
        (service.refusal("shoe", "ann", "r").await == "PRODUCT_NOT_FOUND").then_some(())
    })
    .await;
    env.assert_audit_holds().await;
    service.stop().await;
}
