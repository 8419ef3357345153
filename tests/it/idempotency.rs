//! The same request id of the same user for the same product: the same answer and one effect.

use futures_util::future::join_all;
use yoink::app::Role;

use crate::harness::{Yard, eventually, product};

#[tokio::test(flavor = "multi_thread")]
async fn one_request_id_from_64_callers_takes_one_unit() {
    let yard = Yard::new().await;
    let service = yard.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    let answers = join_all((0..64).map(|_| service.buy("shoe", "ann", "once"))).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1);
    assert!(answers.iter().all(|answer| answer.reservation_id == answers[0].reservation_id));
    assert!(answers.iter().all(|answer| answer.reserved_at == answers[0].reserved_at));
    let report = yard.assert_audit_holds().await;
    assert_eq!((report.products[0].available, report.products[0].confirmed), (9, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_buyer_who_asks_again_is_not_told_that_it_is_sold_out() {
    let yard = Yard::new().await;
    let service = yard.serve(Role::All, &[]).await;
    service.create(product("shoe", 1)).await;
    let first = service.buy("shoe", "ann", "r1").await.unwrap();
    assert_eq!(first.remaining, 0);
    assert_eq!(service.refusal("shoe", "bob", "r1").await, "SOLD_OUT");
    let again = service.buy("shoe", "ann", "r1").await;
    let again = again.expect("a repeated request gets its first answer");
    assert!(again.duplicate);
    assert_eq!(
        (again.reservation_id, again.reserved_at),
        (first.reservation_id, first.reserved_at)
    );
    yard.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_id_belongs_to_its_user_and_product() {
    let yard = Yard::new().await;
    let service = yard.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.create(product("hat", 10)).await;
    let mut ids = Vec::new();
    for (item, user) in [("shoe", "ann"), ("shoe", "bob"), ("hat", "ann"), ("hat", "bob")] {
        let bought = service.buy(item, user, "r1").await.unwrap();
        assert!(!bought.duplicate);
        ids.push(bought.reservation_id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    // Without a request id each call takes a unit.
    assert!(!service.buy("shoe", "ann", "").await.unwrap().duplicate);
    assert!(!service.buy("shoe", "ann", "").await.unwrap().duplicate);
    yard.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_a_void_is_a_new_request() {
    let yard = Yard::new().await;
    let service = yard.serve(Role::All, &[("max_deliveries", "1")]).await;
    service.create(product("shoe", 3)).await;
    let sql = yard.sql().await;
    sql.batch_execute("ALTER TABLE reservations ADD CONSTRAINT no_ann CHECK (user_id <> 'ann')")
        .await
        .unwrap();
    let first = service.buy("shoe", "ann", "r1").await.unwrap();
    eventually("the order is voided and its claim is gone", async || {
        let found = service.reservation(&first.reservation_id).await.unwrap();
        let voided = found.state().as_str_name() == "RESERVATION_STATE_VOIDED";
        let report = yard.audit().await;
        (voided && report.products[0].available == 3).then_some(())
    })
    .await;
    sql.batch_execute("ALTER TABLE reservations DROP CONSTRAINT no_ann").await.unwrap();
    let second = service.buy("shoe", "ann", "r1").await.unwrap();
    assert!(!second.duplicate);
    assert_ne!(second.reservation_id, first.reservation_id);
    let report = yard.assert_audit_holds().await;
    assert_eq!((report.products[0].available, report.products[0].confirmed), (2, 1));
}
