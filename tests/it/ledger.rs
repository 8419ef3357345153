//! What the ledger alone guarantees, on a real Postgres.

use futures_util::future::join_all;
use yoink::{
    app::Stores,
    domain::{Epoch, Order, Partition, ReservationId},
    ledger::{ActionBy, LedgerError, VoidOutcome, VoidRequest},
};

use crate::harness::{TestEnv, eventually, product};

async fn with_product(env: &TestEnv, units: i64) -> (Stores, Partition) {
    let stores = env.app(&[]).await.stores().clone();
    let partitions = stores.deployment.partitions;
    stores.ledger.create_products(&[product("shoe", units)], partitions, "test").await.unwrap();
    (stores, partitions.of(&"shoe".parse().unwrap()))
}

fn order(partition: Partition, seq: u64, random: u64, user: &str) -> Order {
    Order {
        id: ReservationId::new(partition.number(), Epoch(1), seq, random).unwrap(),
        product: "shoe".parse().unwrap(),
        user: user.parse().unwrap(),
        request: None,
        reserved_at_ms: 1_700_000_000_000,
        traceparent: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storing_the_same_orders_again_or_concurrently_changes_nothing() {
    let env = TestEnv::new().await;
    let (stores, partition) = with_product(&env, 100).await;
    let orders: Vec<Order> = (1..=50).map(|n| order(partition, n, n, "ann")).collect();
    let refs: Vec<&Order> = orders.iter().collect();
    let stored = join_all((0..6).map(|_| stores.ledger.store(partition, Epoch(1), &refs))).await;
    let inserted: usize = stored.iter().map(|stored| stored.as_ref().unwrap().inserted).sum();
    assert_eq!(inserted, 50);
    assert_eq!(env.count("SELECT sold FROM products").await, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn gate_refuses_orders_of_another_epoch() {
    let env = TestEnv::new().await;
    let (stores, partition) = with_product(&env, 100).await;
    let order = order(partition, 1, 1, "ann");
    let stored = stores.ledger.store(partition, Epoch(2), &[&order]).await;
    assert!(matches!(stored, Err(LedgerError::EpochChanged)));
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_never_stores_more_than_the_supply() {
    let env = TestEnv::new().await;
    let (stores, partition) = with_product(&env, 2).await;
    let orders: Vec<Order> = (1..=3).map(|n| order(partition, n, n, "ann")).collect();
    let refs: Vec<&Order> = orders.iter().collect();
    let stored = stores.ledger.store(partition, Epoch(1), &refs).await;
    assert!(matches!(stored, Err(LedgerError::Inconsistent { .. })));
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn order_of_a_product_that_the_ledger_does_not_have_is_rejected() {
    let env = TestEnv::new().await;
    let (stores, partition) = with_product(&env, 10).await;
    let unknown = Order { product: "hat".parse().unwrap(), ..order(partition, 2, 2, "bob") };
    let known = order(partition, 1, 1, "ann");
    let stored = stores.ledger.store(partition, Epoch(1), &[&known, &unknown]).await;
    let Err(LedgerError::Rejected { sqlstate, .. }) = stored else { panic!("{stored:?}") };
    assert_eq!(sqlstate, "23503");
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 0);
    stores.ledger.store(partition, Epoch(1), &[&known]).await.unwrap();
    let sql = env.sql().await;
    let change = "UPDATE reservations SET product_id = 'hat'";
    let refused = sql.batch_execute(change).await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "23503");
    let refused = sql.batch_execute("DELETE FROM products").await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "23503");
}

#[tokio::test(flavor = "multi_thread")]
async fn seq_is_used_by_one_order() {
    let env = TestEnv::new().await;
    let (stores, partition) = with_product(&env, 10).await;
    let (first, second) = (order(partition, 1, 1, "ann"), order(partition, 1, 2, "bob"));
    stores.ledger.store(partition, Epoch(1), &[&first]).await.unwrap();
    let stored = stores.ledger.store(partition, Epoch(1), &[&second]).await;
    assert!(matches!(stored, Err(LedgerError::Inconsistent { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn same_id_with_different_content_is_always_reported() {
    let env = TestEnv::new().await;
    let (stores, partition) = with_product(&env, 10).await;
    stores.ledger.store(partition, Epoch(1), &[&order(partition, 1, 1, "ann")]).await.unwrap();
    let other = order(partition, 1, 1, "bob");
    let stored = stores.ledger.store(partition, Epoch(1), &[&other]).await.unwrap();
    assert_eq!(stored.mismatched.len(), 1);
    assert_eq!(stored.mismatched[0].column, "user_id");
}

#[tokio::test(flavor = "multi_thread")]
async fn order_is_stored_or_voided_and_never_both() {
    let env = TestEnv::new().await;
    let (stores, partition) = with_product(&env, 100).await;
    let by = ActionBy { actor: "test".to_owned(), reason: String::new() };
    for seq in 1..=20 {
        let order = order(partition, seq, seq, "ann");
        let void =
            VoidRequest { id: order.id, reserved_at_ms: 0, reason: "x".to_owned(), entry: vec![] };
        let orders = [&order];
        let (stored, voided) = tokio::join!(
            stores.ledger.store(partition, Epoch(1), &orders),
            stores.ledger.void(partition, Epoch(1), &void, &by),
        );
        let (stored, voided) = (stored.unwrap(), voided.unwrap());
        match voided {
            VoidOutcome::Confirmed => assert_eq!(stored.inserted, 1),
            VoidOutcome::Voided => assert_eq!(stored.voided, [order.id]),
            VoidOutcome::VoidedBefore => panic!("voided once"),
        }
    }
    let sold = env.count("SELECT sold FROM products").await;
    assert_eq!(
        sold,
        env.count("SELECT count(*) FROM reservations WHERE state = 'confirmed'").await
    );
    assert_eq!(env.count("SELECT count(*) FROM reservations").await, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn different_number_of_partitions_is_refused() {
    let env = TestEnv::new().await;
    drop(env.app(&[]).await);
    let config = env.config(&[("partitions", "3")]);
    let Err(error) = Stores::connect(&config).await else { panic!("it was accepted") };
    assert!(error.to_string().contains("set partitions = 2"), "{error}");
}

/// Many products and orders in tables that are empty by the statistics of Postgres: what an import leaves that
/// was rolled back and analyzed meanwhile.
async fn fill_unnoticed(env: &TestEnv, partition: Partition) {
    let number = partition.number();
    let insert = format!(
        "INSERT INTO products (product_id, partition, name, price, currency, status, version,
                               supply, sold, per_user_limit)
         SELECT 'p-' || n, {number}, 'Product', 1, 'EUR', 'on_sale', 1, 10, 1, 5
           FROM generate_series(1, 5000) n;
         INSERT INTO reservations (reservation_id, state, product_id, user_id, units, partition,
                                   epoch, seq, reserved_at)
         SELECT gen_random_uuid(), 'confirmed', 'p-' || n, 'ann', 1, {number}, 1, 1000 + n, now()
           FROM generate_series(1, 5000) n;"
    );
    let sql = env.sql().await;
    sql.batch_execute(&format!("BEGIN; {insert} ROLLBACK")).await.unwrap();
    sql.batch_execute("ANALYZE products, reservations").await.unwrap();
    sql.batch_execute(&insert).await.unwrap();
    drop(sql);
}

/// How many rows of both tables some work reads.
async fn rows_read(env: &TestEnv, work: impl AsyncFnOnce(&Stores)) -> i64 {
    let read = async || {
        // A session reports what it read when it ends.
        let sessions = "SELECT count(*) FROM pg_stat_activity
                         WHERE datname = current_database() AND pid <> pg_backend_pid()
                           AND backend_type = 'client backend'";
        eventually("every session has ended", async || {
            (env.count(sessions).await == 0).then_some(())
        })
        .await;
        let sql = "SELECT sum(seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_user_tables
                    WHERE relname IN ('products', 'reservations')";
        env.count(sql).await
    };
    let before = read().await;
    let stores = env.stores().await;
    work(&stores).await;
    drop(stores);
    read().await - before
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_read_only_their_rows_if_statistics_show_empty_tables() {
    let env = TestEnv::new().await;
    let (stores, partition) = with_product(&env, 10).await;
    drop(stores);
    fill_unnoticed(&env, partition).await;
    let orders: Vec<Order> = (1..=50)
        .map(|n| Order {
            product: format!("p-{n}").parse().unwrap(),
            ..order(partition, n, n, "bob")
        })
        .collect();
    let read = rows_read(&env, async |stores| {
        let refs: Vec<&Order> = orders.iter().collect();
        let stored = stores.ledger.store(partition, Epoch(1), &refs).await.unwrap();
        assert_eq!(stored.inserted, 50);
    });
    let read = read.await;
    assert!(read < 500, "storing 50 orders read {read} rows");
    assert_eq!(env.count("SELECT sum(sold)::bigint FROM products").await, 5_050);

    let read = rows_read(&env, async |stores| {
        let asked = [(partition, Epoch(1), 50), (partition, Epoch(1), 51)];
        let missing = stores.ledger.without_order(&asked).await.unwrap();
        assert!(missing.contains(&partition));
    });
    let read = read.await;
    assert!(read < 500, "looking for 2 orders read {read} rows");
}
