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

/// The script, as a superuser runs it.
const SCRIPT: &str = include_str!("../../deploy/postgres/archive.sql");

/// Moves everything that may be moved, as the owner of the database; returns how many rows.
async fn archive(env: &TestEnv) -> i64 {
    let sql = env.sql().await;
    sql.batch_execute("SET ROLE yoink_owner").await.unwrap();
    sql.batch_execute(SCRIPT).await.unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn archive_belongs_to_the_owner_of_reservations_also_if_a_superuser_makes_it() {
    let env = TestEnv::new().await;
    let sql = env.sql().await;
    // A repetition changes nothing.
    for _ in 0..2 {
        sql.batch_execute(SCRIPT).await.unwrap();
    }
    let owners = "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'reservations_archive'::regclass
                  UNION SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE proname = 'archive_reservations'";
    let owners = sql.query(owners, &[]).await.unwrap();
    let owners: Vec<String> = owners.iter().map(|row| row.get(0)).collect();
    assert_eq!(owners, ["yoink_owner"]);
    assert_eq!(archive(&env).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn documented_commands_move_the_archive_with_its_indexes_to_another_tablespace() {
    let env = TestEnv::with_own_postgres().await;
    let sql = env.sql().await;
    sql.batch_execute(SCRIPT).await.unwrap();
    sql.batch_execute("SET allow_in_place_tablespaces = true").await.unwrap();
    sql.batch_execute("CREATE TABLESPACE slow_disk LOCATION ''").await.unwrap();
    let documented = SCRIPT.lines().filter_map(|line| line.strip_prefix("--   "));
    let documented: Vec<&str> =
        documented.skip_while(|line| !line.starts_with("ALTER TABLE")).take(3).collect();
    let [table, select, from] = documented[..] else { panic!("{documented:?}") };
    sql.batch_execute(table).await.unwrap();
    // psql executes what the query returns.
    let indexes = format!("{select} {}", from.strip_suffix(" \\gexec").unwrap());
    for command in sql.query(&indexes, &[]).await.unwrap() {
        sql.batch_execute(command.get(0)).await.unwrap();
    }
    let elsewhere = "SELECT count(*) FROM pg_class c
        WHERE (oid = 'reservations_archive'::regclass
               OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 'reservations_archive'::regclass))
          AND NOT EXISTS (SELECT FROM pg_tablespace t WHERE t.oid = c.reltablespace AND spcname = 'slow_disk')";
    assert_eq!(env.count(elsewhere).await, 0);
    let indexes = "SELECT count(*) FROM pg_index WHERE indrelid = 'reservations_archive'::regclass";
    assert!(env.count(indexes).await >= 5);
}
