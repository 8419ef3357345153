//! Old reservations in a table of their own (`deploy/postgres/archive.sql`): everything that reads reservations finds them.

use tokio::task::block_in_place;
use yoink::{
    app::Role,
    audit::Verdict,
    domain::{Epoch, NewProduct, Sale},
    grpc::pb::ListReservationsRequest,
    ledger::{ActionBy, VoidOutcome, VoidRequest},
};

use crate::harness::{TestEnv, product, run_yoink, succeeds};

/// Moves everything that may be moved, as the owner of the database; returns how many rows.
async fn archive(env: &TestEnv) -> i64 {
    let sql = env.sql().await;
    sql.batch_execute("SET ROLE yoink_owner").await.unwrap();
    sql.batch_execute(include_str!("../../deploy/postgres/archive.sql")).await.unwrap();
    let mut moved = 0;
    loop {
        let call = "SELECT archive_reservations(now() + interval '1 day', 2)";
        match sql.query_one(call, &[]).await.unwrap().get::<_, i64>(0) {
            0 => return moved,
            some => moved += some,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_reservations_are_found_audited_exported_and_never_decided_again() {
    let env = TestEnv::with_own_redis().await;
    let service = env.serve(Role::All, &[]).await;
    let shoe = product("shoe", 10);
    let sale = Sale { per_user_limit: Some(1), ..shoe.sale };
    service.create(NewProduct { sale, ..shoe }).await;
    let mut ids = Vec::new();
    for user in ["ann", "bob", "cid"] {
        ids.push(service.buy("shoe", user, "r").await.unwrap().reservation_id);
    }
    env.assert_audit_holds().await;
    assert_eq!(archive(&env).await, 0, "the epoch has not ended");
    let rebuild = || block_in_place(|| run_yoink(&env, &["rebuild", "--all"]));
    assert!(rebuild().status.success());
    assert_eq!(archive(&env).await, 3);
    assert_eq!(env.count("SELECT count(*) FROM ONLY reservations").await, 0);

    // What a rebuild restores comes from them.
    assert!(rebuild().status.success());
    let again = succeeds("the service sells in the new epoch", async || {
        service.buy("shoe", "ann", "r").await
    })
    .await;
    assert_eq!((again.reservation_id, again.duplicate), (ids[0].clone(), true));
    assert_eq!(service.refusal("shoe", "bob", "other").await, "LIMIT_REACHED");
    service.buy("shoe", "dan", "r").await.unwrap();
    let report = env.assert_audit_holds().await;
    assert_eq!((report.products[0].confirmed, report.products[0].stock), (4, 6));
    let found = service.reservation(&ids[1]).await.unwrap();
    assert_eq!(found.user_id, "bob");
    let request = ListReservationsRequest { product_id: "shoe".to_owned(), ..Default::default() };
    let listed = service.admin().list_reservations(request).await.unwrap().into_inner();
    assert_eq!(listed.reservations.len(), 4);
    let exported = block_in_place(|| run_yoink(&env, &["export"]));
    let exported = String::from_utf8(exported.stdout).unwrap();
    assert!(ids.iter().all(|id| exported.contains(id)), "{exported}");

    let stores = env.stores().await;
    let auditor = stores.auditor.clone().covering_from(1);
    for report in [auditor.audit_and_cover().await, auditor.audit_in_full().await] {
        assert_eq!(report.verdict(), Verdict::Holds, "{report:#?}");
    }
    // An order that restored data of Redis holds again is not voided: it is stored.
    let partition = stores.deployment.partitions.of(&"shoe".parse().unwrap());
    let void = VoidRequest {
        id: ids[2].parse().unwrap(),
        reserved_at_ms: 0,
        reason: "found again".to_owned(),
        entry: Vec::new(),
    };
    let by = ActionBy { actor: "test".to_owned(), reason: String::new() };
    let voided = stores.ledger.void(partition, Epoch(3), &void, &by).await.unwrap();
    assert_eq!(voided, VoidOutcome::Confirmed);
    let sql = "SELECT count(*) FROM reservations WHERE state = 'voided'";
    assert_eq!(env.count(sql).await, 0);
    service.stop().await;
}
