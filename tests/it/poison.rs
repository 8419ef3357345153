//! An order that itself cannot be stored: its neighbours are stored, and its unit is given back, once.

use futures_util::future::join_all;
use yoink::app::Role;

use crate::harness::{Binary, TestEnv, eventually, move_to_dead, product};

/// Buys with a poison user among good ones, or a poison product, under a constraint of the test's own.
async fn poison_among_good_orders(constraint: &str, poison: (&str, &str)) {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    for id in ["shoe", "hat"] {
        let mut product = product(id, 100);
        product.sale.per_user_limit = Some(1);
        service.create(product).await;
    }
    let add = format!("ALTER TABLE reservations ADD CONSTRAINT poison CHECK ({constraint})");
    env.sql().await.batch_execute(&add).await.unwrap();

    let users: Vec<String> = (0..60).map(|n| format!("user-{n}")).collect();
    let mut buys: Vec<_> = users.iter().map(|user| service.buy("shoe", user, "r")).collect();
    let (bad_product, bad_user) = poison;
    buys.insert(30, service.buy(bad_product, bad_user, "bad"));
    let answers = join_all(buys).await;
    let bad = answers.into_iter().map(Result::unwrap).nth(30).unwrap();

    let voided = eventually("the poison order is voided", async || {
        let found = service.reservation(&bad.reservation_id).await.unwrap();
        (found.state().as_str_name() == "RESERVATION_STATE_VOIDED").then_some(found)
    })
    .await;
    assert!(voided.void_reason.contains("poison"), "{}", voided.void_reason);
    assert_eq!((voided.product_id.as_str(), voided.user_id.as_str()), ("", ""));

    let report = env.assert_audit_holds().await;
    let shoe = report.products.iter().find(|units| units.product.as_str() == "shoe").unwrap();
    let hat = report.products.iter().find(|units| units.product.as_str() == "hat").unwrap();
    assert_eq!((shoe.confirmed, shoe.stock), (60, 40), "neighbours are stored, the unit is back");
    assert_eq!((hat.confirmed, hat.stock), (0, 100));
    assert_eq!(env.count("SELECT count(*) FROM reservations WHERE state = 'voided'").await, 1);
    assert_eq!(env.count("SELECT count(*) FROM dead_actions WHERE action = 'release'").await, 1);

    // The limit and the request id are released, too: the same request is a new one now.
    env.sql().await.batch_execute("ALTER TABLE reservations DROP CONSTRAINT poison").await.unwrap();
    let again = service.buy(bad_product, bad_user, "bad").await.unwrap();
    assert!(!again.duplicate);
    assert_ne!(again.reservation_id, bad.reservation_id);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_with_poison_user_is_voided_and_the_others_are_stored() {
    poison_among_good_orders("user_id <> 'mallory'", ("shoe", "mallory")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn order_with_poison_product_is_voided_and_the_others_are_stored() {
    poison_among_good_orders("product_id <> 'hat'", ("hat", "ann")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_of_an_unknown_writer_is_kept_as_unrecognized() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::Api, &[]).await;
    service.create(product("shoe", 10)).await;
    let bought = service.buy("shoe", "ann", "").await.unwrap();
    let partition = env.stores().await.deployment.partitions.of(&"shoe".parse().unwrap());
    let orders = format!("{}:{{{partition}}}:orders", env.prefix);
    let mut cli = env.cli().await;
    let mut add = redis::cmd("XADD");
    add.arg(&orders)
        .arg("1-2")
        .arg("v")
        .arg("1")
        .arg("p")
        .arg("shoe")
        .arg("u")
        .arg(&[0xffu8, 0xfe][..]);
    let _id: String = add.arg("r").arg("zz").query_async(&mut cli).await.unwrap();
    let worker = env.serve(Role::Worker, &[("deliveries_max", "1")]).await;
    eventually("the good order is confirmed", async || {
        let found = service.reservation(&bought.reservation_id).await.unwrap();
        (found.state().as_str_name() == "RESERVATION_STATE_CONFIRMED").then_some(())
    })
    .await;
    let dead = format!("{}:{{{partition}}}:dead", env.prefix);
    eventually("the unrecognized entry is moved to the dead stream", async || {
        let length: u64 =
            redis::cmd("XLEN").arg(&dead).query_async(&mut env.cli().await).await.unwrap();
        (length == 1).then_some(())
    })
    .await;
    // The audit reports it: another program wrote into the stream.
    assert_eq!(env.audit().await.verdict(), yoink::audit::Verdict::Violated);
    worker.stop().await;
}

/// A constraint prevents that a dead letter is voided; it is removed later.
async fn dead_letter_that_cannot_be_voided(table: &str, constraint: &str) {
    let env = TestEnv::new().await;
    let api = env.serve(Role::Api, &[]).await;
    api.create(product("shoe", 10)).await;
    let sql = env.sql().await;
    let add = format!("ALTER TABLE {table} ADD CONSTRAINT refuse CHECK ({constraint})");
    sql.batch_execute(&add).await.unwrap();
    move_to_dead(&env, &api, ("shoe", Some("23514")), ["ann".to_owned()]).await;
    let worker = Binary::serve_as("worker", &env, &[], None);
    let paused = "release of dead entries paused: Postgres refuses to void a dead letter or to record it \
                  (SQLSTATE 23514): correct the constraint or trigger";
    eventually("the log states what refuses the void", async || {
        worker.log().contains(paused).then_some(())
    })
    .await;
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 0, "nothing is voided");
    let report = env.audit().await;
    assert_eq!((report.products[0].stock, report.products[0].in_dead), (9, 1));

    sql.batch_execute(&format!("ALTER TABLE {table} DROP CONSTRAINT refuse")).await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].stock, report.products[0].confirmed), (10, 0));
    assert_eq!(worker.log().matches(paused).count(), 1, "it is logged once: {}", worker.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_void_is_logged_and_the_unit_is_given_back_after_the_correction() {
    dead_letter_that_cannot_be_voided("reservations", "state <> 'voided'").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_record_of_a_void_is_logged_and_the_unit_is_given_back_after_the_correction() {
    dead_letter_that_cannot_be_voided("dead_actions", "action <> 'release'").await;
}
