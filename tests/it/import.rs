//! `yoink import` of many products: few statements, whole or not at all, and other callers do not wait for it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Output},
    sync::atomic::AtomicU64,
    time::Duration,
};

use yoink::{
    app::Role,
    grpc::pb::{ProductStatus, RestockRequest, UpdateProductRequest},
};

use crate::harness::{
    Proxy, Service, TestEnv, eventually, product, run_yoink_on_terminal, run_yoink_with,
    scratch_dir, spawn_yoink, succeeds,
};

/// A file of products `p-00000`, `p-00001`, … in this order.
fn file_of(numbers: impl IntoIterator<Item = usize>) -> PathBuf {
    let mut text = "product_id,name,price,currency,units\n".to_owned();
    for n in numbers {
        writeln!(text, "p-{n:05},Product {n},19.99,EUR,10").unwrap();
    }
    let path = scratch_dir("import").join("catalogue.csv");
    fs::write(&path, text).unwrap();
    path
}

fn start(env: &TestEnv, file: &Path) -> Child {
    spawn_yoink(env, &[], &["import", file.to_str().unwrap()])
}

async fn end(child: Child) -> Output {
    tokio::task::block_in_place(|| child.wait_with_output().unwrap())
}

/// Imports a file; returns what the command printed.
async fn import(env: &TestEnv, more: &[(&'static str, &str)], file: &Path) -> String {
    let args = ["import", file.to_str().unwrap()];
    printed(&tokio::task::block_in_place(|| run_yoink_with(env, more, &args)))
}

fn printed(done: &Output) -> String {
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Another transaction that has created a product and has not committed: an import of this product waits for it.
async fn hold(env: &TestEnv, id: &str) -> tokio_postgres::Client {
    let holder = env.sql().await;
    let insert = format!(
        "BEGIN;
         INSERT INTO products (product_id, partition, name, price, currency, status, version, supply)
         VALUES ('{id}', 0, 'Held', 1, 'EUR', 'on_sale', 0, 1)"
    );
    holder.batch_execute(&insert).await.unwrap();
    holder
}

async fn waiting(env: &TestEnv, imports: i64) {
    let sql = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually("the import waits for the other transaction", async || {
        (env.count(sql).await == imports).then_some(())
    })
    .await;
}

async fn products(env: &TestEnv) -> i64 {
    env.count("SELECT count(*) FROM products").await
}

async fn stop_sale(service: &Service, id: &str) {
    let status = ProductStatus::Stopped.into();
    let request = UpdateProductRequest { product_id: id.to_owned(), status, ..Default::default() };
    service.admin().update_product(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn import_round_trips_grow_by_page_and_a_repeat_changes_nothing() {
    let env = TestEnv::new().await;
    // The deployment and its partitions.
    drop(env.app(&[]).await);
    let proxy = Proxy::postgres(port_of(&env.postgres_url())).await;
    proxy.delay(Duration::from_micros(1500), Duration::from_micros(1500));
    let url = proxy.postgres_url(&env.database);
    let slow: &[(&'static str, &str)] = &[("postgres_url", &url)];
    let file = file_of(0..10_000);

    let outcome = import(&env, slow, &file).await;
    assert!(outcome.contains("10000 products created, 0 existed already"), "{outcome}");
    let first = proxy.round_trips();
    assert!((10..=150).contains(&first), "{first} round trips");
    let stored = env.count("SELECT count(*) FROM supply_changes").await;
    let before = env.count("SELECT max(version) FROM products").await;
    assert_eq!(stored, 10_000);

    let outcome = import(&env, slow, &file).await;
    assert!(outcome.contains("0 products created, 10000 existed already"), "{outcome}");
    let repeated = proxy.round_trips() - first;
    assert!(repeated <= first, "{repeated} round trips, {first} at first");
    assert_eq!(env.count("SELECT count(*) FROM supply_changes").await, stored);
    assert_eq!(env.count("SELECT max(version) FROM products").await, before);
    let _service = env.serve(Role::Api, &[]).await;
    env.assert_audit_holds().await;
}

fn port_of(url: &str) -> u16 {
    let (_, after) = url.rsplit_once(':').unwrap();
    after.split('/').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn emergency_stop_restock_and_creation_work_while_an_import_runs() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    service.create(product("shoe", 10)).await;
    service.buy("shoe", "ann", "").await.unwrap();
    let holder = hold(&env, "p-01999").await;
    let child = start(&env, &file_of(0..2_000));
    waiting(&env, 1).await;

    stop_sale(&service, "shoe").await;
    assert_eq!(service.refusal("shoe", "bob", "").await, "SALE_STOPPED");
    let restock = RestockRequest {
        product_id: "shoe".to_owned(),
        units: 5,
        request_id: "delivery-7".to_owned(),
        ..Default::default()
    };
    assert_eq!(service.admin().restock(restock).await.unwrap().into_inner().supply, 15);
    service.create(product("hat", 3)).await;
    service.buy("hat", "bob", "").await.unwrap();
    waiting(&env, 1).await;
    assert_eq!(products(&env).await, 2, "the import is not visible before its end");

    holder.batch_execute("ROLLBACK").await.unwrap();
    let outcome = printed(&end(child).await);
    assert!(outcome.contains("2000 products created, 0 existed already"), "{outcome}");
    for id in ["p-00000", "p-01999"] {
        succeeds("the service sells it", async || service.buy(id, "ann", "").await).await;
    }
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_import_leaves_nothing() {
    let env = TestEnv::new().await;
    drop(env.app(&[]).await);
    let file = file_of(0..12_000);
    let holder = hold(&env, "p-11999").await;
    let mut child = start(&env, &file);
    // Two statements of 5,000 products are done by then.
    waiting(&env, 1).await;
    child.kill().unwrap();
    child.wait().unwrap();
    holder.batch_execute("ROLLBACK").await.unwrap();
    let imports = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'yoink'
                      AND backend_xid IS NOT NULL";
    eventually("the import has ended in Postgres", async || {
        (env.count(imports).await == 0).then_some(())
    })
    .await;
    assert_eq!(products(&env).await, 0);
    assert_eq!(env.count("SELECT count(*) FROM supply_changes").await, 0);
    // As autovacuum may do at this moment: the statistics then show the table as empty.
    env.sql().await.batch_execute("ANALYZE products, supply_changes").await.unwrap();
    let outcome = import(&env, &[], &file).await;
    assert!(outcome.contains("12000 products created, 0 existed already"), "{outcome}");
    let _service = env.serve(Role::Api, &[]).await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_imports_of_overlapping_files_all_succeed() {
    let env = TestEnv::new().await;
    drop(env.app(&[]).await);
    let holder = hold(&env, "p-00500").await;
    // The same file twice, one the other way round, and one that shares its end.
    let files =
        [file_of(0..1_000), file_of(0..1_000), file_of((0..1_000).rev()), file_of(500..1_500)];
    let children: Vec<Child> = files.iter().map(|file| start(&env, file)).collect();
    waiting(&env, 4).await;
    holder.batch_execute("ROLLBACK").await.unwrap();
    let mut created = 0;
    for child in children {
        let outcome = printed(&end(child).await);
        let (count, _) = outcome.split_once(" products created").unwrap();
        created += count.parse::<usize>().unwrap();
    }
    assert_eq!(created, 1_500);
    assert_eq!(products(&env).await, 1_500);
    assert_eq!(env.count("SELECT count(*) FROM supply_changes").await, 1_500);
    assert_eq!(env.count("SELECT count(*) FROM products WHERE version = 0").await, 0);
    let _service = env.serve(Role::Api, &[]).await;
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_accepts_concurrently_created_products_and_refuses_other_units() {
    let env = TestEnv::new().await;
    let service = env.serve(Role::All, &[]).await;
    for (id, units) in [("p-00001", 10), ("p-00003", 11)] {
        service.create(product(id, units)).await;
    }
    let file = file_of([0, 1, 2]);
    let outcome = import(&env, &[], &file).await;
    assert!(outcome.contains("2 products created, 1 existed already"), "{outcome}");
    let differs =
        "p-00001 exists with another name, price, limit, window or status; it was not changed.";
    assert!(outcome.contains(differs), "{outcome}");

    let done = end(start(&env, &file_of([4, 3]))).await;
    let outcome = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(done.status.code(), Some(2), "{outcome}");
    assert!(
        outcome.contains("line 3, column 1") && outcome.contains("11 units, not 10"),
        "{outcome}"
    );
    assert_eq!(products(&env).await, 4);
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn products_of_an_import_killed_before_versions_are_sold() {
    let env = TestEnv::new().await;
    let running = env.serve(Role::All, &[]).await;
    running.create(product("shoe", 10)).await;
    let stores = env.stores().await;
    let partitions = stores.deployment.partitions;
    let new: Vec<_> = (0..1_200).map(|n| product(&format!("p-{n:05}"), 10)).collect();
    let done = AtomicU64::new(0);
    // It ends before versions are assigned.
    let imported = stores.ledger.import_products(&new, partitions, "import", &done).await.unwrap();
    assert_eq!(imported.unversioned.len(), 1_200);
    let started = env.serve(Role::Api, &[]).await;
    started.buy("p-01199", "ann", "").await.unwrap();
    for id in ["p-00000", "p-00700", "p-01199"] {
        succeeds("the running service sees it", async || running.buy(id, "bob", "").await).await;
    }
    let missing = "SELECT count(*) FROM products WHERE version = 0";
    eventually("all have versions", async || (env.count(missing).await == 0).then_some(())).await;
    stop_sale(&running, "p-00700").await;
    assert_eq!(running.refusal("p-00700", "eve", "").await, "SALE_STOPPED");
    env.assert_audit_holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_that_cannot_assign_versions_reports_it_and_the_next_completes_it() {
    let env = TestEnv::new().await;
    let sql = env.sql().await;
    let trigger = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                       $$ BEGIN RAISE EXCEPTION 'not now'; END $$;
                   CREATE TRIGGER refuse BEFORE UPDATE ON products
                       FOR EACH ROW EXECUTE FUNCTION refuse()";
    sql.batch_execute(trigger).await.unwrap();
    let file = file_of(0..3);
    let failed = end(start(&env, &file)).await;
    let outcome = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(2), "{outcome}");
    let message = "the products are stored, but not yet on sale everywhere: running services add 1,000 every half \
                   second; to finish now, import the file again";
    assert!(outcome.contains(message), "{outcome}");
    let missing = "SELECT count(*) FROM products WHERE version = 0";
    assert_eq!(env.count(missing).await, 3);
    sql.batch_execute("DROP TRIGGER refuse ON products").await.unwrap();
    let outcome = import(&env, &[], &file).await;
    assert!(outcome.contains("0 products created, 3 existed already"), "{outcome}");
    assert_eq!(env.count(missing).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn import_with_a_different_number_of_partitions_names_the_right_one() {
    let env = TestEnv::new().await;
    let file = file_of(0..1);
    import(&env, &[("partitions", "4")], &file).await;
    let args = ["import", file.to_str().unwrap()];
    let other = tokio::task::block_in_place(|| run_yoink_with(&env, &[("partitions", "2")], &args));
    let outcome = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(2), "{outcome}");
    let message =
        "the database has 4 partitions, and the setting partitions is 2: set partitions = 4";
    assert!(outcome.contains(message), "{outcome}");
}

#[tokio::test(flavor = "multi_thread")]
async fn emergency_stop_does_not_wait_for_an_import_to_reach_redis() {
    let env = TestEnv::new().await;
    let proxy = Proxy::postgres(port_of(&env.postgres_url())).await;
    let url = proxy.postgres_url(&env.database);
    let service = env.serve(Role::All, &[("postgres_url", &url)]).await;
    service.create(product("shoe", 10)).await;
    // The refresh that writes the import to Redis does not get an answer.
    proxy.hold("(SELECT max(version) FROM products) <");
    eventually("the service refreshes", async || (proxy.held() > 0).then_some(())).await;
    let outcome = import(&env, &[], &file_of(0..2_000)).await;
    assert!(outcome.contains("2000 products created"), "{outcome}");
    let known = async || {
        let mut cli = env.cli().await;
        let mut known = 0;
        for partition in env.stores().await.deployment.partitions.all() {
            let key = format!("{}:{{{partition}}}:catalogue", env.prefix);
            let length: u64 = redis::cmd("HLEN").arg(key).query_async(&mut cli).await.unwrap();
            known += length;
        }
        known
    };
    stop_sale(&service, "shoe").await;
    assert_eq!(service.refusal("shoe", "ann", "").await, "SALE_STOPPED");
    assert_eq!(known().await, 1, "the stop waited until Redis knew the import");
    proxy.pass();
    eventually("Redis knows all", async || (known().await == 2_001).then_some(())).await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_number_price_reaches_the_ledger_as_written() {
    let env = TestEnv::new().await;
    let path = scratch_dir("import").join("catalogue.json");
    let text =
        r#"[{"product_id":"a","name":"A","price":1234567890123.4567,"currency":"CLF","units":1}]"#;
    fs::write(&path, text).unwrap();
    import(&env, &[], &path).await;
    let exact = "SELECT count(*) FROM products WHERE price = 1234567890123.4567";
    assert_eq!(env.count(exact).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn import_shows_progress_only_on_a_terminal() {
    let env = TestEnv::new().await;
    let file = file_of(0..1_500);
    let args = ["import", file.to_str().unwrap()];
    let shown = tokio::task::block_in_place(|| run_yoink_on_terminal(&env, &args));
    for text in ["storing: 1500 of 1500", "publishing: 1500 of 1500", "1500 products created"] {
        assert!(shown.contains(text), "{shown}");
    }
    let outcome = import(&env, &[], &file).await;
    assert!(outcome.starts_with("0 products created") && !outcome.contains("storing"), "{outcome}");
}
